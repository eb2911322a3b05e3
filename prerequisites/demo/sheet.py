"""The demo's picture: scenes with two captions each, chosen by the rule of `examples.py`.

Words that name something are numbered, and the same number stands in the image on the patch of the
vision token that ReVisiT chose for the word.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jobs
from examples import choose
from revisit.core.trace import TraceStep
from revisit.evaluation.images import open_image
from revisit.evaluation.pictures.picture import GREEDY, REVISIT, Picture
from revisit.evaluation.pictures.runs import read_run
from revisit.evaluation.pictures.words import Token, Word, split

GRID = 8
"""Patches in a row of a picture, in both families; pictures are square: none is padded or cut."""
KINDS = {
    "helps": "where ReVisiT removes every hallucinated object, the first of its kind",
    "same": "where both name the same objects, the first of its kind",
    "fails": "where ReVisiT makes more errors, the first of its kind",
}
NOTE = (
    "Red: not in the image. Small and struck: what greedy decoding would have said. Numbers: the "
    "patch that the word came from."
)

_CELLS = [
    (0, (column / GRID, row / GRID, (column + 1) / GRID, (row + 1) / GRID))
    for row in range(GRID)
    for column in range(GRID)
]


def pictures(family: jobs.Family, kinds: Sequence[str], out: Path) -> list[Picture]:
    """The first scene of each kind, greedy decoding and ReVisiT at the published setting; ``out``
    has the family's results."""
    ways = (jobs.GREEDY, jobs.published_decoder(family))
    greedy, refined = (read_run(jobs.result_file(way, out), way.name) for way in ways)
    traces = {entry["image_id"]: entry for entry in jobs.read_lines(out / "trace.jsonl")}
    files = jobs.image_names()
    first = dict(reversed(choose(greedy, refined)))
    made = []
    for kind in kinds:
        if kind not in first:
            continue
        before, after = (run.sentences[first[kind]] for run in (greedy, refined))
        image = after["image_id"]
        if traces[image]["caption"] != after["caption"]:
            raise SystemExit(f"image {image}: the trace is of another caption; remove out/")
        captions = {
            GREEDY: split(before["caption"]),
            REVISIT: words(after["caption"], traces[image]["steps"]),
        }
        title = f"{family.name}: {KINDS[kind]} (scene {image})"
        shown = open_image(jobs.COCO / "val2014" / files[image]).image
        made.append(Picture(title, [shown], captions, _CELLS, after["gt_objects"]))
    return made


def words(caption: str, steps: list[dict[str, Any]]) -> list[Word]:
    """The words of a caption with the tokens that they begin with."""
    starts, cursor = {}, 0
    for step in steps:
        if step["text"]:
            start = caption.index(step["text"], cursor)
            cursor = start + len(step["text"])
            starts[start] = step
    found, at = [], 0
    for word in split(caption):
        at += len(word.before)
        tokens = (_token(starts[at]),) if at in starts else ()
        found.append(word._replace(tokens=tokens))
        at += len(word.text)
    return found


def _token(step: dict[str, Any]) -> Token:
    frame, row, column = step["patch"]
    seen = TraceStep(
        vision_token=row * GRID + column,
        layer=step["layer"],
        image=0,
        patch=(frame, row, column),
        candidates=step["candidates"],
        divergence=step["divergence"],
        plain_token=0,
        refined_token=int(step["changed"]),
        token=None,
    )
    return Token(step["text"], seen, step["plain"] if step["changed"] else None)
