"""What pages and PNGs share: their colours, the frame of a page, and an image inside of one."""

import base64
import io
from collections.abc import Mapping
from html import escape

from PIL import Image

LIGHT = {
    **{"paper": "#fbfbfd", "card": "#ffffff", "ink": "#1d2330", "quiet": "#535b6b"},
    **{"line": "#d5d9e2", "on": "#ffd400", "on-ink": "#1d2330", "focus": "#1d4ed8"},
    **{"changed": "#9a3412", "wrong": "#c41e36", "right": "#1a7344", "again": "#8a5a00"},
    **{"first": "#1d4ed8", "second": "#b45309", "third": "#0f766e", "fourth": "#9333ea"},
}
"""Colours of pages by day, and of PNGs.

`on` is where a chosen vision token lies. Words that ReVisiT changed, that are not in the image,
that are, and that were said before have one each. `first` to `fourth` are those of plots.
"""

DARK = LIGHT | {
    **{"paper": "#12151c", "card": "#1b202a", "ink": "#e8eaf0", "quiet": "#aab1c1"},
    **{"line": "#39404f", "focus": "#9db8ff"},
    **{"changed": "#ffb98a", "wrong": "#ff8a94", "right": "#6fd39b", "again": "#e9b949"},
    **{"first": "#9db8ff", "second": "#f5b26b", "third": "#5fd3c4", "fourth": "#d3a6ff"},
}

# Nothing may be fetched, from anywhere: what the page needs is in it.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)


def document(title: str, body: str, style: str, script: str = "") -> str:
    """A page that needs nothing else; `body` and below are markup, the title is text."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}{style}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}
</main>
{f"<script>{script}</script>" if script else ""}
</body>
</html>
"""


def data_url(image: Image.Image, longest_side: int, quality: int) -> str:
    """The image as a JPEG that a page can hold, made smaller where it is larger."""
    small = image.convert("RGB")
    small.thumbnail((longest_side, longest_side))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}:{value};" for name, value in colours.items())


_STYLE = f"""
:root {{ {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
* {{ box-sizing:border-box; }}
body {{ margin:0; background:var(--paper); color:var(--ink); font:16px/1.5 system-ui, sans-serif; }}
main {{ max-width:70rem; margin:0 auto; padding:1rem; }}
h1 {{ font-size:1.4rem; margin:0 0 .5rem; }}
h2 {{ font-size:1.1rem; margin:0 0 .5rem; overflow-wrap:anywhere; }}
.quiet {{ color:var(--quiet); font-size:.9rem; margin:.25rem 0 1rem; }}
.note {{ border-left:4px solid var(--changed); padding:.25rem .75rem; margin:0 0 .75rem; }}
section {{ background:var(--card); border:1px solid var(--line); border-radius:.5rem;
  padding:1rem; margin:0 0 1rem; }}
:focus-visible {{ outline:3px solid var(--focus); outline-offset:1px; }}
"""
