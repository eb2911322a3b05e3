"""A figure for a paper or a talk: images beside their captions, as PDF, PNG or SVG.

Words that name something are underlined and numbered; the patch that a word came from has the same
number and colour in the image.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from revisit.evaluation import EvaluationError
from revisit.evaluation.pictures.picture import Box, Picture, Shown
from revisit.evaluation.pictures.plots import check_matplotlib
from revisit.evaluation.pictures.templates import HUES, LIGHT

ENDINGS = (".pdf", ".png", ".svg")

# All lengths are pixels of a PNG, 100 to an inch.
_DPI, _WIDTH, _IMAGE, _MARGIN, _LINE = 100, 1000, 300, 20, 34
_TEXT, _SMALL = 20, 15  # sizes of fonts
_SAVED_DPI = 150

# Without a date, the same figure is the same file.
_UNDATED: dict[str, Any] = {
    ".pdf": {"CreationDate": None},
    ".png": {"Software": None},
    ".svg": {"Date": None},
}


class _Piece(NamedTuple):
    """Text in one style; a word may be several."""

    text: str
    size: float = _TEXT
    colour: str = LIGHT["ink"]
    bold: bool = False
    struck: bool = False
    underline: str = ""  # its colour
    raised: float = 0


class _Placed(NamedTuple):
    """A piece with its left end and base line."""

    x: float
    y: float
    piece: _Piece


def write_figure(pictures: Sequence[Picture], path: Path, note: str = "") -> None:
    """Write the first image of each picture, one below the other, under the note.

    Raises:
        EvaluationError: matplotlib is missing, the name does not end in one of `ENDINGS`, or the
            file cannot be written.
    """
    check_figure(path)
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chunks = [[_Piece(each, _SMALL, LIGHT["quiet"])] for each in note.split()]
    head = _flow(_MARGIN, _MARGIN + 12, chunks, _WIDTH - _MARGIN)
    tops = [head[-1].y + _MARGIN if head else float(_MARGIN)]
    cards = [_card(each) for each in pictures]
    for _, height in cards:
        tops.append(tops[-1] + height + _MARGIN)
    with rc_context({"pdf.fonttype": 42, "svg.hashsalt": ""}):
        figure = Figure(figsize=(_WIDTH / _DPI, tops[-1] / _DPI), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(figure)
        axis = figure.add_axes((0, 0, 1, 1))
        axis.set(xlim=(0, _WIDTH), ylim=(tops[-1], 0))
        axis.set_axis_off()
        _draw(axis, head)
        for picture, (placed, _), top in zip(pictures, cards, tops, strict=False):
            _draw_image(axis, picture, top)
            _draw(axis, [each._replace(y=each.y + top) for each in placed])
        try:
            figure.savefig(path, dpi=_SAVED_DPI, metadata=_UNDATED[path.suffix.lower()])
        except OSError as error:
            raise EvaluationError(f"cannot write {path}: {error.strerror}") from error


def check_figure(path: Path) -> None:
    """Raises `EvaluationError` where a figure of this name cannot be made."""
    if path.suffix.lower() not in ENDINGS:
        raise EvaluationError(f"{path}: the name of a figure ends in {', '.join(ENDINGS)}")
    check_matplotlib("a figure")


def _card(picture: Picture) -> tuple[list[_Placed], float]:
    """The text beside an image, from the top left of the card, and the height of the card."""
    left, y = 2 * _MARGIN + _IMAGE, 18.0
    placed = [_Placed(left, y, _Piece(picture.title, _SMALL, LIGHT["quiet"]))]
    for name, words in picture.shown.items():
        y += 30
        placed.append(_Placed(left, y, _Piece(name, _SMALL, LIGHT["quiet"], bold=True)))
        lines = _flow(left, y + 30, _chunks(words), _WIDTH - _MARGIN)
        placed += lines
        y = lines[-1].y + 14 if lines else y + 30
    return placed, max(y, _image_height(picture))


def _image_height(picture: Picture) -> float:
    image = picture.images[0]
    return _IMAGE * min(max(image.height / image.width, 0.3), 2.0)


def _chunks(words: Sequence[Shown]) -> Iterator[list[_Piece]]:
    """What stays on one line: a word, greedy decoding's before it, and the marks behind it."""
    chunk: list[_Piece] = []
    for word in words:
        if word.before and chunk:
            yield chunk
            chunk = []
        if word.instead:
            chunk.append(_Piece(word.instead, _SMALL, LIGHT["quiet"], struck=True))
            chunk.append(_Piece(" ", _SMALL))
        wrong = word.kind == "wrong"
        colour = LIGHT["wrong"] if wrong else LIGHT["ink"]
        patch = None if word.look is None else word.look.patch
        hue = "" if patch is None else HUES[patch % len(HUES)]
        chunk.append(_Piece(word.text, _TEXT, colour, wrong, wrong, hue))
        if patch is not None:
            chunk.append(_Piece(str(patch + 1), _SMALL * 0.8, hue, bold=True, raised=8))
    if chunk:
        yield chunk


def _flow(left: float, y: float, chunks: Iterable[list[_Piece]], right: float) -> list[_Placed]:
    """Chunks in lines; `y` is the first base line."""
    placed: list[_Placed] = []
    x = left
    for chunk in chunks:
        lengths = [_length(piece) for piece in chunk]
        if x + sum(lengths) > right and x > left:
            x, y = left, y + _LINE
        for piece, length in zip(chunk, lengths, strict=True):
            placed.append(_Placed(x, y - piece.raised, piece))
            x += length
        x += _length(chunk[0]._replace(text=" "))
    return placed


def _font(piece: _Piece) -> Any:
    from matplotlib.font_manager import FontProperties

    weight = "bold" if piece.bold else "normal"
    return FontProperties(family="DejaVu Sans", size=piece.size * 72 / _DPI, weight=weight)


def _length(piece: _Piece) -> float:
    measure, font = _renderer().get_text_width_height_descent, _font(piece)
    return float(measure(piece.text, font, False)[0])


@cache
def _renderer() -> Any:
    """Measures text."""
    from matplotlib.backends.backend_agg import RendererAgg

    return RendererAgg(1, 1, _DPI)  # type: ignore[no-untyped-call]


def _draw(axis: Any, placed: Sequence[_Placed]) -> None:
    for x, y, piece in placed:
        font = _font(piece)
        axis.text(x, y, piece.text, fontproperties=font, color=piece.colour, parse_math=False)
        ends = (x, x + _length(piece))
        if piece.struck:
            axis.plot(ends, [y - 0.32 * piece.size] * 2, color=piece.colour, linewidth=1.4)
        if piece.underline:
            axis.plot(ends, [y + 6] * 2, color=piece.underline, linewidth=2.6)


def _draw_image(axis: Any, picture: Picture, top: float) -> None:
    height = _image_height(picture)
    extent = (_MARGIN, _MARGIN + _IMAGE, top + height, top)
    shown = picture.images[0].convert("RGB")
    axis.imshow(shown, extent=extent, aspect="auto", interpolation="bicubic")
    for number, (image, box) in enumerate(picture.patches):
        if image == 0:
            _draw_patch(axis, number, box, (_MARGIN, top, _IMAGE, height))


def _draw_patch(axis: Any, number: int, box: Box, frame: tuple[float, float, float, float]) -> None:
    """The outline of a patch, and its number in a corner."""
    from matplotlib.patches import Rectangle

    left, top, right, bottom = box
    x, y, width, height = frame
    corner = (x + left * width, y + top * height)
    sides = ((right - left) * width, (bottom - top) * height)
    hue = HUES[number % len(HUES)]
    for colour, line in (("white", 4.0), (hue, 2.2)):
        axis.add_patch(Rectangle(corner, *sides, fill=False, edgecolor=colour, linewidth=line))
    axis.text(
        *corner,
        str(number + 1),
        fontproperties=_font(_Piece("", _SMALL * 0.8, bold=True)),
        color="white",
        ha="center",
        va="center",
        bbox={"boxstyle": "circle,pad=0.25", "facecolor": hue, "edgecolor": "white"},
    )
