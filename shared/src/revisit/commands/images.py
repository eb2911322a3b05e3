"""An image file as a model is to see it: upright, opaque, RGB, 8 bits; or why it is refused."""

import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from revisit.commands import CommandError

# No others: some of Pillow's formats run programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_ORIENTATION = 0x0112
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:(//|.*,)")


class Opened(NamedTuple):
    """An image, and what was done to it that a reader should know."""

    image: Image.Image
    notes: list[str]


def open_image(name: str, most_pixels: int) -> Opened:
    """Read an image file.

    Args:
        name: its path; a URL is refused.
        most_pixels: a larger image is refused before it is decoded.

    Raises:
        CommandError: it cannot be read, or not as an image; the message says why.
    """
    if _URL.match(name):
        raise CommandError(f"{name[:80]} is a URL, and nothing is fetched: save it, give the file")
    path = Path(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # looked at just below
            with Image.open(path, formats=FORMATS) as image:
                _check_size(path, image.size, most_pixels)
                image.load()
                return _as_seen(path, image)
    except UnidentifiedImageError:
        named = ", ".join(FORMATS)
        raise CommandError(f"{path} is not an image that can be read ({named})") from None
    except Image.DecompressionBombError:
        raise CommandError(_too_large(path, "far too many", most_pixels)) from None
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror or error}") from error
    except (SyntaxError, EOFError, IndexError, OverflowError) as error:
        raise CommandError(f"{path} is damaged: {error}") from error


def _check_size(path: Path, size: tuple[int, int], most_pixels: int) -> None:
    width, height = size
    if width * height > most_pixels:
        raise CommandError(_too_large(path, f"{width} x {height}", most_pixels))


def _too_large(path: Path, pixels: str, most_pixels: int) -> str:
    most = most_pixels / 1e6
    return f"{path} has {pixels} pixels, more than {most:g} million: make it smaller"


def _as_seen(path: Path, image: Image.Image) -> Opened:
    notes = []
    if getattr(image, "n_frames", 1) > 1:
        notes.append(f"{image.n_frames} frames or pages: the first is shown")  # type: ignore[attr-defined]
    if image.getexif().get(_ORIENTATION, 1) != 1:
        notes.append("turned upright, as its EXIF says")
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        upright = _eight_bits(path, upright)
        notes.append("its 16 bits were brought to 8")
    if "A" in upright.getbands() or "transparency" in upright.info:
        clear = upright.convert("RGBA")
        if clear.getchannel("A").getextrema()[0] != 255:
            notes.append("its transparent parts are shown on white")
        upright = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    if upright.mode == "CMYK":
        notes.append("its CMYK colours were turned into RGB without a colour profile")
    try:
        return Opened(upright.convert("RGB"), notes)
    except ValueError as error:
        raise CommandError(f"{path}: its colours ({upright.mode}) cannot be RGB") from error


def _eight_bits(path: Path, image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise CommandError(
            f"{path} holds numbers ({image.mode}) from {values.min():g} to {values.max():g}, of "
            "which none is said to be white: save it with 8 or 16 bits"
        )
    return Image.fromarray((values.astype(np.float64) / 257).round().astype(np.uint8))
