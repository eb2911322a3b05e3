"""What is asked of a model about an image, and what it says: wherever the model runs."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from PIL import Image

from revisit.config import ReVisiTConfig
from revisit.evaluation.pictures.picture import Picture
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

    def picture(self, title: str, image: Image.Image, said: Said, note: str = "") -> Picture | None:
        """The description with its patches; None where nothing tells of them."""
