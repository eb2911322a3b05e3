"""RITUAL's second image (Woo et al., arXiv 2405.17821): one of six random transformations.

Readings: one transformation is drawn for an image, uniformly, not several in sequence. The ranges
are torchvision's for the transformations of the same names. A crop and a rotation keep the size of
the image, so both images have the same number of vision tokens.
"""

import math
import random
from zlib import crc32

import numpy as np
from PIL import Image, ImageEnhance, ImageOps


def second_image(image: Image.Image, seed: int = 0, number: int | None = None) -> Image.Image:
    """The image, RGB, of the same size, after one transformation drawn uniformly out of six.

    Args:
        image: as it goes to the model's processor; other modes are converted to RGB.
        seed: of all draws.
        number: the index of the image: each index has a separate generator. If it is left out, the
            pixels decide, so an image is always changed in the same way.
    """
    image = image.convert("RGB")
    number = crc32(image.tobytes()) if number is None else number
    draw = random.Random(seed * 1_000_003 + number)
    return draw.choice(TRANSFORMATIONS)(image, draw)


def jitter(image: Image.Image, draw: random.Random) -> Image.Image:
    """Brightness, contrast, saturation by 0 to 2, hue by up to half a turn, in random order."""
    changes = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color, None]
    for change in draw.sample(changes, 4):
        if change is not None:
            image = change(image).enhance(draw.uniform(0, 2))
            continue
        hue, saturation, value = image.convert("HSV").split()
        turn = round(draw.uniform(-0.5, 0.5) * 255)
        turned = hue.point([(level + turn) % 256 for level in range(256)])
        image = Image.merge("HSV", (turned, saturation, value)).convert("RGB")
    return image


def blur(image: Image.Image, draw: random.Random) -> Image.Image:
    """Gaussian, 13 pixels wide, sigma 1.5 to 2."""
    weights = np.exp(-0.5 * (np.arange(-6, 7) / draw.uniform(1.5, 2)) ** 2)
    pixels = np.pad(np.asarray(image, np.float64), ((6, 6), (6, 6), (0, 0)), "reflect")
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(pixels, 13, axis)
        pixels = windows @ (weights / weights.sum())
    return Image.fromarray(pixels.round().astype(np.uint8))


def crop(image: Image.Image, draw: random.Random) -> Image.Image:
    """8% to all of the area, sides 3 : 4 to 4 : 3, brought back to the image's size."""
    for _ in range(10):
        area = image.width * image.height * draw.uniform(0.08, 1)
        ratio = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= image.width and 0 < height <= image.height:
            x, y = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
            box = (x, y, x + width, y + height)
            return image.resize(image.size, Image.Resampling.BILINEAR, box)
    return image  # no such part fits into a very long one


TRANSFORMATIONS = (
    lambda image, _: ImageOps.mirror(image),
    lambda image, _: ImageOps.flip(image),
    lambda image, draw: image.rotate(draw.uniform(-180, 180)),
    jitter,
    blur,
    crop,
)
