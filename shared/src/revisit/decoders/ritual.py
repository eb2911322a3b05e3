"""RITUAL, random image transformations as a complement (Woo et al., arXiv 2405.17821).

    l + alpha l',  -inf where l < max l + ln beta

l are the model's logits, l' those that it gives where it sees the image transformed. Readings: one
transformation is drawn for an image, uniformly, not several one after another, with the ranges that
torchvision gives those names; a crop and a rotation keep the image's size, so that both images take
as many vision tokens.
"""

import math
import random

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from revisit.decoders.plausible import keep_plausible


def combine(logits: Tensor, transformed: Tensor, alpha: float, beta: float) -> Tensor:
    """The scores (..., V) from the logits for the image and for the transformed image."""
    return keep_plausible(logits + alpha * transformed, logits, beta)


def second_image(image: Image.Image, seed: int = 0, number: int = 0) -> Image.Image:
    """The image, RGB, of the same size, after one transformation drawn uniformly out of six.

    Args:
        image: as it goes to the model's processor; other modes are converted to RGB.
        seed: of all draws.
        number: which image of many it is: each draws from a generator of its own.
    """
    draw = random.Random(seed * 1_000_003 + number)
    return draw.choice(TRANSFORMATIONS)(image.convert("RGB"), draw)


def _jitter(image: Image.Image, draw: random.Random) -> Image.Image:
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


def _blur(image: Image.Image, draw: random.Random) -> Image.Image:
    """Gaussian, 13 pixels wide, sigma 1.5 to 2."""
    weights = np.exp(-0.5 * (np.arange(-6, 7) / draw.uniform(1.5, 2)) ** 2)
    pixels = np.pad(np.asarray(image, np.float64), ((6, 6), (6, 6), (0, 0)), "reflect")
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(pixels, 13, axis)
        pixels = windows @ (weights / weights.sum())
    return Image.fromarray(pixels.round().astype(np.uint8))


def _crop(image: Image.Image, draw: random.Random) -> Image.Image:
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
    _jitter,
    _blur,
    _crop,
)
