"""Plots as SVG that stands in a page: in the page's colours, by day and by night."""

import io
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

from markupsafe import Markup

from revisit.evaluation import EvaluationError
from revisit.evaluation.pictures.templates import LIGHT, Cell

_SIZE = (5.4, 3.6)  # inches of 72 pixels
_SERIES = (("first", "o"), ("second", "s"), ("third", "^"), ("fourth", "D"))
_LINES = ("-", "--", ":", "-.")
_SHADES = ("ink", "quiet", "line", "card", *(colour for colour, _ in _SERIES))
_FONT = 11


class Point(NamedTuple):
    """A point of a plot."""

    label: str  # what stands beside it, short
    series: str  # points of a series are joined in the order of x
    x: float
    y: float
    low: float  # of the bar through it; y where it has none
    high: float


class Axes(NamedTuple):
    """What a plot shows."""

    title: str
    x: str
    y: str
    logarithmic: bool = False  # in x
    line: tuple[str, float] | None = None  # a height to compare with, and its name
    joined: bool = True


def check_matplotlib(what: str) -> None:
    """Raises `EvaluationError` where what is named cannot be drawn."""
    if find_spec("matplotlib") is None:
        raise EvaluationError(f'{what} needs matplotlib: pip install "revisit-decoding[pictures]"')


def plot(points: Sequence[Point], axes: Axes, key: str) -> dict[str, Any]:
    """What `report.html` shows of a plot: an `svg` element, and its numbers as a table.

    Args:
        points: at least one.
        key: begins the ids of its elements; each plot of a page has its own.
    """
    check_matplotlib("a plot")
    named = any(each.label for each in points)
    rows = [
        [
            *([Cell(each.label)] if named else []),
            Cell(each.series, tag="th"),
            Cell(f"{each.x:g}"),
            Cell(f"{each.y:.1f}{_bar(each)}"),
        ]
        for each in points
    ]
    line = f" The dashed line: {axes.line[0]}, {axes.line[1]:.1f}." if axes.line else ""
    return {
        "key": key,
        "title": axes.title,
        "caption": f"{axes.title}.{line}",
        "svg": Markup(_inline(_draw(points, axes), key)),  # matplotlib escapes what is text
        "heads": [*(["point"] if named else []), "series", axes.x, axes.y],
        "rows": [{"cells": row} for row in rows],
    }


def _bar(point: Point) -> str:
    return "" if point.low == point.high else f" [{point.low:.1f}, {point.high:.1f}]"


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
            below = len(names) - 1 - number  # series over this one, which it must be seen around
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
    """The scale of x, and a tick at each point: once there is something to scale."""
    if not axes.logarithmic:
        return
    places = sorted({each.x for each in points})
    positive = [x for x in places if x > 0]
    if len(positive) == len(places):
        axis.set_xscale("log")
    else:  # 0 stands left of all others
        axis.set_xscale("symlog", linthresh=min(positive, default=1.0))
    if len(places) == 1:  # else its neighbourhood has no width
        around = positive[0] if positive else 1.0
        axis.set_xlim(around / 10 if positive else -around, around * 10)
    axis.set_xticks(places)
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.minorticks_off()


def _series(axis: Any, points: Sequence[Point], number: int, below: int, axes: Axes) -> None:
    """Wider where others follow: series that coincide are seen one around the other."""
    again, place = divmod(number, len(_SERIES))
    colour, marker = _SERIES[place]
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
    """One label for points that lie upon each other."""
    axis.figure.canvas.draw()  # settles the limits
    there: list[tuple[float, float, list[Point]]] = []
    for each in points:
        x, y = axis.transData.transform((each.x, each.y))
        upon = [one for left, low, one in there if abs(left - x) < 18 and abs(low - y) < 14]
        if upon:
            upon[0].append(each)
        else:
            there.append((x, y, [each]))
    for _, _, together in there:
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
    """What matplotlib wrote as an element of a page: no prolog, own ids, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(?::\w+)?="[^"]*"', "", svg)
    # A page's style element would be everybody's.
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 width="100%" aria-hidden="true"', svg)
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r"url\(#", f"url(#{key}-", svg)
    svg = re.sub(r'xlink:href="#', f'href="#{key}-', svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", svg)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    return _by_name({LIGHT[name]: f"var(--{name})" for name in _SHADES}, svg)


def _by_name(names: Mapping[str, str], svg: str) -> str:
    return re.sub(r"#[0-9a-f]{6}\b", lambda found: names.get(found[0], found[0]), svg)
