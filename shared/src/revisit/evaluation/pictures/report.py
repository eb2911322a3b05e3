"""A report of evaluations as one HTML file: results, the images that changed most, plots."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from revisit.evaluation.benchmarks.chair import METRICS, metrics, paired_bootstrap
from revisit.evaluation.files import write_whole
from revisit.evaluation.pictures.changes import changes
from revisit.evaluation.pictures.marks import MEANINGS
from revisit.evaluation.pictures.plots import Axes, Point, check_matplotlib, plot
from revisit.evaluation.pictures.runs import Run, check_same_images, read_run, times
from revisit.evaluation.pictures.templates import Cell, render
from revisit.evaluation.results.tables import comma_separated, latex

_BARS = "with the intervals of the differences to run 1"


class Table(NamedTuple):
    """Another table of a report; the cells are text."""

    title: str
    note: str
    rows: Sequence[Sequence[str]]  # the first is the header


class Group(NamedTuple):
    """Runs on the same images: the first is the baseline of the others."""

    title: str
    runs: Sequence[Run]
    plots: Sequence[tuple[Sequence[Point], Axes]] = ()
    """Shown beside the plots of the runs."""


class _Compared(NamedTuple):
    """A run of a group with its metrics, in percent."""

    number: int  # from 1
    run: Run
    values: Mapping[str, float]
    gaps: Mapping[str, Sequence[float]]
    """The difference to the baseline, and the ends of its interval; empty of the baseline."""


def compare_report(path: Path, results: Sequence[Path], names: Sequence[str]) -> None:
    """Write the report of files of `revisit score chair --save_path`, the baseline first.

    Raises:
        EvaluationError: a file is of another program, or of other images; matplotlib is missing; or
            the report cannot be written.
    """
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
    write_whole(path, report(groups, title, tables).encode())


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
    """The values of `report.html` for a group."""
    compared = [_compare(group.runs[0], run, number) for number, run in enumerate(group.runs, 1)]
    heads = ["run", "", *METRICS, "Twice"]
    rows = [_cells(each) for each in compared]
    plain = [heads, *([f"{cell.text} {cell.gap}".strip() for cell in row] for row in rows)]
    drawn = list(_plots(group, compared, key))
    return {
        "key": key,
        "title": group.title,
        "conditions": _conditions(group.runs[0]),
        "heads": heads,
        "rows": rows,
        "copies": {"LaTeX": latex(plain, "rl"), "CSV": comma_separated(plain)},
        "plots": [each for each in drawn if not isinstance(each, str)],
        "missing": [each for each in drawn if isinstance(each, str)],
        "changes": [
            changes(group.runs[0], run, number, f"{key}-r{number}")
            for number, run in enumerate(group.runs[1:], 2)
        ],
    }


def _compare(baseline: Run, run: Run, number: int) -> _Compared:
    values = {name: 100 * value for name, value in metrics(run.counts.sum(0)).items()}
    if number == 1:
        return _Compared(number, run, values, {})
    found = paired_bootstrap(baseline.counts, run.counts)
    ends = ("difference", "low", "high")
    gaps = {name: [100 * gap[end] for end in ends] for name, gap in found.items()}
    return _Compared(number, run, values, gaps)


def _conditions(baseline: Run) -> str:
    settings = baseline.record.get("settings", {})
    known = [f"{len(baseline.counts)} images"]
    if "question" in settings:
        known.append(f"asked: “{settings['question']}”")
    if "max_new_tokens" in settings:
        known.append(f"at most {settings['max_new_tokens']} tokens")
    return "; ".join(known)


def _cells(compared: _Compared) -> list[Cell]:
    number, run, values, gaps = compared
    cells = [Cell(str(number), number), Cell(run.name, tag="th")]
    for name in METRICS:
        gap = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*gaps[name]) if gaps else ""
        cells.append(Cell(f"{values[name]:.1f}", values[name], gap))
    twice = [len(set(each["node_words"])) < len(each["node_words"]) for each in run.sentences]
    share = 100 * sum(twice) / len(twice)
    return [*cells, Cell(f"{share:.1f}", share)]


def _plots(group: Group, compared: Sequence[_Compared], key: str) -> Iterator[dict[str, Any] | str]:
    """The plots of a group; in the place of one that cannot be drawn, why."""
    baseline = compared[0].values
    if alphas := list(_against_alpha(compared)):
        line = ("run 1", baseline["CHAIRs"])
        axes = Axes(f"CHAIRs against alpha, {_BARS}", "alpha", "CHAIRs, %", True, line)
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
        _point(each, baseline, "F1", "runs", time)
        for each, time in zip(compared, took.relative, strict=True)
    ]
    title = f"F1 against the time that the records tell, {_BARS}"
    axes = Axes(title, f"time of {took.unit}, run 1 = 1", "F1, %", joined=False)
    yield plot(points, axes, f"{key}-cost")


def _against_alpha(compared: Sequence[_Compared]) -> Iterator[Point]:
    """The runs of ReVisiT; a series for each choice of layers and divergence."""
    for each in compared:
        settings = each.run.record.get("settings", {})
        if settings.get("use_revisit"):
            divergence = settings.get("revisit_divergence", "ag")
            series = f"{settings['early_exit_layers']}, {divergence}"
            alpha = settings["relative_top"]
            yield _point(each, compared[0].values, "CHAIRs", series, alpha)


def _point(
    compared: _Compared, baseline: Mapping[str, float], metric: str, series: str, x: float
) -> Point:
    """The bar is the interval of the difference to the baseline, which itself has none."""
    low = high = value = compared.values[metric]
    if compared.gaps:
        _, *ends = compared.gaps[metric]
        # no share is beyond 0 or 100
        low, high = (min(max(baseline[metric] + end, 0.0), 100.0) for end in ends)
    return Point(str(compared.number), series, x, value, low, high)


def _table(table: Table) -> dict[str, Any]:
    heads, *rows = table.rows
    cells = [[Cell(row[0], tag="th"), *map(Cell, row[1:])] for row in rows]
    return {"title": table.title, "note": table.note, "heads": heads, "rows": cells}
