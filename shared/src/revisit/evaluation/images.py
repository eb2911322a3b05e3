"""An image as a model is to see it: upright, opaque, RGB, 8 bits; or why it is refused.

All programs read images here. A JPEG of RGB or grey pixels without an EXIF rotation comes as
Pillow's `convert("RGB")` gives it.
"""

import re
import warnings
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from revisit.evaluation import EvaluationError

# No others: some of Pillow's formats run programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

MOST_PIXELS = 64_000_000

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:(//|.*,)")
_ORIENTATION = 0x0112
_UPRIGHT = {  # what undoes each value of EXIF's Orientation; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF


class ImageError(EvaluationError):
    """An image that cannot be read, or not as colours. The message says why."""


class Opened(NamedTuple):
    """An image, and what was done to it that a reader should know."""

    image: Image.Image
    notes: list[str]


def open_image(
    name: str | Path, most_pixels: int = MOST_PIXELS, file: BinaryIO | None = None
) -> Opened:
    """Read an image file.

    Args:
        name: its path; a URL is refused.
        most_pixels: a larger image is refused before it is decoded.
        file: what is read in its place; the name is then for messages alone.

    Raises:
        ImageError: it cannot be read, or not as an image; the message names it and says why.
    """
    if file is None and _URL.match(str(name)):
        raise ImageError(
            f"{str(name)[:80]} is a URL, and nothing is fetched: save it, give the file"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # looked at just below
            with Image.open(file or name, formats=FORMATS) as image:
                if image.width * image.height > most_pixels:
                    raise ImageError(_too_large(f"{image.width} x {image.height}", most_pixels))
                return as_seen(image)
    except UnidentifiedImageError:
        named = ", ".join(FORMATS)
        raise ImageError(f"{name} is not an image that can be read ({named})") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name} {_too_large('far too many', most_pixels)}") from None
    except ImageError as error:
        raise ImageError(f"{name} {error}") from error
    except OSError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror or error}") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds on damaged files
        raise ImageError(f"{name} is damaged: {error}") from error


def _too_large(pixels: str, most_pixels: int) -> str:
    return f"has {pixels} pixels, more than {most_pixels / 1e6:g} million: make it smaller"


def as_seen(image: Image.Image) -> Opened:
    """An image of Pillow's, of any mode, as a model is to see it.

    The result carries no EXIF, so that nobody turns it a second time.

    Raises:
        ImageError: it has no pixels, or its numbers are no colours.
    """
    notes = []
    if getattr(image, "n_frames", 1) > 1:
        notes.append(f"{image.n_frames} frames or pages: the first is shown")  # type: ignore[attr-defined]
    if _orientation(image) in _UPRIGHT:
        notes.append("turned upright, as its EXIF says")
    image.load()
    if 0 in image.size:
        raise ImageError("has no pixels")
    turn = _UPRIGHT.get(_orientation(image))  # asked again: Pillow turns a TIFF where it loads it
    seen = image
    if image.mode.startswith(("I", "F")):
        seen = _eight_bits(image)
        notes.append("its 16 bits were brought to 8")
    if turn is not None:
        seen = seen.transpose(turn)
    if "A" in seen.getbands() or "transparency" in seen.info:
        clear = seen.convert("RGBA")
        if clear.getchannel("A").getextrema()[0] != 255:
            notes.append("its transparent parts are shown on white")
        seen = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    if seen.mode == "CMYK":
        notes.append("its CMYK colours were turned into RGB without a colour profile")
    try:
        seen = seen.convert("RGB")
    except ValueError as error:
        raise ImageError(f"has colours ({seen.mode}) that cannot be RGB") from error
    seen.info = {}
    return Opened(seen, notes)


def _orientation(image: Image.Image) -> int:
    try:
        found: int = image.getexif().get(_ORIENTATION, 1)
        return found
    except Exception:  # a damaged EXIF says nothing of the pixels
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 bits (I;16, or I where its format fills 16 bits) as L, or LA."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    fills = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
    if image.mode == "F" or not fills:  # a PPM of floats too
        raise ImageError(
            f"holds numbers ({image.mode}) from {values.min():g} to {values.max():g}, of which "
            "none is said to be white: save it with 8 or 16 bits"
        )
    white = 2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1
    grey = (255 * (values / white)).round().astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # zero is white
        grey = 255 - grey
    seen = Image.fromarray(grey)
    if "transparency" in image.info:
        seen.putalpha(Image.fromarray(255 * (values != image.info["transparency"]).astype("uint8")))
    return seen
