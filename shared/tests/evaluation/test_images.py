"""Images of every kind are seen as a viewer would show them, or refused with the reason."""

import contextlib
import struct
import zlib
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageOps

from revisit.evaluation.images import ImageError, as_seen, open_image

RED = (200, 30, 30)


def opened(path, most_pixels=10_000):
    return open_image(str(path), most_pixels)


@pytest.mark.parametrize(
    "url",
    ["https://example.org/a.jpg", "file:///etc/passwd", "data:image/png;base64,AA", "S3://b/c"],
)
def test_a_url_is_refused_with_the_reason(url):
    with pytest.raises(ImageError, match="is a URL, and nothing is fetched"):
        opened(url)


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").touch()
    Image.new("RGB", (64, 64), RED).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-200])
    (tmp_path / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name, message in {
        "missing.jpg": "No such file",
        ".": "Is a directory",
        "text.jpg": "not an image that can be read",
        "empty.png": "not an image that can be read",
        "page.eps": "not an image that can be read",
        "cut.jpg": "(?i)truncated",
    }.items():
        with pytest.raises(ImageError, match=message) as raised:
            opened(tmp_path / name)
        assert str(tmp_path / name) in str(raised.value)


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path):
    Image.new("RGB", (101, 100), RED).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"101 x 100 pixels, more than 0\.01 million"):
        opened(tmp_path / "a.png")
    (tmp_path / "bomb.png").write_bytes(png_of(60_000, 60_000))
    with pytest.raises(ImageError, match=r"more than 0\.01 million: make it smaller"):
        opened(tmp_path / "bomb.png")


def png_of(width, height):
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_transparent_parts_are_shown_on_white(tmp_path):
    image = Image.new("RGBA", (20, 20), (*RED, 255))
    image.paste((0, 0, 0, 0), (0, 0, 10, 20))
    image.save(tmp_path / "a.png")
    seen, notes = opened(tmp_path / "a.png")
    assert seen.getpixel((2, 2)) == (255, 255, 255) and seen.getpixel((15, 2)) == RED
    assert notes == ["its transparent parts are shown on white"]
    Image.new("RGBA", (20, 20), (*RED, 255)).save(tmp_path / "b.png")
    assert opened(tmp_path / "b.png").notes == []


def test_of_an_animation_the_first_frame_is_shown(tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in (RED, "blue", "green")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    seen, notes = opened(tmp_path / "a.gif")
    assert notes == ["3 frames or pages: the first is shown"]
    assert seen.getpixel((5, 5)) == pytest.approx(RED, abs=8)


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_become_eight_and_are_not_clipped(tmp_path, kind):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    Image.fromarray(ramp).save(tmp_path / f"a.{kind}")
    seen, notes = opened(tmp_path / f"a.{kind}")
    grey = np.asarray(seen)[0, :, 0]
    assert grey.tolist() == list(range(256))
    assert notes == ["its 16 bits were brought to 8"]


def test_numbers_without_a_white_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "half.tiff")
    Image.fromarray(np.full((2, 2), 200, np.int32)).save(tmp_path / "long.tiff")
    (tmp_path / "one.ppm").write_bytes(b"Pf\n2 2\n-1.0\n" + np.ones(4, "<f4").tobytes())
    for name, numbers in (
        ("half.tiff", r"\(F\) from 0\.5 to 0\.5"),
        ("long.tiff", r"\(I\) from 200 to 200"),
        ("one.ppm", r"\(F\) from 1 to 1"),
    ):
        with pytest.raises(ImageError, match=f"holds numbers {numbers}, of which none is said to"):
            opened(tmp_path / name)


def test_grey_sixteen_bits_with_a_transparent_grey_are_shown_on_white(tmp_path):
    values = np.array([[0, 1000, 1001, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", transparency=1000)
    seen, _ = opened(tmp_path / "a.png")
    assert np.asarray(seen)[0, :, 0].tolist() == [0, 255, 4, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_an_image_in_memory_of_any_mode_becomes_rgb(mode):
    white = Image.new("RGB", (5, 4), "white").convert("RGBA" if mode == "PA" else mode)
    seen, _ = as_seen(white.convert(mode))
    assert seen.mode == "RGB" and seen.getextrema() == ((255, 255),) * 3


def test_a_palette_with_transparent_entries_is_shown_on_white(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *RED])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "a.png", transparency=bytes([0, 255]))
    seen, notes = opened(tmp_path / "a.png")
    assert seen.getpixel((0, 0)) == (255, 255, 255) and seen.getpixel((2, 2)) == RED
    assert notes == ["its transparent parts are shown on white"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tiff", "webp"])
def test_every_exif_orientation_is_undone_once(tmp_path, kind, orientation):
    image = Image.new("RGB", (48, 32), "white")
    image.paste(RED, (0, 0, 24, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a.{kind}", exif=exif, quality=95)
    seen, notes = opened(tmp_path / f"a.{kind}")
    assert notes == ["turned upright, as its EXIF says"] * (orientation > 1)
    again, notes = as_seen(seen)
    assert again.tobytes() == seen.tobytes() and notes == [] and not seen.getexif()
    expected = ImageOps.exif_transpose(Image.open(tmp_path / f"a.{kind}")).convert("RGB")
    assert seen.size == expected.size and seen.tobytes() == expected.tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_as_coco_s_is_read_as_before(tmp_path, mode):
    noise = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(tmp_path / "a.jpg")
    seen, notes = opened(tmp_path / "a.jpg")
    assert len(notes) == (mode == "CMYK") and all("without a colour profile" in n for n in notes)
    assert seen.tobytes() == Image.open(tmp_path / "a.jpg").convert("RGB").tobytes()


DAMAGED = {
    "short.ppm": b"P6 4 4 255\n" + bytes(5),
    "letters.ppm": b"P3 2 2 255\n1 2 x 4",
    "large.pgm": b"P2 1 1 10\n99",
    "empty.ppm": b"P6 0 0 255\n",
    "header.ppm": b"P6 4",
    "depth.pgm": b"P2 1 1 99999999\n1",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_with_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(DAMAGED[name])
    with pytest.raises(ImageError, match=name):
        opened(tmp_path / name)


def test_any_damage_is_an_image_error_or_an_image(tmp_path):
    random, path = Random(0), tmp_path / "image"
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    for kind in ("BMP", "GIF", "JPEG", "PNG", "PPM", "WEBP"):
        Image.fromarray(noise).save(path, kind)
        whole = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            for _ in range(3):
                damaged[random.randrange(min(len(whole), 60))] = random.randrange(256)
            path.write_bytes(damaged)
            with contextlib.suppress(ImageError):
                assert opened(path).image.mode == "RGB"


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ImageError, match="has no pixels"):
        as_seen(Image.new("RGB", (0, 5)))
