"""The demo's results as a page: tables, the images that changed most, plots."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from revisit.evaluation.benchmarks import chair
from revisit.evaluation.benchmarks.objects.coco import read_captions
from revisit.evaluation.benchmarks.objects.lemmas import LEMMATIZERS
from revisit.evaluation.benchmarks.objects.truth import ground_truth
from revisit.evaluation.pictures.plots import Axes, Point
from revisit.evaluation.pictures.report import Group, Table, write_report
from revisit.evaluation.pictures.runs import scored_run

HERE = Path(__file__).resolve().parent
GROUNDING = (
    "For each object word of ReVisiT's captions whose object is in the image: how often the patch "
    "of the vision token that was chosen shows that object, in a quarter of the patch or more. "
    "Chance is the part of all patches that show it, which a token drawn at random would reach. "
    "Of 200 scenes; grounding.py measures it."
)


class Results(NamedTuple):
    """What there is of a model family: its name, its setting's file, its decoders' captions."""

    name: str
    setting: Path
    captions: Sequence[tuple[str, Path]]
    """The decoder's name and its captions file, greedy first."""


def write_page(families: Sequence[Results], annotations: Path, path: Path) -> None:
    """Write the page; every word of the captions is read as a noun, as in the tables."""
    lemmatize = LEMMATIZERS["noun"]()
    objects = ground_truth(annotations, lemmatize)
    groups = [
        Group(
            family.name,
            [
                scored_run(
                    name, chair.score(read_captions(file), objects, lemmatize), _record(file)
                )
                for name, file in family.captions
            ],
            [_search(json.loads(family.setting.read_text("utf-8")))],
        )
        for family in families
    ]
    table = Table("Where the chosen vision token lies", GROUNDING, list(grounding()))
    write_report(groups, path, "The demo of ReVisiT", [table])


def _record(captions: Path) -> dict[str, Any]:
    record = captions.with_name(captions.name + ".run.json")
    return dict(json.loads(record.read_text("utf-8")))


def _search(setting: dict[str, Any]) -> tuple[list[Point], Axes]:
    """CHAIRs against alpha on the scenes that the setting was chosen on."""
    points = [
        Point("", each["layers"], each["alpha"], *[100 * each["CHAIRs"]] * 3)
        for each in setting["grid"]
    ]
    title = (
        f"CHAIRs against alpha by layers, on the {setting['images']} scenes of dev that the "
        "setting was chosen on"
    )
    greedy = ("greedy", 100 * setting["greedy"]["CHAIRs"])
    return points, Axes(title, "alpha", "CHAIRs, %", True, greedy)


def grounding() -> Iterator[list[str]]:
    """The lines of the table in this folder's README, its head first."""
    page = (HERE / "README.md").read_text("utf-8")
    table = page.partition("<!-- grounding -->")[2].partition("<!-- /grounding -->")[0]
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and not set(line) <= set("|-: "):
            yield cells
