"""The description of an image by a model in this process or on a server, and its picture."""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from PIL import Image

from revisit.evaluation.pictures.picture import Box, Picture
from revisit.evaluation.pictures.words import Word

QUESTION = "Please describe this image in detail."

OnWords = Callable[[list[Word]], None]
"""Called at every token with the words so far, of which the last may go on; what it raises ends the
description."""


class Description(NamedTuple):
    """What a model generated about an image."""

    text: str
    words: list[Word]
    tokens: int | None  # None where a server does not count them
    stopped: bool  # by the limit of tokens or of time, before the model was done


def picture(
    boxes: Callable[[Image.Image], list[tuple[int, Box | None]]],
    title: str,
    image: Image.Image,
    descriptions: Mapping[str, Description],
    truth: Collection[str] | None = None,
    note: str = "",
) -> Picture:
    """Descriptions of an image, by the name of their decoder, with their patches.

    Args:
        boxes: the part of an image that each vision token shows; ValueError where that is not
            known, which the picture's note then says.
        truth: names of the COCO objects in the image, where they are known.
    """
    words = {name: each.words for name, each in descriptions.items()}
    tokens = (token for each in words.values() for word in each for token in word.tokens)
    found = None
    if any(token.step is not None for token in tokens):
        try:
            found = boxes(image)
        except ValueError as error:
            note = f"{note} The patches cannot be drawn: {error}.".strip()
    return Picture(title, [image], words, found, truth, note)
