"""The tables of scores and comparisons: on a terminal, in Markdown, as comma-separated values."""

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
from revisit.evaluation.results.costs import Cost, apart, cost
from revisit.evaluation.results.result import Result, read_result

Values = NDArray[np.float64]


class Row(NamedTuple):
    """A decoder, on one sample or on several."""

    name: str
    values: Values
    """(samples, metrics), fractions of 1."""
    gaps: Values | None = None
    """(samples, metrics): minus those of the baseline, whose own are None."""
    interval: Values | None = None
    """(2, metrics): of the gaps of one sample."""
    relative: Values | None = None
    """(samples,): seconds a token over the baseline's, where both may be held together."""
    peak: int | None = None
    """Bytes, where they may be."""
    uncosted: str = ""
    """Why seconds and bytes are not told."""


class Comparison(NamedTuple):
    """Results that are compared, the first of which is the baseline."""

    title: str
    results: list[Result]
    rows: list[Row]
    columns: Columns


def compare(paths: Sequence[Path]) -> Comparison:
    """Saved results, those that differ by their seed alone in one row.

    Raises `EvaluationError` where a file is no result, or they may not be compared.
    """
    results = [read_result(path) for path in paths]
    groups = group(results)
    check_comparable(groups)
    columns = results[0].columns
    title = f"{len(results[0].things)} {columns.things}"
    if len(groups[0]) > 1:
        title += f" of each of the seeds {seeds(groups[0])}: mean ± standard deviation"
    return Comparison(title, results, rows(groups), columns)


def rows(groups: Sequence[Group], resamples: int = 10_000) -> list[Row]:
    """A row for each group, the first of which is the baseline.

    Raises `EvaluationError` where groups are not of the same samples.
    """
    return [_row(groups[0], each, resamples) for each in groups]


def _row(baseline: Group, other: Group, resamples: int) -> Row:
    both = pairs(baseline, other)
    measure = both[0][0].columns.measure
    values = np.stack([measure(result.counts.sum(0)) for _, result in both])
    row = Row(both[0][1].name, values)
    costs = [tuple(cost(each.settings, each.runs) for each in pair) for pair in both]
    row = _costed(row, costs)
    if baseline is other:
        return row
    before = np.stack([measure(result.counts.sum(0)) for result, _ in both])
    interval = None
    if len(both) == 1:
        (first, second) = (result.counts for result in both[0])
        interval = paired_intervals(first, second, measure, resamples)[1:]
    return row._replace(gaps=values - before, interval=interval)


def _costed(row: Row, costs: Sequence[tuple[Cost | str, ...]]) -> Row:
    ratios, peaks = [], []
    for baseline, mine in costs:
        if isinstance(mine, str):
            return row._replace(uncosted=mine)
        if isinstance(baseline, str):
            return row._replace(uncosted=f"of the baseline, {baseline}")
        if why := apart(baseline, mine):
            return row._replace(uncosted=why)
        ratios.append(mine.seconds / baseline.seconds)
        peaks.append(mine.peak)
    known = [peak for peak in peaks if peak is not None]
    peak = max(known) if len(known) == len(peaks) else None
    return row._replace(relative=np.array(ratios), peak=peak)


def header(columns: Columns) -> list[str]:
    """The columns of the Markdown table."""
    gaps = (f"{name} - baseline" for name in columns.metrics)
    return ["", *columns.metrics, "s/token", "MiB", *gaps]


def cells(row: Row, columns: Columns) -> list[str]:
    """A row below `header`: percent, Len in words, intervals or standard deviations."""
    shown = [_spread(100 * column) for column in row.values.T]
    shown += ["-" if row.relative is None else _spread(row.relative, digits=2)]
    shown += ["-" if row.peak is None else f"{row.peak / 2**20:.0f}"]
    return [row.name, *shown, *_gaps(row, columns)]


def _gaps(row: Row, columns: Columns) -> list[str]:
    if row.gaps is None:
        return [""] * len(columns.metrics)
    if row.interval is None:
        return [_spread(100 * column, sign="+") for column in row.gaps.T]
    ends = zip(row.gaps[0], *row.interval, strict=True)
    return ["{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * each for each in some)) for some in ends]


def _spread(samples: Values, sign: str = "", digits: int = 1) -> str:
    """A value, or the mean of several and their standard deviation."""
    mean = f"{samples.mean():{sign}.{digits}f}"
    return mean if len(samples) == 1 else f"{mean} ± {samples.std(ddof=1):.{digits}f}"


def grid(found: Sequence[Row], columns: Columns) -> list[list[str]]:
    """The table as text, its header first."""
    return [header(columns), *(cells(row, columns) for row in found)]


def notes(found: Sequence[Row]) -> str:
    """Which costs the table lacks, and why; empty where none."""
    reasons = dict.fromkeys(row.uncosted for row in found if row.uncosted)
    lines = [
        f"- {', '.join(row.name for row in found if row.uncosted == reason)}: {reason}"
        for reason in reasons
    ]
    return "\n".join(["Without a cost:", "", *lines]) if lines else ""


def show(title: str, table: Sequence[Sequence[str]], drawn: bool | None = None) -> None:
    """Print a table whose first row is the header: drawn on a terminal, else in Markdown."""
    if sys.stdout.isatty() if drawn is None else drawn:
        drawing = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, title_justify="left")
        for number, name in enumerate(table[0]):
            drawing.add_column(name, justify="right" if number else "left", overflow="fold")
        for row in table[1:]:
            drawing.add_row(*map(rich.markup.escape, row))
        rich.console.Console().print(drawing)
    else:
        print(f"{title}\n\n{markdown(table)}")


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its columns lined up."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in [table[0], rule, *table[1:]]
    )


def as_csv(found: Sequence[Row], columns: Columns) -> str:
    """The table as comma-separated values: a number in each cell, percent as in Markdown.

    `sd` is the standard deviation over samples, `low` and `high` are the ends of the interval; a
    cell is empty where there is no such number.
    """
    about = ("", " sd", " - baseline", " - baseline sd", " low", " high")
    names = [f"{name}{what}" for name in columns.metrics for what in about]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["", "samples", *names, "s/token", "s/token sd", "MiB"])
    for row in found:
        writer.writerow([row.name, len(row.values), *_numbers(row), *_cost_numbers(row)])
    return text.getvalue()


def _numbers(row: Row) -> list[str]:
    numbers = []
    for column, values in enumerate(100 * row.values.T):
        numbers += _mean_and_sd(values)
        numbers += ["", ""] if row.gaps is None else _mean_and_sd(100 * row.gaps[:, column])
        if row.interval is None:
            numbers += ["", ""]
        else:
            numbers += [f"{end:.4f}" for end in 100 * row.interval[:, column]]
    return numbers


def _cost_numbers(row: Row) -> list[str]:
    relative = ["", ""] if row.relative is None else _mean_and_sd(row.relative)
    return [*relative, "" if row.peak is None else f"{row.peak / 2**20:.1f}"]


def _mean_and_sd(samples: Values) -> list[str]:
    sd = "" if len(samples) == 1 else f"{samples.std(ddof=1):.4f}"
    return [f"{samples.mean():.4f}", sd]


def score_rows(scores: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """The table of the metrics of one result, or of several by their names, in percent."""
    names = list(next(iter(scores.values())))
    if len(names) > 8:  # from above to below
        rows = [[name, *(_percent(of[name]) for of in scores.values())] for name in names]
        return [["", *scores], *rows]
    return [["", *names], *([label, *map(_percent, of.values())] for label, of in scores.items())]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
