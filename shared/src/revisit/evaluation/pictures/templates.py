"""Pages made from `templates/`: one file each, which needs nothing else and fetches nothing."""

import base64
import io
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

COLOURS = {
    "paper": ("#fbfaf7", "#14130f"),
    "card": ("#ffffff", "#1e1c18"),
    "ink": ("#1d1b18", "#f1ede4"),
    "quiet": ("#5f5a52", "#aea79b"),
    "line": ("#ddd8ce", "#3d3932"),
    "focus": ("#0b57d0", "#8ab4f8"),
    "soft": ("#f1eee7", "#2a2721"),
    "wrong": ("#b3261e", "#ff8a80"),
    "right": ("#1a6b40", "#6fd39b"),
    "again": ("#855800", "#e9b949"),
    "first": ("#1d4ed8", "#9db8ff"),
    "second": ("#b45309", "#f5b26b"),
    "third": ("#0f766e", "#5fd3c4"),
    "fourth": ("#9333ea", "#d3a6ff"),
}
"""Of pages by day and by night; `first` to `fourth` are the series of plots."""

LIGHT = {name: day for name, (day, _) in COLOURS.items()}
"""Colours by day, and of figures."""

HUES = ("#e8710a", "#1a73e8", "#188038", "#a142f4", "#d01884", "#00838b", "#a35c00", "#5c6bc0")
"""Of the patches that words came from, in the order of the words; then again from the first."""

_ENVIRONMENT = Environment(
    loader=PackageLoader("revisit.evaluation.pictures"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Cell(NamedTuple):
    """A cell of a table."""

    text: str
    value: float | None = None  # its row is sorted by; the text where there is none
    gap: str = ""  # below the text
    tag: str = "td"


def render(template: str, **values: Any) -> str:
    """The page from a file of `templates/` and these values, which are text and no markup."""
    page = _ENVIRONMENT.get_template(template)
    return page.render(colours=COLOURS, hues=HUES, **values)


def data_url(image: Image.Image, longest_side: int, quality: int) -> str:
    """The image as a JPEG inside a page, made smaller where it is larger."""
    small = image.convert("RGB")
    small.thumbnail((longest_side, longest_side))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
