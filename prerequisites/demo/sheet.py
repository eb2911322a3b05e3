"""The demo's picture: images with two captions each, hallucinated and repeated words marked.

Where ReVisiT changed what is named, an object or the background, the word has a number, and the
same number stands in the image on the vision token that gave the word.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captions import WORDS
from revisit.evaluation.images import open_image
from revisit.evaluation.pictures.picture import Box
from revisit.evaluation.pictures.sheet import Card, write_sheet

GRID = 8
"""Patches in a row of a picture, in both families; pictures are square: none is padded or cut."""
NAMING = {word.split()[0] for word in WORDS}
"""Words that name something, or begin to."""


@dataclass(frozen=True)
class Example:
    """An image, and titled captions of it as the scorer found them (`Score.sentences`).

    ``steps`` is the trace of the last caption: its tokens in order, as ``asking.py`` writes them.
    """

    image: Path
    captions: list[tuple[str, dict[str, Any]]]
    steps: list[dict[str, Any]]


def draw_sheet(examples: list[Example], path: Path) -> None:
    """Write the sheet of ``examples``, one below the other, as a PNG."""
    note = "The first images, by id, whose two captions name different objects."
    write_sheet([_card(each) for each in examples], path, note)


def _card(example: Example) -> Card:
    picture = open_image(example.image).image
    changed = changed_words(example.captions[-1][1]["caption"], example.steps)
    return Card(picture, example.captions, [(start, _box(patch)) for start, patch in changed])


def changed_words(caption: str, steps: list[dict[str, Any]]) -> list[tuple[int, Any]]:
    """Where in the caption each word that ReVisiT changed to name something begins, and the patch
    (frame, row, column) that it came from."""
    found, cursor = [], 0
    for step in steps:
        if not step["text"]:
            continue
        start = caption.index(step["text"], cursor)
        cursor = start + len(step["text"])
        if step["changed"] and step["text"] in NAMING:
            found.append((start, step["patch"]))
    return found


def _box(patch: tuple[int, int, int]) -> Box:
    _, row, column = patch
    return (column / GRID, row / GRID, (column + 1) / GRID, (row + 1) / GRID)
