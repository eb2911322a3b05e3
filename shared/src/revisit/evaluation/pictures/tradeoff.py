"""The plot of quality against cost: a point for each decoder of a comparison."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks.benchmark import Columns
from revisit.evaluation.pictures.plots import check_matplotlib
from revisit.evaluation.results.tables import Row

_MARKERS = "osD^vP*X<>"


def write_tradeoff(rows: Sequence[Row], columns: Columns, path: Path) -> None:
    """Draw two metrics of each row over its seconds a token, those of the baseline being 1.

    A bar around a value is the 95% interval of the difference to the baseline, or the standard
    deviation of the difference over samples; the line is the baseline. Rows without a cost are left
    out.

    Args:
        path: ends in what Matplotlib writes: .png, .pdf, .svg.

    Raises:
        EvaluationError: Matplotlib is missing, no cost is known but the baseline's, or the file
            cannot be written.
    """
    check_matplotlib("--plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [row for row in rows if row.relative is not None]
    if len(drawn) < 2:
        reasons = dict.fromkeys(row.uncosted for row in rows if row.uncosted)
        raise EvaluationError(f"--plot: there are no two costs to draw: {'; '.join(reasons)}")
    figure = Figure(figsize=(9.0, 4.2 + 0.22 * len(drawn)), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, name in zip(figure.subplots(1, 2), columns.shown, strict=True):
        _draw(axis, drawn, columns.metrics.index(name))
        better = "lower" if name in columns.lower else "higher"
        axis.set(xlabel="seconds a token / baseline's", ylabel=f"{name} in % ({better} is better)")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", fontsize=8, frameon=False)
    try:
        figure.savefig(path, dpi=140)
    except (OSError, ValueError) as error:  # a ValueError names an ending that is not known
        raise EvaluationError(f"cannot write {path}: {error}") from error


def _draw(axis: Any, rows: Sequence[Row], metric: int) -> None:
    for number, row in enumerate(rows):
        value = 100 * row.values[:, metric].mean()
        colour = f"C{number % 10}"
        if row.gaps is None:
            axis.axhline(value, color=colour, linewidth=0.8, zorder=0)
        axis.errorbar(
            row.relative.mean() if row.relative is not None else np.nan,
            value,
            yerr=_bar(row, metric),
            fmt=_MARKERS[number % len(_MARKERS)],
            color=colour,
            capsize=3,
            label=row.name,
        )
    axis.grid(alpha=0.3)


def _bar(row: Row, metric: int) -> Any:
    """The lengths of the bar below and above the value, (2, 1) in percent."""
    if row.gaps is None:
        return None
    gaps = 100 * row.gaps[:, metric]
    if row.interval is None:
        return np.full((2, 1), gaps.std(ddof=1))
    low, high = 100 * row.interval[:, metric]
    bar = [[gaps[0] - low], [high - gaps[0]]]
    return np.maximum(bar, 0)  # an interval may lie beside its value
