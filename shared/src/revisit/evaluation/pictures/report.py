"""A report of evaluations as one HTML file: results, the images that changed most, plots."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks.chair import METRICS, metrics, paired_bootstrap
from revisit.evaluation.pictures.changes import changes
from revisit.evaluation.pictures.marks import MEANINGS
from revisit.evaluation.pictures.plots import Axes, Point, check_matplotlib, plot
from revisit.evaluation.pictures.runs import Run, check_same_images, read_run, times
from revisit.evaluation.pictures.templates import Cell, render, write_text
from revisit.evaluation.results.tables import comma_separated, latex

_BARS = "with the intervals of the differences to run 1"

Gaps = Mapping[str, Mapping[str, float]]
"""The intervals of the differences between a run and its baseline (`chair.paired_bootstrap`)."""


class Table(NamedTuple):
    """A table of a report beside its own; the cells are text."""

    title: str
    note: str
    rows: Sequence[Sequence[str]]  # the first is the head


class Group(NamedTuple):
    """Runs on the same images: the first is the baseline that the others are compared with."""

    title: str
    runs: Sequence[Run]
    plots: Sequence[tuple[Sequence[Point], Axes]] = ()
    """Others than those of the runs."""


def compare_report(path: Path, results: Sequence[Path], names: Sequence[str]) -> None:
    """Write the report of files of `revisit score chair --save_path`, the baseline first.

    Raises:
        EvaluationError: a file that `revisit score chair` did not write, captions of other images,
            no matplotlib, or `path` is no .html, is one of the results, or cannot be written.
    """
    if path.suffix.lower() != ".html":
        raise EvaluationError(f"--report {path}: its name must end in .html")
    if path.resolve() in [each.resolve() for each in results]:
        raise EvaluationError(f"--report {path} would overwrite a result")
    runs = [read_run(file, name) for file, name in zip(results, names, strict=True)]
    check_same_images(runs)
    write_report([Group("Results", runs)], path)


def write_report(
    groups: Sequence[Group],
    path: Path,
    title: str = "What decoding changes",
    tables: Sequence[Table] = (),
) -> None:
    """Write the page; raises `EvaluationError` where that cannot be done."""
    write_text(path, report(groups, title, tables))


def report(
    groups: Sequence[Group], title: str = "What decoding changes", tables: Sequence[Table] = ()
) -> str:
    """The page, which needs nothing else.

    Args:
        groups: each of at least one run; the runs of a group on the same images.
        tables: stand at the end.

    Raises:
        EvaluationError: matplotlib, which draws the plots, is not installed.
    """
    check_matplotlib("a report of evaluations")
    return render(
        "report.html",
        title=title,
        meanings=MEANINGS,
        groups=[_group(each, f"g{number}") for number, each in enumerate(groups)],
        tables=[_table(each) for each in tables],
    )


def _group(group: Group, key: str) -> dict[str, Any]:
    baseline, *others = group.runs
    gaps = [paired_bootstrap(baseline.counts, each.counts) for each in others]
    heads = ["run", "", *METRICS, "Twice"]
    rows = [list(_cells(run, number, gaps)) for number, run in enumerate(group.runs)]
    plain = [heads, *([f"{cell.text} {cell.gap}".strip() for cell in row] for row in rows)]
    drawn = list(_plots(group, gaps, key))
    return {
        "key": key,
        "title": group.title,
        "conditions": _conditions(group.runs),
        "heads": heads,
        "rows": [{"cells": row} for row in rows],
        "copies": {"LaTeX": latex(plain, "rl"), "CSV": comma_separated(plain)},
        "plots": [each for each in drawn if not isinstance(each, str)],
        "missing": [each for each in drawn if isinstance(each, str)],
        "changes": [
            changes(baseline, each, number, f"{key}-r{number}")
            for number, each in enumerate(others, 2)
        ],
    }


def _conditions(runs: Sequence[Run]) -> str:
    settings = runs[0].record.get("settings", {})
    known = [f"{len(runs[0].counts)} images"]
    if "question" in settings:
        known.append(f"asked: “{settings['question']}”")
    if "max_new_tokens" in settings:
        known.append(f"at most {settings['max_new_tokens']} tokens")
    return "; ".join(known)


def _cells(run: Run, number: int, gaps: Sequence[Gaps]) -> Iterator[Cell]:
    yield Cell(str(number + 1), number)
    yield Cell(run.name, tag="th")
    values = metrics(run.counts.sum(0))
    for name in METRICS:
        gap = _gap(gaps[number - 1][name]) if number else ""
        yield Cell(f"{100 * values[name]:.1f}", values[name], gap)
    twice = [len(set(each["node_words"])) < len(each["node_words"]) for each in run.sentences]
    share = sum(twice) / len(twice)
    yield Cell(f"{100 * share:.1f}", share)


def _gap(gap: Mapping[str, float]) -> str:
    difference, low, high = (100 * gap[name] for name in ("difference", "low", "high"))
    return f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]"


def _plots(group: Group, gaps: Sequence[Gaps], key: str) -> Iterator[dict[str, Any] | str]:
    """The plots of a group; in the place of one that cannot be drawn, why."""
    baseline = ("run 1", 100 * metrics(group.runs[0].counts.sum(0))["CHAIRs"])
    if alphas := _against_alpha(group.runs, gaps):
        axes = Axes(f"CHAIRs against alpha, {_BARS}", "alpha", "CHAIRs, %", True, baseline)
        yield plot(alphas, axes, f"{key}-alpha")
    else:
        yield "No run is of ReVisiT: there is no alpha to draw CHAIR against."
    for number, each in enumerate(group.plots):
        yield plot(*each, f"{key}-more{number}")
    took = times(group.runs)
    if isinstance(took, str):
        yield f"Quality against cost is not drawn: {took}."
        return
    points = [
        _point(group.runs, gaps, number, "F1", "runs", time)
        for number, time in enumerate(took.relative)
    ]
    title = f"F1 against the time that the records tell, {_BARS}"
    axes = Axes(title, f"time of {took.of}, run 1 = 1", "F1, %", joined=False)
    yield plot(points, axes, f"{key}-cost")


def _against_alpha(runs: Sequence[Run], gaps: Sequence[Gaps]) -> list[Point]:
    """Of the runs that are ReVisiT's; a series for each choice of layers and divergence."""
    points = []
    for number, run in enumerate(runs):
        settings = run.record.get("settings", {})
        if not settings.get("use_revisit"):
            continue
        named = f"{settings['early_exit_layers']}, {settings.get('revisit_divergence', 'ag')}"
        points.append(_point(runs, gaps, number, "CHAIRs", named, settings["relative_top"]))
    return points


def _point(
    runs: Sequence[Run], gaps: Sequence[Gaps], number: int, metric: str, series: str, x: float
) -> Point:
    """The bar is the interval of the difference to the baseline, which itself has none."""
    value = 100 * metrics(runs[number].counts.sum(0))[metric]
    if not number:
        return Point("1", series, x, value, value, value)
    base = 100 * metrics(runs[0].counts.sum(0))[metric]
    ends = (base + 100 * gaps[number - 1][metric][end] for end in ("low", "high"))
    low, high = (min(max(end, 0.0), 100.0) for end in ends)  # no share is beyond
    return Point(str(number + 1), series, x, value, low, high)


def _table(table: Table) -> dict[str, Any]:
    heads, *rows = table.rows
    cells = [[Cell(row[0], tag="th"), *map(Cell, row[1:])] for row in rows]
    rest = {"heads": heads, "rows": [{"cells": row} for row in cells]}
    return {"title": table.title, "note": table.note, **rest}
