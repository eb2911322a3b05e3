"""An image with its captions word by word, and the patch that each word came from."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any, NamedTuple

from PIL import Image

from revisit.core.trace import TraceStep
from revisit.evaluation.pictures.marks import Kind, kinds
from revisit.evaluation.pictures.templates import data_url, render
from revisit.evaluation.pictures.words import Token, Word

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as fractions of the image; outside 0 to 1 where padding was added."""

GREEDY, REVISIT = "Greedy decoding", "With ReVisiT"

_LONGEST_SIDE = 1024  # pixels of an image in a page

# Words that name nothing to be seen, and words by which captions speak of the image itself.
_QUIET = frozenset(
    (files("revisit.evaluation.pictures") / "quiet_words.txt").read_text("utf-8").split()
)


class Look(NamedTuple):
    """The vision token that a word came from."""

    vision_token: int
    patch: int | None  # its index in `Picture.patches`
    fit: float  # exp(-D), D in nats: 1 where the vision token predicts what the model does
    fits: Sequence[float]  # of every vision token; empty where they were not kept
    sentence: str  # all of it in words


class Shown(NamedTuple):
    """A word of a caption, and how it is shown."""

    before: str  # white space
    text: str
    kind: Kind | None  # of an object word, where the objects in the image are known
    instead: str  # the word of greedy decoding, where ReVisiT changed it
    last: bool  # of the words that name one object together, as "wine glass"
    look: Look | None  # of a word that names something, and fits one vision token best


@dataclass(frozen=True)
class Picture:
    """An image and its captions.

    Args:
        title: the image's file name or the like.
        images: the prompt's images in order, upright, RGB.
        captions: the words of each (`words.join`), by the name of the decoder.
        boxes: for each vision token of the prompt its image and the part of it that the token
            shows, None where it shows none; None altogether where that is not known.
        truth: names of the COCO objects in the image, where they are known.
        note: for the reader: why the boxes are not known, and the like.
    """

    title: str
    images: Sequence[Image.Image]
    captions: Mapping[str, Sequence[Word]]
    boxes: Sequence[tuple[int, Box | None]] | None = None
    truth: Collection[str] | None = None
    note: str = ""

    @cached_property
    def patches(self) -> list[tuple[int, Box]]:
        """The image and box of each patch that words came from, in the order of the words."""
        tokens = [_looking(word) for words in self.captions.values() for word in words]
        found = [self._patch(token.step) for token in tokens if token and token.step]
        return list(dict.fromkeys(each for each in found if each is not None))

    @cached_property
    def shown(self) -> dict[str, list[Shown]]:
        """The captions as a reader sees them."""
        return {name: self._shown(words) for name, words in self.captions.items()}

    def _shown(self, words: Sequence[Word]) -> list[Shown]:
        texts = [word.before + word.text for word in words]
        known = [None] * len(words) if self.truth is None else kinds(texts, self.truth)
        return [
            Shown(
                word.before,
                word.text,
                kind,
                replaced(word),
                kind != following,
                self._look(word),
            )
            for word, kind, following in zip(words, known, [*known, None][1:], strict=True)
        ]

    def _look(self, word: Word) -> Look | None:
        token = _looking(word)
        if token is None or token.step is None:
            return None
        step = token.step
        patch = self._patch(step)
        index = None if patch is None else self.patches.index(patch)
        fit = math.exp(-max(step.divergence, 0.0))
        sentence = (
            f"“{word.text}”, one of {step.candidates} plausible tokens, fits "
            f"{self._where(step)} best: {fit:.2f} of 1, by layer {step.layer}."
        )
        if word.instead:
            sentence += f" Greedy decoding would have said “{word.instead}”."
        return Look(step.vision_token, index, fit, token.fits, sentence)

    def _box(self, step: TraceStep) -> tuple[int, Box | None] | None:
        """The image and box of the vision token that was chosen, where boxes are known."""
        if self.boxes is None:
            return None
        if not 0 <= step.vision_token < len(self.boxes):
            raise ValueError(
                f"the trace chose vision token {step.vision_token}, but boxes are given for "
                f"{len(self.boxes)}"
            )
        return self.boxes[step.vision_token]

    def _patch(self, step: TraceStep) -> tuple[int, Box] | None:
        """The same, the part of the box that lies in the image."""
        image, box = self._box(step) or (0, None)
        if (inside := visible(box)) is None:
            return None
        if not 0 <= image < len(self.images):
            raise ValueError(f"a box lies in image {image + 1} of {len(self.images)} images")
        return image, inside

    def _where(self, step: TraceStep) -> str:
        known, token = self._box(step), f"vision token {step.vision_token + 1}"
        if known is None:
            return f"{token}, whose place in the image is not known,"
        image, box = known
        of_image = f" of image {image + 1}" if len(self.images) > 1 else ""
        if visible(box) is None:
            return f"{token}{of_image}, which shows padding,"
        if step.patch is None:
            return f"the patch{of_image}"
        _, row, column = step.patch
        return f"the patch in row {row + 1}, column {column + 1}{of_image}"

    @cached_property
    def summary(self) -> str:
        """A sentence on what ReVisiT changed; empty where there are not two captions."""
        if self.captions.keys() != {GREEDY, REVISIT}:
            return ""
        if self.truth is None:
            changed = sum(bool(word.instead) for word in self.shown[REVISIT])
            how_often = {0: "no word", 1: "one word"}.get(changed, f"{changed} words")
            return f"ReVisiT changed {how_often} of greedy decoding's."
        before, after = (_wrong(self.shown[name]) for name in (GREEDY, REVISIT))
        if not before and not after:
            return "Neither names an object that is not there."
        if not after:
            are = "is" if len(before) == 1 else "are"
            return (
                f"Greedy decoding names {' and '.join(before)}, which {are} not in the image. With "
                "ReVisiT every object that is named is there."
            )
        return (
            f"Not in the image: by greedy decoding {', '.join(before) or 'nothing'}; with ReVisiT "
            f"{', '.join(after)}."
        )

    def words_json(self) -> list[dict[str, Any]]:
        """The captions for `captions.js` while the words come, without their patches."""
        return [
            {"name": name, "words": [each._replace(look=None)._asdict() for each in words]}
            for name, words in self.shown.items()
        ]

    def as_json(self) -> dict[str, Any]:
        """The picture for `captions.js`: JSON values, images inside; `fits` in percent."""
        inside = [(image, visible(box)) for image, box in self.boxes or ()]
        return {
            "title": self.title,
            "images": [data_url(each, _LONGEST_SIDE, 90) for each in self.images],
            "boxes": [box and [image, *(round(edge, 5) for edge in box)] for image, box in inside],
            "captions": [
                {"name": name, "words": [_word_json(each) for each in words]}
                for name, words in self.shown.items()
            ],
            "summary": self.summary,
            "note": self.note,
        }


def page(pictures: Sequence[Picture], title: str = "What each word saw") -> str:
    """The pictures as one HTML file: point at a word to see how well each patch fits it."""
    return render("captions.html", title=title, pictures=[each.as_json() for each in pictures])


def replaced(word: Word) -> str:
    """The word of greedy decoding; empty where neither it nor the word names anything."""
    return word.instead if _names(word.text) or _names(word.instead) else ""


def visible(box: Box | None) -> Box | None:
    """The part of a box that lies in the image; None if none does."""
    if box is None:
        return None
    left, top, right, bottom = (min(max(edge, 0.0), 1.0) for edge in box)
    return (left, top, right, bottom) if left < right and top < bottom else None


def _looking(word: Word) -> Token | None:
    """The first token of a word that was chosen by its fit; None if the word names nothing.

    With a single candidate all vision tokens fit equally.
    """
    if not _names(word.text):
        return None
    chosen = (token for token in word.tokens if token.step and token.step.candidates > 1)
    return next(chosen, None)


def _names(text: str) -> bool:
    """Whether a word names something to be seen."""
    return text[:1].isalnum() and text.lower() not in _QUIET


def _word_json(word: Shown) -> dict[str, Any]:
    look = word.look and {
        **word.look._asdict(),
        "fit": round(word.look.fit, 3),
        "fits": [round(100 * each) for each in word.look.fits],
    }
    return {**word._asdict(), "look": look}


def _wrong(words: Sequence[Shown]) -> list[str]:
    """The objects that are not there, each once, in quotation marks."""
    found, name = [], ""
    for word in words:
        if word.kind == "wrong":
            name = f"{name} {word.text}".strip()
            if word.last:
                found.append(f"“{name}”")
                name = ""
    return list(dict.fromkeys(found))
