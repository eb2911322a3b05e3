"""RITUAL, random image transformations as a complement (Woo et al., arXiv 2405.17821).

    l + alpha l',  -inf where l < max l + ln beta

l are the model's logits, l' those that it gives where it sees the image transformed. Readings: one
transformation is drawn for an image, uniformly, not several one after another, with the ranges that
torchvision gives those names; a crop and a rotation keep the image's size, so that both images take
as many vision tokens.
"""

import random
from zlib import crc32

from PIL import Image
from torch import Tensor

from revisit.decoders.plausible import keep_plausible
from revisit.decoders.transformations import TRANSFORMATIONS


def combine(logits: Tensor, transformed: Tensor, alpha: float, beta: float) -> Tensor:
    """The scores (..., V) from the logits for the image and for the transformed image."""
    return keep_plausible(logits + alpha * transformed, logits, beta)


def second_image(image: Image.Image, seed: int = 0, number: int | None = None) -> Image.Image:
    """The image, RGB, of the same size, after one transformation drawn uniformly out of six.

    Args:
        image: as it goes to the model's processor; other modes are converted to RGB.
        seed: of all draws.
        number: which image of many it is: each draws from a generator of its own. Left out, its
            pixels tell, so that an image is changed alike wherever it stands.
    """
    image = image.convert("RGB")
    number = crc32(image.tobytes()) if number is None else number
    draw = random.Random(seed * 1_000_003 + number)
    return draw.choice(TRANSFORMATIONS)(image, draw)
