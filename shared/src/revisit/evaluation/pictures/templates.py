"""Pages made from `templates/`: one file each, which needs nothing else and fetches nothing."""

import base64
import io
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from revisit.evaluation import EvaluationError

LIGHT = {
    **{"paper": "#fbfaf7", "card": "#ffffff", "ink": "#1d1b18", "quiet": "#5f5a52"},
    **{"line": "#ddd8ce", "focus": "#0b57d0", "soft": "#f1eee7"},
    **{"wrong": "#b3261e", "right": "#1a6b40", "again": "#855800"},
    **{"first": "#1d4ed8", "second": "#b45309", "third": "#0f766e", "fourth": "#9333ea"},
}
"""Colours of pages by day, and of figures: `first` to `fourth` are the series of plots."""

DARK = LIGHT | {
    **{"paper": "#14130f", "card": "#1e1c18", "ink": "#f1ede4", "quiet": "#aea79b"},
    **{"line": "#3d3932", "focus": "#8ab4f8", "soft": "#2a2721"},
    **{"wrong": "#ff8a80", "right": "#6fd39b", "again": "#e9b949"},
    **{"first": "#9db8ff", "second": "#f5b26b", "third": "#5fd3c4", "fourth": "#d3a6ff"},
}

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
    value: float | None = None  # that its row is sorted by; the text where there is none
    gap: str = ""  # below the text
    tag: str = "td"


def render(template: str, **values: Any) -> str:
    """The page that a file of `templates/` makes of these values, which are text and no markup."""
    made = _ENVIRONMENT.get_template(template)
    return made.render(light=LIGHT, dark=DARK, hues=HUES, **values)


def write_text(path: Path, text: str) -> None:
    """Raises `EvaluationError` where the file cannot be written."""
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise EvaluationError(f"cannot write {path}: {error.strerror}") from error


def data_url(image: Image.Image, longest_side: int, quality: int) -> str:
    """The image as a JPEG that a page can hold, made smaller where it is larger."""
    small = image.convert("RGB")
    small.thumbnail((longest_side, longest_side))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
