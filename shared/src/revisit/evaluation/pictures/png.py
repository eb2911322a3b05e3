"""Captions and their patches as a PNG, word by word."""

from collections.abc import Sequence
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any

from revisit.evaluation import EvaluationError
from revisit.evaluation.pictures.picture import Picture, fit, place, trivial, visible
from revisit.evaluation.pictures.words import Word

_INK, _CHANGED, _QUIET, _ON = "#1d2330", "#9a3412", "#535b6b", "#ffd400"
_COLUMNS = 7


def write_png(picture: Picture, path: Path) -> None:
    """Write the image once for each word of the caption, with the word's patches drawn over it.

    Under it how well the patches fit (`picture.fit`), and what greedy decoding would have said.

    Raises:
        EvaluationError: matplotlib is missing, there is nothing to draw, or the file cannot be
            written.
    """
    if find_spec("matplotlib") is None:
        raise EvaluationError(
            'a PNG needs matplotlib: pip install "revisit-decoding[pictures]"; the HTML does not'
        )
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
    figure.suptitle(picture.title, color=_INK, fontsize=10)
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
            _outline(axis, shown, image.size, dashed=all(map(trivial, word.tokens)))
    axis.set_title(
        word.text,
        color=_CHANGED if word.changed else _INK,
        fontsize=10,
        fontweight="bold" if word.changed else "normal",
        pad=3,
    )
    axis.text(
        0.5,
        -0.03,
        _below(word),
        transform=axis.transAxes,
        ha="center",
        va="top",
        fontsize=7,
        color=_CHANGED if word.changed else _QUIET,
    )


def _outline(axis: Any, box: Sequence[float], size: tuple[int, int], dashed: bool) -> None:
    from matplotlib.patches import Rectangle

    left, top, right, bottom = box
    width, height = size
    corner = (left * width, top * height)
    sides = ((right - left) * width, (bottom - top) * height)
    for colour, line in (("black", 3.5), (_ON, 1.8)):
        style = "--" if dashed and colour == _ON else "-"
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
