"""What is shown of an image: its captions word by word, and the patch that each word came from."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any, NamedTuple

from PIL import Image

from revisit.evaluation.pictures.marks import Kind, kinds
from revisit.evaluation.pictures.templates import data_url, render
from revisit.evaluation.pictures.words import Token, Word

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as fractions of the image; outside 0 to 1 where padding was added."""

GREEDY, REVISIT = "Greedy decoding", "With ReVisiT"

_LONGEST_SIDE = 1024  # pixels of an image in a page

# Words that name nothing to be seen; so do those with which captions speak of the image itself.
_QUIET = frozenset(
    (files("revisit.evaluation.pictures") / "quiet_words.txt").read_text("utf-8").split()
)


class Look(NamedTuple):
    """Where in the image a word was seen."""

    vision_token: int
    patch: int | None  # its number among the patches of the captions, in the order of the words
    fit: float  # exp(-D): 1 where the vision token says what the model expects
    fits: Sequence[float]  # of every vision token; empty where that was not kept
    said: str  # all of it in a sentence


class Shown(NamedTuple):
    """A word of a caption, and what a reader sees of it."""

    before: str  # white space
    text: str
    kind: Kind | None  # of a word that names an object, where it is known what the image shows
    instead: str  # what greedy decoding would have gone on with, where that is a word
    last: bool  # of the words that name an object together, as "wine glass"
    look: Look | None  # of a word that names something, and fits one vision token best


@dataclass(frozen=True)
class Picture:
    """An image and its captions.

    Args:
        title: what it is called, the image's file name or the like.
        images: the prompt's images in order, upright, RGB.
        captions: the words of each (`words.join`), by what decoded it.
        boxes: for each vision token of the prompt its image and the part of it that it shows, None
            where it shows none; None altogether where that is not known.
        truth: names of the COCO objects in the image, where they are known.
        note: what the reader must know besides: why the boxes are not known, and the like.
    """

    title: str
    images: Sequence[Image.Image]
    captions: Mapping[str, Sequence[Word]]
    boxes: Sequence[tuple[int, Box | None]] | None = None
    truth: Collection[str] | None = None
    note: str = ""

    @cached_property
    def patches(self) -> list[tuple[int, Box]]:
        """The parts of images that words came from, in the order of the words, each once."""
        tokens = [_looked(word) for words in self.captions.values() for word in words]
        found = [patch(self, token) for token in tokens if token is not None]
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
        token = _looked(word)
        if token is None or token.step is None:
            return None
        there = patch(self, token)
        number = None if there is None else self.patches.index(there)
        said = describe(self, word, token)
        return Look(token.step.vision_token, number, fit(token), token.fits, said)

    @cached_property
    def summary(self) -> str:
        """A sentence on what ReVisiT changed; empty where there are not two captions."""
        if self.captions.keys() != {GREEDY, REVISIT}:
            return ""
        if self.truth is None:
            changed = sum(bool(word.instead) for word in self.shown[REVISIT])
            how_often = {0: "no word", 1: "one word"}.get(changed, f"{changed} words")
            return f"ReVisiT changed {how_often} of greedy decoding's."
        wrong = [_wrong(words) for words in (self.shown[GREEDY], self.shown[REVISIT])]
        gone = [word for word in wrong[0] if word not in wrong[1]]
        if gone and not wrong[1]:
            are = "is" if len(gone) == 1 else "are"
            return (
                f"Greedy decoding names {' and '.join(map(_quoted, gone))}, which {are} not in the "
                "image. With ReVisiT every object that is named is there."
            )
        if not wrong[0] and not wrong[1]:
            return "Neither names an object that is not there."
        left = ", ".join(map(_quoted, wrong[1])) or "nothing"
        return (
            f"Not in the image: by greedy decoding {', '.join(map(_quoted, wrong[0])) or 'nothing'}"
            f"; with ReVisiT {left}."
        )

    def words_json(self) -> list[dict[str, Any]]:
        """What `captions.js` shows of the captions while they come: where words were seen is left
        out."""
        return [
            {"name": name, "words": [each._replace(look=None)._asdict() for each in words]}
            for name, words in self.shown.items()
        ]

    def as_json(self) -> dict[str, Any]:
        """What `captions.js` shows: as JSON, images inside; fits in percent."""
        return {
            "title": self.title,
            "images": [data_url(each, _LONGEST_SIDE, 90) for each in self.images],
            "boxes": [
                [image, *(round(edge, 5) for edge in shown)] if (shown := visible(box)) else None
                for image, box in self.boxes or ()
            ],
            "captions": [
                {"name": name, "words": [_word(each) for each in words]}
                for name, words in self.shown.items()
            ],
            "summary": self.summary,
            "note": self.note,
        }


def replaced(word: Word) -> str:
    """What greedy decoding would have gone on with; empty where neither names anything."""
    return word.instead if _names(word.text) or _names(word.instead) else ""


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


def patch(picture: Picture, token: Token) -> tuple[int, Box] | None:
    """The same, the part that lies in the image."""
    image, box = place(picture, token) or (0, None)
    shown = visible(box)
    if shown is None:
        return None
    if not 0 <= image < len(picture.images):
        raise ValueError(f"a box lies in image {image + 1} of {len(picture.images)} images")
    return image, shown


def describe(picture: Picture, word: Word, token: Token) -> str:
    """A sentence on a word: its patch, how sure the choice was, and what greedy would have said."""
    assert token.step is not None
    parts = [
        f"“{word.text}”, one of {token.step.candidates} plausible tokens, fits "
        f"{_where(picture, token)} best: {fit(token):.2f} of 1, by layer {token.step.layer}."
    ]
    if word.instead:
        parts.append(f"Greedy decoding would have said “{word.instead}”.")
    return " ".join(parts)


def _looked(word: Word) -> Token | None:
    """The token of a word that shows where it was seen.

    None of a word that names nothing, and where all vision tokens fitted alike, since a single
    candidate was left.
    """
    if not _names(word.text):
        return None
    chosen = (token for token in word.tokens if token.step and token.step.candidates > 1)
    return next(chosen, None)


def _names(text: str) -> bool:
    """Whether a word names something to be seen."""
    return text[:1].isalnum() and text.lower() not in _QUIET


def _where(picture: Picture, token: Token) -> str:
    step, known = token.step, place(picture, token)
    assert step is not None
    if known is None:
        return f"vision token {step.vision_token + 1}, whose place in the image is not known,"
    image, box = known
    named = f" of image {image + 1}" if len(picture.images) > 1 else ""
    if visible(box) is None:
        return f"vision token {step.vision_token + 1}{named}, which shows padding,"
    row = "" if step.patch is None else f" in row {step.patch[1] + 1}, column {step.patch[2] + 1}"
    return f"the patch{row}{named}"


def _word(word: Shown) -> dict[str, Any]:
    look = word.look and {
        **word.look._asdict(),
        "fit": round(word.look.fit, 3),
        "fits": [round(100 * each) for each in word.look.fits],
    }
    return {**word._asdict(), "look": look}


def page(pictures: Sequence[Picture], title: str = "What each word saw") -> str:
    """The pictures as one HTML file: point at a word to see how well each patch fits it."""
    return render("captions.html", title=title, pictures=[each.as_json() for each in pictures])


def _wrong(words: Sequence[Shown]) -> list[str]:
    """The objects that are not there, each once."""
    found, name = [], ""
    for word in words:
        if word.kind == "wrong":
            name = f"{name} {word.text}".strip()
            if word.last:
                found.append(name)
                name = ""
    return list(dict.fromkeys(found))


def _quoted(text: str) -> str:
    return f"“{text}”"
