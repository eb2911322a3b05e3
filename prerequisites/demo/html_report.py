"""The demo's results as a page: tables, the images that changed most, plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jobs import ROOT, Family, decoders, read_json, result_file
from revisit.evaluation.pictures.plots import Axes, Point
from revisit.evaluation.pictures.report import Group, Table, write_report
from revisit.evaluation.pictures.runs import read_run

GROUNDING = (
    "For each object word of ReVisiT's captions whose object is in the image: how often the patch "
    "of the vision token that was chosen shows that object, in a quarter of the patch or more. "
    "Chance is the share of all patches that show it, which a token drawn at random would reach. "
    "Of 200 scenes; grounding.py measures it."
)


def write_page(out: Mapping[Family, Path], path: Path) -> None:
    """Write the page of the results in the families' folders."""
    groups = [
        Group(
            family.name,
            [read_run(result_file(way, folder), way.name) for way in decoders(family)],
            [_search(read_json(family.setting))],
        )
        for family, folder in out.items()
    ]
    table = Table("Where the chosen vision token lies", GROUNDING, list(grounding()))
    write_report(groups, path, "The demo of ReVisiT", [table])


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
    """The lines of the table in docs/seeing.md, its head first."""
    page = (ROOT / "docs" / "seeing.md").read_text("utf-8")
    table = page.partition("<!-- grounding -->")[2].partition("<!-- /grounding -->")[0]
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and not set(line) <= set("|-: "):
            yield cells
