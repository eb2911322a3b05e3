"""Where in a caption its object words stand, and which of them are wrong or were said before."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from revisit.evaluation.benchmarks.chair import score
from revisit.evaluation.benchmarks.objects.lemmas import LEMMATIZERS, singular
from revisit.evaluation.benchmarks.objects.lexicon import DOUBLE_WORDS

Kind = Literal["right", "wrong", "again"]
"""Of an object word: in the image, not in the image, or in the image and named before."""

MEANINGS: Mapping[Kind, str] = {
    "right": "in the image",
    "wrong": "not in the image",
    "again": "said before",
}

_TOKEN = re.compile(r"\w+(?:-\w+)*")


class Mark(NamedTuple):
    """The characters `start` to `end` of a caption."""

    start: int
    end: int
    kind: Kind


class Marked(NamedTuple):
    """The object words of a caption."""

    marks: list[Mark]
    """Those that were found in its text, in order."""
    unplaced: list[tuple[str, Kind]]
    """Those that the scorer's lemmatizer read out of words that do not spell them."""


def kinds(words: Sequence[str], truth: Collection[str]) -> list[Kind | None]:
    """Of each word of a caption, white space before it included, what it is; None if no object's.

    Args:
        truth: names of the COCO objects in the image.
    """
    scored = score({0: "".join(words)}, {0: truth}, LEMMATIZERS["noun"]())
    marks, found, end = mark(scored.sentences[0]).marks, [], 0
    for word in words:
        start, end = end, end + len(word)
        of_word = (each.kind for each in marks if start < each.end and each.start < end)
        found.append(next(of_word, None))
    return found


def mark(sentence: Mapping[str, Any]) -> Marked:
    """Mark a caption as it stands in `chair.Score.sentences`."""
    text = sentence["caption"]
    tokens = list(_TOKEN.finditer(text))
    lemmas = [singular(token[0].lower()) for token in tokens]
    wrong = {name for _, name in sentence["hallucinated"]}
    found = Marked([], [])
    said: set[str] = set()
    cursor = 0
    for word, name in zip(sentence["words"], sentence["node_words"], strict=True):
        kind: Kind = "wrong" if name in wrong else "again" if name in said else "right"
        said.add(name)
        place = _find(word, lemmas, cursor)
        if place is None:
            found.unplaced.append((word, kind))
            continue
        first, cursor = place
        found.marks.append(Mark(tokens[first].start(), tokens[cursor - 1].end(), kind))
    return found


def _find(word: str, lemmas: Sequence[str], cursor: int) -> tuple[int, int] | None:
    """The first and past the last token that are this object word, from `cursor` on."""
    for at in range(cursor, len(lemmas)):
        if DOUBLE_WORDS.get(" ".join(lemmas[at : at + 2])) == word:
            return at, at + 2
        if lemmas[at] == word:
            return at, at + 1
    for at in range(cursor, len(lemmas)):  # "skiing", which a tagger reads as the verb "ski"
        if lemmas[at].startswith(word):
            return at, at + 1
    return None
