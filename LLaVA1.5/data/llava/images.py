"""From pictures to the pixels that the vision tower takes."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from llava.config import LlavaConfig
from revisit.evaluation.images import as_seen


def process_images(
    images: Sequence[Image.Image], image_processor: CLIPImageProcessor, config: LlavaConfig
) -> torch.Tensor:
    """Pictures of any mode and size as (n, 3, H, W) float32.

    Where `config.image_aspect_ratio` is "pad", each is first padded to a square with the
    processor's mean colour. They are read as all programs here read them, upright and opaque
    (`revisit.evaluation.images.as_seen`); LLaVA-1.5's code turns none and drops transparency.
    """
    pictures = [as_seen(image).image for image in images]
    if config.image_aspect_ratio == "pad":
        colour = tuple(int(mean * 255) for mean in image_processor.image_mean)
        pictures = [pad_to_square(picture, colour) for picture in pictures]
    # Channels first: of (H, W, 3) the processor takes a height of 1 or 3 for the channels.
    arrays = [np.asarray(picture).transpose(2, 0, 1) for picture in pictures]
    pixels: torch.Tensor = image_processor(arrays, return_tensors="pt").pixel_values
    return pixels


def pad_to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """The RGB image in the middle of a square of its longer side."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
