"""What is asked of a model about an image, and what it says: wherever the model runs."""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, Protocol

from PIL import Image

from revisit.config import ReVisiTConfig
from revisit.evaluation.pictures.picture import Box, Picture
from revisit.evaluation.pictures.words import Word

QUESTION = "Please describe this image in detail."

Heard = Callable[[list[Word]], None]
"""Called with the words so far, the last of which may not be whole."""


class Said(NamedTuple):
    """A description, and what it takes to draw it."""

    text: str
    words: list[Word]
    tokens: int | None  # None where that is not told
    stopped: bool  # by the limit of tokens or of time, before the model was done


class Speaker(Protocol):
    """Describes images."""

    @property
    def name(self) -> str:
        """Of the model."""

    @property
    def title(self) -> str:
        """What the model is called where others read it: no path of this machine."""

    @property
    def layers(self) -> str:
        """The layers that ReVisiT's published code compares by default in this family."""

    @property
    def warning(self) -> str:
        """What to know before it describes a photograph; empty for most."""

    @property
    def origin(self) -> str:
        """Empty for a model that runs here, else the address of the server that it runs on.

        A server decides about layers, and tells no trace.
        """

    def check(self, config: ReVisiTConfig) -> None:
        """Raises `CommandError` where it cannot decode so."""

    def describe(
        self,
        image: Image.Image,
        config: ReVisiTConfig | None,
        *,
        question: str = QUESTION,
        max_new_tokens: int = 256,
        max_seconds: float | None = None,
        heard: Heard | None = None,
    ) -> Said:
        """Describe an image; `config` None decodes greedily.

        Args:
            max_seconds: the description ends there.
            heard: called at every token; what it raises ends the description.

        Raises:
            CommandError: it cannot; the message says why.
        """

    def boxes(self, image: Image.Image) -> list[tuple[int, Box | None]]:
        """The part of the image that each vision token shows; ValueError where it is not known."""


def picture(
    speaker: Speaker,
    title: str,
    image: Image.Image,
    said: Mapping[str, Said],
    truth: Collection[str] | None = None,
    note: str = "",
) -> Picture:
    """Descriptions with their patches, by what decoded them; the note says why there are none.

    Args:
        truth: names of the COCO objects in the image, where they are known.
    """
    boxes = None
    words = {name: each.words for name, each in said.items()}
    tokens = (token for each in words.values() for word in each for token in word.tokens)
    if any(token.step is not None for token in tokens):
        try:
            boxes = speaker.boxes(image)
        except ValueError as error:
            note = f"{note} The patches cannot be drawn: {error}.".strip()
    return Picture(title, [image], words, boxes, truth, note)
