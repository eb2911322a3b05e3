"""The object words in the text of a caption, and which of them are wrong or repeated."""

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
    """Of the words that were found in the text, in order."""
    unplaced: list[tuple[str, Kind]]
    """The words that are not in the text: the scorer's lemmatizer read them out of others."""


def kinds(words: Sequence[str], truth: Collection[str]) -> list[Kind | None]:
    """The kind of each word of a caption; None of a word that is no object word.

    Args:
        words: each with the white space before it.
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
    """Mark a caption of `chair.Score.sentences`."""
    text = sentence["caption"]
    tokens = list(_TOKEN.finditer(text))
    lemmas = [singular(token[0].lower()) for token in tokens]
    wrong = {name for _, name in sentence["hallucinated"]}
    found = Marked([], [])
    named: set[str] = set()
    cursor = 0
    for word, name in zip(sentence["words"], sentence["node_words"], strict=True):
        kind: Kind = "wrong" if name in wrong else "again" if name in named else "right"
        named.add(name)
        first, end = _find(word, lemmas, cursor)
        if first == end:
            found.unplaced.append((word, kind))
            continue
        found.marks.append(Mark(tokens[first].start(), tokens[end - 1].end(), kind))
        cursor = end
    return found


def _find(word: str, lemmas: Sequence[str], cursor: int) -> tuple[int, int]:
    """The slice of the lemmas that is this object word, from `cursor` on; empty where none is."""
    for at in range(cursor, len(lemmas)):
        if DOUBLE_WORDS.get(" ".join(lemmas[at : at + 2])) == word:
            return at, at + 2
        if lemmas[at] == word:
            return at, at + 1
    for at in range(cursor, len(lemmas)):  # "skiing", which a tagger reads as the verb "ski"
        if lemmas[at].startswith(word):
            return at, at + 1
    return cursor, cursor
