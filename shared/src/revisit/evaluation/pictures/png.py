"""Captions and their patches as a PNG, word by word."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

from revisit.evaluation import EvaluationError
from revisit.evaluation.pictures.picture import Box, Picture, fit, place, trivial, visible
from revisit.evaluation.pictures.plots import check_matplotlib
from revisit.evaluation.pictures.style import LIGHT
from revisit.evaluation.pictures.words import Word

_COLUMNS = 7


def write_png(picture: Picture, path: Path) -> None:
    """Write the image once for each word of the caption, with the word's patches drawn over it.

    Under it how well the patches fit (`picture.fit`), and what greedy decoding would have said.

    Raises:
        EvaluationError: matplotlib is missing, there is nothing to draw, or the file cannot be
            written.
    """
    check_matplotlib("a PNG")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    words = [word for word in picture.words if word.tokens and word.text[0].isalnum()]
    if not words or not picture.images:
        raise EvaluationError(f"nothing to draw of {picture.title}: no word, or no image")
    rows = ceil(len(words) / _COLUMNS)
    shape = picture.images[0].height / picture.images[0].width
    tall = min(max(shape, 0.4), 2.0)
    figure = Figure(
        figsize=(_COLUMNS * 1.7, rows * (1.55 * tall + 0.65) + 0.4), layout="constrained"
    )
    FigureCanvasAgg(figure)
    figure.suptitle(picture.title, color=LIGHT["ink"], fontsize=10, parse_math=False)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for axis in axes:
        axis.set_axis_off()
    for axis, word in zip(axes, words, strict=False):
        _draw(axis, picture, word)
    try:
        figure.savefig(path, dpi=110, metadata={"Software": None})
    except OSError as error:
        raise EvaluationError(f"cannot write {path}: {error.strerror}") from error


def _draw(axis: Any, picture: Picture, word: Word) -> None:
    places = [told for token in word.tokens if (told := place(picture, token)) is not None]
    image = picture.images[places[0][0] if places else 0]
    axis.imshow(image.convert("RGB"), extent=(0, image.width, image.height, 0))
    for number, box in places:
        shown = visible(box)
        if shown is not None and number == places[0][0]:
            outline(axis, shown, (0, 0, *image.size), dashed=all(map(trivial, word.tokens)))
    axis.set_title(
        word.text,
        color=LIGHT["changed"] if word.changed else LIGHT["ink"],
        fontsize=10,
        fontweight="bold" if word.changed else "normal",
        pad=3,
        parse_math=False,
    )
    axis.text(
        0.5,
        -0.03,
        _below(word),
        transform=axis.transAxes,
        ha="center",
        va="top",
        fontsize=7,
        parse_math=False,
        color=LIGHT["changed"] if word.changed else LIGHT["quiet"],
    )


def outline(axis: Any, box: Box, frame: Sequence[float], dashed: bool = False) -> None:
    """Show where a chosen vision token lies.

    Args:
        axis: of matplotlib, y downwards.
        box: as fractions of the image.
        frame: x, y, width and height of the image in the axis.
        dashed: for a choice among vision tokens that all fitted alike.
    """
    from matplotlib.patches import Rectangle

    left, top, right, bottom = box
    x, y, width, height = frame
    corner = (x + left * width, y + top * height)
    sides = ((right - left) * width, (bottom - top) * height)
    for colour, line in (("black", 3.5), (LIGHT["on"], 1.8)):
        style = "--" if dashed and colour != "black" else "-"
        axis.add_patch(
            Rectangle(corner, *sides, fill=False, edgecolor=colour, linewidth=line, linestyle=style)
        )


def _below(word: Word) -> str:
    instead = [token.instead.strip() for token in word.tokens if token.instead is not None]
    if instead:
        return f"greedy: {' … '.join(instead)}"
    if all(map(trivial, word.tokens)):
        return "no other candidate"
    return f"fit {max(map(fit, word.tokens)):.2f}"
