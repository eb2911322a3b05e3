"""Plots as SVG inside a page, in the page's colours by day and by night."""

import io
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

from markupsafe import Markup

from revisit.evaluation import EvaluationError
from revisit.evaluation.pictures.templates import LIGHT, Cell

_SIZE = (5.4, 3.6)  # inches of 72 pixels
_SERIES = (("first", "o"), ("second", "s"), ("third", "^"), ("fourth", "D"))
_LINES = ("-", "--", ":", "-.")
_COLOURS = ("ink", "quiet", "line", "card", *(colour for colour, _ in _SERIES))
_FONT = 11


class Point(NamedTuple):
    """A point of a plot."""

    label: str  # short; drawn beside it
    series: str  # points of a series are joined in the order of x
    x: float
    y: float
    low: float  # of the bar through it; y where it has none
    high: float


class Axes(NamedTuple):
    """The axes of a plot."""

    title: str
    x: str
    y: str
    logarithmic: bool = False  # in x
    line: tuple[str, float] | None = None  # a height to compare with, and its name
    joined: bool = True


def check_matplotlib(what: str) -> None:
    """Raises `EvaluationError`, which names `what`, where matplotlib is missing."""
    if find_spec("matplotlib") is None:
        raise EvaluationError(f'{what} needs matplotlib: pip install "revisit-decoding[pictures]"')


def plot(points: Sequence[Point], axes: Axes, key: str) -> dict[str, Any]:
    """The values of `report.html` for a plot: an `svg` element, and its numbers as a table.

    Args:
        points: at least one.
        key: begins the ids of its elements; each plot of a page has its own.
    """
    check_matplotlib("a plot")
    heads = ["series", axes.x, axes.y]
    rows = []
    for each in points:
        bar = "" if each.low == each.high else f" [{each.low:.1f}, {each.high:.1f}]"
        y = Cell(f"{each.y:.1f}{bar}")
        rows.append([Cell(each.series, tag="th"), Cell(f"{each.x:g}"), y])
    if any(each.label for each in points):
        heads = ["point", *heads]
        rows = [[Cell(each.label), *row] for each, row in zip(points, rows, strict=True)]
    line = f" The dashed line: {axes.line[0]}, {axes.line[1]:.1f}." if axes.line else ""
    return {
        "key": key,
        "title": axes.title,
        "caption": f"{axes.title}.{line}",
        "svg": Markup(_inline(_draw(points, axes), key)),  # matplotlib escapes what is text
        "heads": heads,
        "rows": rows,
    }


def _draw(points: Sequence[Point], axes: Axes) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "", "font.size": _FONT}):
        figure = Figure(figsize=_SIZE, layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        axis = figure.subplots()
        _frame(axis, axes)
        names = list(dict.fromkeys(each.series for each in points))
        for number, name in enumerate(names):
            below = len(names) - 1 - number  # the series that are drawn over this one
            _series(axis, [each for each in points if each.series == name], number, below, axes)
        _scale(axis, points, axes)
        _label(axis, points)
        if axes.line:
            axis.axhline(axes.line[1], color=LIGHT["quiet"], linestyle="--", linewidth=1.2)
        if len(names) > 1:
            figure.legend(
                loc="outside upper center", ncols=2, frameon=False, labelcolor=LIGHT["ink"]
            )
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        return file.getvalue()


def _frame(axis: Any, axes: Axes) -> None:
    axis.set_facecolor("none")
    axis.set_xlabel(axes.x, color=LIGHT["ink"])
    axis.set_ylabel(axes.y, color=LIGHT["ink"])
    axis.tick_params(which="both", colors=LIGHT["quiet"], labelcolor=LIGHT["ink"])
    axis.grid(color=LIGHT["line"], linewidth=0.8)
    axis.set_axisbelow(True)
    axis.margins(0.12)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LIGHT["quiet"])


def _scale(axis: Any, points: Sequence[Point], axes: Axes) -> None:
    """A logarithmic scale of x, with a tick at each point."""
    if not axes.logarithmic:
        return
    ticks = sorted({each.x for each in points})
    positive = [x for x in ticks if x > 0]
    if len(positive) == len(ticks):
        axis.set_xscale("log")
    else:  # 0 is left of all others
        axis.set_xscale("symlog", linthresh=min(positive, default=1.0))
    if len(ticks) == 1:  # the default limits would have no width
        low, high = (positive[0] / 10, positive[0] * 10) if positive else (-1.0, 10.0)
        axis.set_xlim(low, high)
    axis.set_xticks(ticks)
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.minorticks_off()


def _series(axis: Any, points: Sequence[Point], number: int, below: int, axes: Axes) -> None:
    """Wider below others, so that series that coincide are seen one around the other."""
    again, style = divmod(number, len(_SERIES))
    colour, marker = _SERIES[style]
    ordered = sorted(points, key=lambda each: each.x)
    axis.errorbar(
        [each.x for each in ordered],
        [each.y for each in ordered],
        [
            [max(each.y - each.low, 0.0) for each in ordered],
            [max(each.high - each.y, 0.0) for each in ordered],
        ],
        color=LIGHT[colour],
        marker=marker,
        markersize=7 + 4 * below,
        markerfacecolor=LIGHT["card"] if below else LIGHT[colour],
        linewidth=1.5 + 2 * below,
        linestyle=_LINES[again % len(_LINES)] if axes.joined else "none",
        capsize=3,
        label=ordered[0].series,
    )


def _label(axis: Any, points: Sequence[Point]) -> None:
    """One label for points that coincide."""
    axis.figure.canvas.draw()  # settles the limits
    groups: list[tuple[float, float, list[Point]]] = []
    for each in points:
        x, y = axis.transData.transform((each.x, each.y))
        near = (group for left, low, group in groups if abs(left - x) < 18 and abs(low - y) < 14)
        if group := next(near, None):
            group.append(each)
        else:
            groups.append((x, y, [each]))
    for _, _, together in groups:
        axis.annotate(
            ", ".join(dict.fromkeys(each.label for each in together if each.label)),
            (together[-1].x, max(each.y for each in together)),
            xytext=(7, 5),
            textcoords="offset points",
            color=LIGHT["ink"],
            fontweight="bold",
            parse_math=False,
        )


def _inline(svg: str, key: str) -> str:
    """The file of matplotlib as an element of a page: unique ids, and the page's colours."""
    svg = svg[svg.index("<svg") :]
    # A style element would count in the whole page.
    svg = re.sub(r"<(metadata|style)\b.*?</\1>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(?::\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 width="100%" aria-hidden="true"', svg)
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r"url\(#", f"url(#{key}-", svg)
    svg = re.sub(r'xlink:href="#', f'href="#{key}-', svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", svg)
    variables = {LIGHT[name]: f"var(--{name})" for name in _COLOURS}
    return re.sub(r"#[0-9a-f]{6}\b", lambda found: variables.get(found[0], found[0]), svg)
