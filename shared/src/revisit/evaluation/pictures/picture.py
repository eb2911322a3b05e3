"""What is drawn of a caption: its images, its words, and the patches that they came from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from revisit.evaluation.pictures.words import Token, Word

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as fractions of the image; outside 0 to 1 where padding was added."""


@dataclass(frozen=True)
class Picture:
    """One caption to be drawn.

    Args:
        title: what it is called, the image's file name or the like.
        images: the prompt's images in order, upright, RGB.
        words: of the caption (`words.join`).
        boxes: for each vision token of the prompt its image and the part of it that it shows, None
            where it shows none; None altogether where that is not known.
        note: what the reader must know besides: why the boxes are not known, and the like.
    """

    title: str
    images: Sequence[Image.Image]
    words: Sequence[Word]
    boxes: Sequence[tuple[int, Box | None]] | None
    note: str = ""
    _patches: list["Patch"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_patches", _patches(self))

    @property
    def patches(self) -> Sequence["Patch"]:
        """The patches that a word came from, in reading order, each once."""
        return self._patches

    @property
    def greedy(self) -> bool:
        """Whether no vision token was chosen at all."""
        return all(token.step is None for word in self.words for token in word.tokens)

    @property
    def changed(self) -> int:
        """How many words ReVisiT changed."""
        return sum(word.changed for word in self.words)


@dataclass(frozen=True)
class Patch:
    """A part of an image that words came from."""

    image: int
    box: Box  # inside the image
    vision_tokens: tuple[int, ...]  # those that show it; several, where layers or tiles overlap
    words: tuple[int, ...]  # the numbers of its words in the caption


def visible(box: Box | None) -> Box | None:
    """The part of a box that lies in the image; None if none does."""
    if box is None:
        return None
    left, top, right, bottom = (min(max(edge, 0.0), 1.0) for edge in box)
    return (left, top, right, bottom) if left < right and top < bottom else None


def fit(token: Token) -> float:
    """How well the chosen patch fits what the model expects: 1 if exactly, 0 if not at all.

    exp(-D), D the divergence in nats that ReVisiT chose the vision token by.
    """
    return 0.0 if token.step is None else math.exp(-max(token.step.divergence, 0.0))


def trivial(token: Token) -> bool:
    """Whether a single candidate was left, at which every vision token fits alike."""
    return token.step is not None and token.step.candidates == 1


def place(picture: Picture, token: Token) -> tuple[int, Box | None] | None:
    """The image and box of the vision token that was chosen, where that is known."""
    if picture.boxes is None or token.step is None:
        return None
    chosen = token.step.vision_token
    if not 0 <= chosen < len(picture.boxes):
        raise ValueError(
            f"the trace chose vision token {chosen}, but boxes are given for {len(picture.boxes)}"
        )
    return picture.boxes[chosen]


def describe(picture: Picture, token: Token) -> str:
    """One line on a token: its patch, how sure the choice was, and what greedy would have said."""
    step = token.step
    if step is None:
        return f"“{token.text.strip()}”: no vision token was chosen"
    parts = [_where(picture, token), f"layer {step.layer}"]
    if trivial(token):
        parts.append("a single candidate word was left, so every patch fits alike")
    else:
        parts.append(
            f"fit {fit(token):.2f} (divergence {step.divergence:.3g} nats), "
            f"{step.candidates} candidates"
        )
    if token.instead is not None:
        parts.append(f"greedy decoding would have said “{token.instead.strip()}”")
    return f"“{token.text.strip()}”: {'; '.join(parts)}"


def _where(picture: Picture, token: Token) -> str:
    step, told = token.step, place(picture, token)
    assert step is not None
    if told is None:
        return f"vision token {step.vision_token + 1}, place in the image not known"
    image, box = told
    named = f"image {image + 1}, " if len(picture.images) > 1 else ""
    shown = visible(box)
    if shown is None:
        return f"{named}vision token {step.vision_token + 1}, which shows padding"
    row = "" if step.patch is None else f"row {step.patch[1] + 1}, column {step.patch[2] + 1}, "
    x, y = (shown[0] + shown[2]) / 2, (shown[1] + shown[3]) / 2
    return f"{named}patch {row}{x:.0%} from the left, {y:.0%} from the top"


def _patches(picture: Picture) -> list[Patch]:
    found: dict[tuple[int, Box], tuple[set[int], list[int]]] = {}
    for number, word in enumerate(picture.words):
        for token in word.tokens:
            image, box = place(picture, token) or (0, None)
            if token.step is None or (shown := visible(box)) is None:
                continue
            if not 0 <= image < len(picture.images):
                raise ValueError(f"a box lies in image {image + 1} of {len(picture.images)} images")
            tokens, words = found.setdefault((image, shown), (set(), []))
            tokens.add(token.step.vision_token)
            if number not in words:
                words.append(number)
    ordered = sorted(found.items(), key=lambda item: (item[0][0], item[0][1][1], item[0][1][0]))
    return [
        Patch(image, box, tuple(sorted(tokens)), tuple(words))
        for (image, box), (tokens, words) in ordered
    ]
