"""Images beside their captions as a PNG, object words marked as in the pages.

A word that ReVisiT changed has a number, and the same number stands in the image at the vision
token that the word came from.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from revisit.evaluation import EvaluationError
from revisit.evaluation.pictures.marks import MEANINGS, Kind, mark
from revisit.evaluation.pictures.picture import Box
from revisit.evaluation.pictures.plots import check_matplotlib
from revisit.evaluation.pictures.png import outline
from revisit.evaluation.pictures.style import LIGHT

_WIDTH, _IMAGE, _MARGIN, _TOP = 1000, 300, 20, 84  # pixels
_LINE, _ROUND = 31, 11  # height of a line, radius of a number's disc
_TEXT, _SMALL, _TINY = 21, 16, 14  # sizes of fonts
_DPI = 100


@dataclass(frozen=True)
class Card:
    """An image and captions of it.

    Args:
        captions: titles, and captions as they stand in `chair.Score.sentences`.
        changed: of the last caption, where in its text each word to be numbered begins, and the
            part of the image that its vision token shows.
    """

    image: Image.Image
    captions: Sequence[tuple[str, Mapping[str, Any]]]
    changed: Sequence[tuple[int, Box]] = ()


class _Piece(NamedTuple):
    """Text at a place; a word may be several."""

    x: float
    y: float
    text: str
    size: float
    colour: str
    kind: Kind | None = None


class _Disc(NamedTuple):
    """A number at the middle of its disc."""

    x: float
    y: float
    number: int


_Item = _Piece | _Disc


def write_sheet(cards: Sequence[Card], path: Path, note: str) -> None:
    """Write the cards one below the other, under a legend and the note.

    Raises:
        EvaluationError: matplotlib is missing, or the file cannot be written.
    """
    check_matplotlib("a PNG")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    laid = [_lay(card) for card in cards]
    tops = [_TOP]
    for _, height in laid:
        tops.append(tops[-1] + round(height) + _MARGIN)
    figure = Figure(figsize=(_WIDTH / _DPI, tops[-1] / _DPI), dpi=_DPI, facecolor="#f1f2f6")
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0, 0, 1, 1))
    _draw(axis, [*_legend(), _Piece(_MARGIN, 50, note, _SMALL, LIGHT["quiet"])])
    for card, (items, height), top in zip(cards, laid, tops, strict=False):
        _draw_card(axis, card, items, top, height)
    axis.set(xlim=(0, _WIDTH), ylim=(tops[-1], 0))
    axis.set_axis_off()
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=_DPI)
    few = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    try:
        few.save(path, optimize=True)
    except OSError as error:
        raise EvaluationError(f"cannot write {path}: {error.strerror}") from error


def _legend() -> Iterator[_Item]:
    x, y = float(_MARGIN), 14.0
    for kind, meaning in MEANINGS.items():
        yield _Piece(x, y, meaning, _SMALL, LIGHT[kind], kind)
        x += _length(meaning, _SMALL, kind) + 26
    yield _Disc(x + _ROUND, y + 11, 1)
    text = "changed by ReVisiT, with the vision token that it came from"
    yield _Piece(x + 2 * _ROUND + 6, y, text, _SMALL, LIGHT["ink"])


def _lay(card: Card) -> tuple[list[_Item], float]:
    """What stands beside a card's image, from the card's corner; and the card's height."""
    items: list[_Item] = []
    left, y = 2 * _MARGIN + _IMAGE, float(_MARGIN) - 4
    for number, (title, sentence) in enumerate(card.captions, 1):
        items.append(_Piece(left, y, title, _SMALL, LIGHT["quiet"]))
        numbers = {}
        if number == len(card.captions):
            numbers = {start: at for at, (start, _) in enumerate(card.changed, 1)}
        placed, y = _paragraph(left, y + 25, sentence, numbers)
        items += placed
        y += 12
    return items, max(y, _image_height(card)) + _MARGIN


def _image_height(card: Card) -> float:
    return _MARGIN + _IMAGE * card.image.height / card.image.width


def _paragraph(
    left: float, y: float, sentence: Mapping[str, Any], numbers: Mapping[int, int]
) -> tuple[list[_Item], float]:
    """A caption in lines, and where the next paragraph may begin."""
    items: list[_Item] = []
    x, right = left, _WIDTH - 3 * _MARGIN
    space = _length(" ", _TEXT)
    for start, parts in _words(sentence):
        lengths = [_length(text, _TEXT, kind) for text, kind in parts]
        ahead = 2 * _ROUND + 5 if start in numbers else 0
        if x + ahead + sum(lengths) > right and x > left:
            x, y = left, y + _LINE
        if ahead:
            items.append(_Disc(x + _ROUND, y + 14, numbers[start]))
            x += ahead
        for (text, kind), length in zip(parts, lengths, strict=True):
            items.append(_Piece(x, y, text, _TEXT, LIGHT[kind or "ink"], kind))
            x += length
        x += space
    return items, y + _LINE


def _words(sentence: Mapping[str, Any]) -> Iterator[tuple[int, list[tuple[str, Kind | None]]]]:
    """Where each word of a caption begins, and its parts: what is marked, and what is not."""
    text, marks = sentence["caption"], mark(sentence).marks
    for word in re.finditer(r"\S+", text):
        parts: list[tuple[str, Kind | None]] = []
        at = word.start()
        for start, end, kind in marks:
            first, last = max(start, at), min(end, word.end())
            if first < last:
                parts += [(text[at:first], None), (text[first:last], kind)]
                at = last
        parts.append((text[at : word.end()], None))
        yield word.start(), [part for part in parts if part[0]]


def _font(size: float, kind: Kind | None) -> Any:
    from matplotlib.font_manager import FontProperties

    weight = "bold" if kind in ("wrong", "again") else "normal"
    return FontProperties(family="DejaVu Sans", size=size * 72 / _DPI, weight=weight)


def _length(text: str, size: float, kind: Kind | None = None) -> float:
    renderer = _renderer()
    return float(renderer.get_text_width_height_descent(text, _font(size, kind), False)[0])


@cache
def _renderer() -> Any:
    """One that measures text."""
    from matplotlib.backends import backend_agg

    make: Any = backend_agg.RendererAgg
    return make(1, 1, _DPI)


def _draw_card(axis: Any, card: Card, items: Sequence[_Item], top: float, height: float) -> None:
    from matplotlib.patches import Rectangle

    frame = (2.0 * _MARGIN, top + _MARGIN, _IMAGE, _image_height(card) - _MARGIN)
    x, y, width, tall = frame
    corner, sides = (_MARGIN, top), (_WIDTH - 2 * _MARGIN, height)
    axis.add_patch(Rectangle(corner, *sides, facecolor=LIGHT["card"], zorder=0))
    extent = (x, x + width, y + tall, y)
    axis.imshow(card.image.convert("RGB"), extent=extent, aspect="auto", interpolation="bicubic")
    discs: dict[Box, int] = {}
    for number, (_, box) in enumerate(card.changed, 1):
        outline(axis, box, frame)
        beside = discs[box] = discs.get(box, -1) + 1
        at = x + box[2] * width + beside * 2 * _ROUND
        _draw(
            axis, [_Disc(min(at, x + width - _ROUND), max(y + box[1] * tall, y + _ROUND), number)]
        )
    _draw(axis, [each._replace(x=each.x + _MARGIN, y=each.y + top) for each in items])


def _draw(axis: Any, items: Sequence[_Item]) -> None:
    for item in items:
        if isinstance(item, _Disc):
            _draw_disc(axis, item)
        else:
            _draw_piece(axis, item)


def _draw_disc(axis: Any, disc: _Disc) -> None:
    from matplotlib.patches import Circle

    axis.add_patch(
        Circle(disc[:2], _ROUND, facecolor=LIGHT["on"], edgecolor="black", linewidth=1.2, zorder=3)
    )
    axis.text(
        *disc[:2],
        str(disc.number),
        fontproperties=_font(_TINY, "wrong"),
        color=LIGHT["on-ink"],
        ha="center",
        va="center_baseline",
        zorder=4,
    )


def _draw_piece(axis: Any, piece: _Piece) -> None:
    below = piece.y + 1.12 * piece.size  # the base line
    axis.text(
        piece.x,
        below,
        piece.text,
        fontproperties=_font(piece.size, piece.kind),
        color=piece.colour,
        va="baseline",
        parse_math=False,
    )
    ends = [piece.x, piece.x + _length(piece.text, piece.size, piece.kind)]
    lines = {"wrong": ((4.0, "-"), (7.0, "-")), "again": ((5.0, ":"),)}
    for away, style in lines.get(piece.kind or "right", ()):
        heights = [below + away, below + away]
        axis.plot(ends, heights, style, color=piece.colour, linewidth=1.1)
