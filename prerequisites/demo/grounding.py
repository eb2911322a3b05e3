"""How often the vision token that ReVisiT chose lies on the object that its word names.

For each object word of ReVisiT's captions whose object is in the image: whether the chosen vision
token's patch shows the object, against chance, the part of the patches that show it. Layers "last"
and "all", the chosen alpha and the published one, scenes of ``val``. The table goes into
docs/seeing.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from jobs import (
    HERE,
    PUBLISHED_ALPHA,
    ROOT,
    Family,
    folders,
    read_json,
    read_lines,
    revisit_decoder,
    run_jobs,
    trace_job,
)
from scenes import THINGS, coverage, sample_scene
from sheet import GRID
from tables import markdown, put_between

LAYERS = ("last", "all")
FIRST = {thing.name.split()[0]: index for index, thing in enumerate(THINGS)}
"""The word that an object's name begins with, which is one token, and which object it is."""


def ways(family: Family) -> list[tuple[str, float]]:
    """The layers and alphas of the table's rows."""
    chosen = read_json(family.setting)["alpha"]
    return [(layers, alpha) for alpha in {chosen: 0, PUBLISHED_ALPHA: 0} for layers in LAYERS]


def answers_file(out: Path, layers: str, alpha: float) -> Path:
    """Where the captions and their traces are."""
    return out / f"grounding-{layers}-{alpha:g}.jsonl"


def hits(answers: list[dict[str, Any]]) -> np.ndarray:
    """(words, 2): whether the chosen patch shows the word's object, and the share of patches that
    do."""
    found = []
    for answer in answers:
        shown = coverage(sample_scene("val", answer["image_id"] - 1), GRID)
        for step in answer["steps"]:
            on_it = shown == FIRST.get(step["text"], -1)
            if on_it.any():
                found.append((on_it[tuple(step["patch"][1:])], on_it.mean()))
    return np.array(found, float)


def row(family: Family, out: Path, layers: str, alpha: float) -> list[str]:
    """A line of the table."""
    words = hits(read_lines(answers_file(out, layers, alpha)))
    on_it, chance = 100 * words.mean(0)
    name = revisit_decoder(layers, alpha).name
    return [family.name, name, str(len(words)), f"{on_it:.1f}%", f"{chance:.1f}%"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200, help="scenes to caption")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="where results are kept")
    args = parser.parse_args()
    found = folders(args.out)
    jobs = {
        family: [
            trace_job(family, revisit_decoder(*way), answers_file(folder, *way), args.images)
            for way in ways(family)
        ]
        for family, folder in found.items()
    }
    run_jobs(jobs, args.out)
    rows = [row(family, folder, *way) for family, folder in found.items() for way in ways(family)]
    header = ["model", "decoder", "object words", "on the object", "chance"]
    text = f"{markdown(header, rows)}\n\n{args.images} scenes of `val`; by `grounding.py`.\n"
    put_between(ROOT / "docs" / "seeing.md", "grounding", text)
    print(text)


if __name__ == "__main__":
    main()
