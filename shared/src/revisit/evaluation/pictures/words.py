"""The words of a caption, and the steps of the trace that made each."""

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from revisit.core.trace import TraceStep

# A word, with apostrophes and hyphens inside it; or a run of marks.
_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*|[^\w\s]+")

Decode = Callable[[Sequence[int]], str]
"""Token ids to text, special tokens left out."""


class Token(NamedTuple):
    """One generated token of a word."""

    text: str  # what it added to the caption, white space included
    step: TraceStep | None  # None where no vision token was chosen
    instead: str | None  # what greedy decoding would have gone on with, where that was changed
    fits: Sequence[float] = ()  # of every vision token, exp(-D), where that was kept


class Word(NamedTuple):
    """A word of a caption, or the marks between words."""

    text: str
    before: str  # the white space before it
    tokens: tuple[Token, ...]

    @property
    def instead(self) -> str:
        """What greedy decoding would have gone on with; empty where ReVisiT changed nothing."""
        parts = [token.instead.strip() for token in self.tokens if token.instead is not None]
        return " … ".join(parts)


def split(text: str) -> list[Word]:
    """The words of a caption of which no more is known than its text."""
    words, last = [], 0
    for match in _WORD.finditer(text):
        words.append(Word(match[0], text[last : match.start()], ()))
        last = match.end()
    return words


def join(
    tokens: Sequence[int],
    steps: Sequence[TraceStep | None],
    decode: Decode,
    fits: Mapping[int, Sequence[float]] | None = None,
) -> list[Word]:
    """The words of a caption in order.

    A word's tokens are those that gave one of its characters; a token that reaches into two words
    belongs to both, one that gives no character (a part of a letter, an end) to the word that it
    helps to spell, if any.

    Args:
        tokens: the generated ids.
        steps: of each token; as many.
        decode: the tokenizer's. What the first tokens decode to must be how all of them begin,
            but for letters that are not whole yet.
        fits: by the place of a token, how well each vision token fits it.

    Raises:
        ValueError: there are not as many steps as tokens.
    """
    if len(tokens) != len(steps):
        raise ValueError(f"{len(tokens)} tokens and {len(steps)} steps of a trace; each needs one")
    text = decode(tokens)
    ends = _ends(tokens, decode, text)
    starts = [0, *ends[:-1]]
    spans = list(zip(starts, ends, strict=True))
    made = [
        Token(
            text[start:end],
            step,
            _instead(tokens, place, step, decode),
            (fits or {}).get(place, ()),
        )
        for place, ((start, end), step) in enumerate(zip(spans, steps, strict=True))
    ]
    words, last = [], 0
    for match in _WORD.finditer(text):
        near = range(bisect_left(ends, match.start()), bisect_left(starts, match.end()))
        of_word = tuple(made[at] for at in near if _overlap(spans[at], match.span(), text))
        words.append(Word(match[0], text[last : match.start()], of_word))
        last = match.end()
    return words


def _ends(tokens: Sequence[int], decode: Decode, text: str) -> list[int]:
    """Up to where of the text each token has brought it."""
    ends: list[int] = []
    for place in range(len(tokens)):
        so_far = decode(tokens[: place + 1]).rstrip("�")
        while not text.startswith(so_far):  # white space that a later token takes back
            so_far = so_far[:-1]
        ends.append(max(len(so_far), ends[-1] if ends else 0))
    return ends


def _overlap(token: tuple[int, int], word: tuple[int, int], text: str) -> bool:
    start, end = token
    if start == end:  # a part of the letter that the next token completes
        return word[0] <= start < word[1] and start < len(text)
    return start < word[1] and word[0] < end


def _instead(
    tokens: Sequence[int], place: int, step: TraceStep | None, decode: Decode
) -> str | None:
    if step is None or not step.changed or step.plain_token == tokens[place]:
        return None
    before = decode(tokens[:place]).rstrip("�")
    return decode([*tokens[:place], step.plain_token]).removeprefix(before) or "(the end)"
