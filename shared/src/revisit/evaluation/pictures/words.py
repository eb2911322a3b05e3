"""The words of a caption, and the step of the trace that chose each of their tokens."""

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
    instead: str | None  # the text of greedy decoding's token, where ReVisiT changed it
    fits: Sequence[float] = ()  # of every vision token, exp(-D), where that was kept


class Word(NamedTuple):
    """A word of a caption, or the marks between words."""

    text: str
    before: str  # the white space before it
    tokens: tuple[Token, ...]

    @property
    def instead(self) -> str:
        """The text of greedy decoding; empty where ReVisiT changed nothing."""
        parts = [token.instead.strip() for token in self.tokens if token.instead is not None]
        return " … ".join(parts)


def split(text: str) -> list[Word]:
    """The words of a caption whose tokens are not known."""
    words, end = [], 0
    for match in _WORD.finditer(text):
        words.append(Word(match[0], text[end : match.start()], ()))
        end = match.end()
    return words


def join(
    tokens: Sequence[int],
    steps: Sequence[TraceStep | None],
    decode: Decode,
    fits: Mapping[int, Sequence[float]] | None = None,
) -> list[Word]:
    """The words of a caption in order, with their tokens.

    A word has the tokens that gave one of its characters. A token that reaches into two words
    belongs to both; one that gives no character (a part of a letter, an end) to the word that it
    helps to spell, if any.

    Args:
        tokens: the generated ids.
        steps: of each token; as many.
        decode: the tokenizer's. The text of the first tokens must begin the text of all of them,
            but for letters that are not whole yet.
        fits: by the position of a token, how well each vision token fits it.

    Raises:
        ValueError: there are not as many steps as tokens.
    """
    if len(tokens) != len(steps):
        raise ValueError(f"{len(tokens)} tokens and {len(steps)} steps of a trace; each needs one")
    text = decode(tokens)
    ends = _ends(tokens, decode, text)
    starts = [0, *ends[:-1]]
    made = [
        Token(
            text[starts[position] : ends[position]],
            step,
            _instead(tokens, position, step, decode),
            (fits or {}).get(position, ()),
        )
        for position, step in enumerate(steps)
    ]
    words, end = [], 0
    for word in split(text):
        start = end + len(word.before)
        end = start + len(word.text)
        near = range(bisect_left(ends, start), bisect_left(starts, end))
        of_word = [
            made[position]
            for position in near
            if _overlap((starts[position], ends[position]), (start, end), text)
        ]
        words.append(word._replace(tokens=tuple(of_word)))
    return words


def _ends(tokens: Sequence[int], decode: Decode, text: str) -> list[int]:
    """The length of the text up to and with each token."""
    ends: list[int] = []
    for count in range(1, len(tokens) + 1):
        so_far = decode(tokens[:count]).rstrip("�")
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
    tokens: Sequence[int], position: int, step: TraceStep | None, decode: Decode
) -> str | None:
    if step is None or not step.changed or step.plain_token == tokens[position]:
        return None
    before = decode(tokens[:position]).rstrip("�")
    return decode([*tokens[:position], step.plain_token]).removeprefix(before) or "(the end)"
