"""Tables of scores and comparisons: on a terminal, in Markdown, LaTeX and CSV."""

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rich.box
import rich.console
import rich.markup
import rich.table
from numpy.typing import NDArray

from revisit.evaluation.benchmarks.benchmark import Columns
from revisit.evaluation.results.bootstrap import paired_intervals
from revisit.evaluation.results.comparable import Group, check_comparable, group, pairs, seeds
from revisit.evaluation.results.costs import UnknownCost, largest, relative_cost
from revisit.evaluation.results.result import Result, read_result

Values = NDArray[np.float64]
Table = Sequence[Sequence[str]]
"""The cells of a table as text; the first row is the header."""

_LATEX = str.maketrans(
    {each: f"\\{each}" for each in "&%$#_{}"} | {"±": r"$\pm$", "~": r"\~{}", "^": r"\^{}"}
)


class Row(NamedTuple):
    """A decoder, on one sample or on several."""

    name: str
    values: Values
    """(samples, metrics), fractions of 1."""
    gaps: Values | None = None
    """(samples, metrics): the differences to the baseline; None of the baseline itself."""
    interval: Values | None = None
    """(2, metrics): of the differences, where there is one sample."""
    relative: Values | None = None
    """(samples,): seconds a token over the baseline's; None where `uncosted` says why."""
    peak: int | None = None
    """Bytes, where they were measured."""
    uncosted: str = ""


class Comparison(NamedTuple):
    """Results that are compared, the first of which is the baseline."""

    title: str
    results: list[Result]
    rows: list[Row]
    columns: Columns


def compare(paths: Sequence[Path]) -> Comparison:
    """Saved results, with one row for results that differ by their seed alone.

    Raises `EvaluationError` where a file is no result, or they may not be compared.
    """
    results = [read_result(path) for path in paths]
    groups = group(results)
    check_comparable(groups)
    columns = results[0].columns
    title = f"{len(results[0].things)} {columns.things}"
    if len(groups[0]) > 1:
        title += f" of each of the seeds {seeds(groups[0])}: mean ± standard deviation"
    return Comparison(title, results, [_row(groups[0], each) for each in groups], columns)


def _row(baseline: Group, other: Group) -> Row:
    both = pairs(baseline, other)
    measure = both[0][0].columns.measure
    before, after = (
        np.stack([measure(pair[side].counts.sum(0)) for pair in both]) for side in (0, 1)
    )
    row = Row(both[0][1].name, after)
    try:
        costs = [relative_cost(*pair) for pair in both]
    except UnknownCost as error:
        row = row._replace(uncosted=str(error))
    else:
        relative, peak = np.array([each.relative for each in costs]), [each.peak for each in costs]
        row = row._replace(relative=relative, peak=largest(peak))
    if baseline is other:
        return row
    interval = None
    if len(both) == 1:
        first, second = (result.counts for result in both[0])
        interval = paired_intervals(first, second, measure)[1:]
    return row._replace(gaps=after - before, interval=interval)


def header(columns: Columns) -> list[str]:
    """The header above `cells`."""
    gaps = (f"{name} - baseline" for name in columns.metrics)
    return ["", *columns.metrics, "s/token", "MiB", *gaps]


def cells(row: Row, columns: Columns) -> list[str]:
    """A row as text: percent, Len in words, intervals or standard deviations."""
    shown = [_mean_and_deviation(100 * column) for column in row.values.T]
    shown += ["-" if row.relative is None else _mean_and_deviation(row.relative, digits=2)]
    shown += ["-" if row.peak is None else f"{row.peak / 2**20:.0f}"]
    return [row.name, *shown, *_gaps(row, columns)]


def _gaps(row: Row, columns: Columns) -> list[str]:
    if row.gaps is None:
        return [""] * len(columns.metrics)
    if row.interval is None:
        return [_mean_and_deviation(100 * column, sign="+") for column in row.gaps.T]
    ends = 100 * np.stack([row.gaps[0], *row.interval])
    return ["{:+.1f} [{:+.1f}, {:+.1f}]".format(*column) for column in ends.T]


def _mean_and_deviation(samples: Values, sign: str = "", digits: int = 1) -> str:
    """A value, or the mean of several and their standard deviation."""
    mean = f"{samples.mean():{sign}.{digits}f}"
    return mean if len(samples) == 1 else f"{mean} ± {samples.std(ddof=1):.{digits}f}"


def grid(found: Sequence[Row], columns: Columns) -> list[list[str]]:
    """The rows as a table."""
    return [header(columns), *(cells(row, columns) for row in found)]


def notes(found: Sequence[Row]) -> str:
    """Which rows have no cost, and why; empty where all have one."""
    names: dict[str, list[str]] = {}
    for row in found:
        if row.uncosted:
            names.setdefault(row.uncosted, []).append(row.name)
    lines = [f"- {', '.join(each)}: {reason}" for reason, each in names.items()]
    return "\n".join(["Without a cost:", "", *lines]) if lines else ""


def show(title: str, table: Table, drawn: bool | None = None) -> None:
    """Print a table: drawn where `drawn`, by default on a terminal; else in Markdown."""
    if drawn is None:
        drawn = sys.stdout.isatty()
    if not drawn:
        print(f"{title}\n\n{markdown(table)}")
        return
    drawing = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, title_justify="left")
    for number, name in enumerate(table[0]):
        drawing.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in table[1:]:
        drawing.add_row(*map(rich.markup.escape, row))
    rich.console.Console().print(drawing)


def markdown(table: Table) -> str:
    """A table in Markdown, its columns lined up."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in [table[0], rule, *table[1:]]
    )


def latex(table: Table, alignment: str = "l") -> str:
    """A table in LaTeX, by the package booktabs.

    Args:
        alignment: of the first columns; the others are aligned to the right.
    """
    columns = alignment.ljust(len(table[0]), "r")
    head, *body = (" & ".join(cell.translate(_LATEX) for cell in row) + r" \\" for row in table)
    begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", end])


def comma_separated(table: Table) -> str:
    """A table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    return text.getvalue()


def as_csv(found: Sequence[Row], columns: Columns) -> str:
    """The rows as CSV, with a number in each cell: percent as in Markdown.

    `sd` is the standard deviation over samples, `low` and `high` are the ends of the interval; a
    cell is empty where there is no such number.
    """
    suffixes = ("", " sd", " - baseline", " - baseline sd", " low", " high")
    names = [f"{name}{suffix}" for name in columns.metrics for suffix in suffixes]
    head = ["", "samples", *names, "s/token", "s/token sd", "MiB"]
    return comma_separated([head, *map(_numbers, found)])


def _numbers(row: Row) -> list[str]:
    numbers = [row.name, str(len(row.values))]
    for column, values in enumerate(row.values.T):
        numbers += _mean_and_sd(100 * values)
        numbers += _mean_and_sd(None if row.gaps is None else 100 * row.gaps[:, column])
        if row.interval is None:
            numbers += ["", ""]
        else:
            numbers += [f"{100 * end:.4f}" for end in row.interval[:, column]]
    numbers += _mean_and_sd(row.relative)
    return [*numbers, "" if row.peak is None else f"{row.peak / 2**20:.1f}"]


def _mean_and_sd(samples: Values | None) -> list[str]:
    if samples is None:
        return ["", ""]
    sd = "" if len(samples) == 1 else f"{samples.std(ddof=1):.4f}"
    return [f"{samples.mean():.4f}", sd]


def score_rows(scores: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """The table of the metrics of one result, or of several by their names, in percent."""
    metrics = list(next(iter(scores.values())))
    rows = [[name, *(f"{100 * value:.1f}" for value in scores[name].values())] for name in scores]
    table = [["", *metrics], *rows]
    return list(map(list, zip(*table, strict=True))) if len(metrics) > 8 else table
