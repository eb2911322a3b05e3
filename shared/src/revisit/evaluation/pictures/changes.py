"""The images whose captions a run changed most, for the better and for the worse, in a report."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from revisit.evaluation.coco import image_id
from revisit.evaluation.images import ImageError, open_image
from revisit.evaluation.pictures.marks import MEANINGS, Kind, mark
from revisit.evaluation.pictures.runs import Run
from revisit.evaluation.pictures.style import data_url

SHOWN = 4
"""Images that each run bettered most, and as many that it harmed most."""

_THUMBNAIL = 320  # pixels
_COUNT_WRONG, _COUNT_FOUND, _COUNT_TRUE = 2, 4, 5  # columns of the counts


def changes(baseline: Run, run: Run, number: int, key: str, group: str) -> str:
    """The images whose caption a run bettered most and harmed most."""
    gains = _errors(baseline.counts) - _errors(run.counts)
    best = [int(at) for at in np.argsort(-gains, kind="stable")[:SHOWN] if gains[at] > 0]
    worst = [int(at) for at in np.argsort(gains, kind="stable")[:SHOWN] if gains[at] < 0]
    folder, missing = _folder(baseline.record)
    note = f'<p class="note">{escape(missing)}</p>' if missing else ""
    title = f"{group}, run {number}: {run.name}"
    parts = [
        f'<section aria-labelledby="{key}-title"><h2 id="{key}-title">{escape(title)}</h2>',
        f'<p class="quiet">An error is a hallucinated object word, or an object that is not named. '
        f"Against run 1, {(gains > 0).sum()} captions have fewer, {(gains < 0).sum()} more, "
        f"{(gains == 0).sum()} as many.</p>{note}",
    ]
    for heading, chosen in (("Most improved", best), ("Most harmed", worst)):
        cards = [_card(baseline, run, number, at, folder) for at in chosen]
        parts.append(f"<h3>{heading}</h3>{''.join(cards) or '<p>None.</p>'}")
    return "\n".join([*parts, "</section>"])


def _errors(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    missed: NDArray[np.int64] = counts[:, _COUNT_TRUE] - counts[:, _COUNT_FOUND]
    return counts[:, _COUNT_WRONG] + missed


def _folder(record: Mapping[str, Any]) -> tuple[dict[int, Path], str]:
    """By image id, the images' files; or why they are not shown."""
    named = record.get("settings", {}).get("data_path")
    if named is None:
        return {}, "The images are not shown: no record of the run says where they are."
    if not Path(named).is_dir():
        return {}, f"The images are not shown: the run's folder of images, {named}, is not here."
    return {image_id(name): Path(named, name) for name in record.get("images", [])}, ""


def _card(baseline: Run, run: Run, number: int, at: int, files: Mapping[int, Path]) -> str:
    first, second = baseline.sentences[at], run.sentences[at]
    image = int(first["image_id"])
    there = ", ".join(first["gt_objects"]) or "no object of COCO"
    return (
        f'<article class="card" data-image="{image}">{_thumbnail(image, files)}'
        f'<div class="said"><h4>Image {image}</h4><p class="quiet">There: {escape(there)}</p>'
        f"{_caption('1', first)}{_caption(str(number), second)}</div></article>"
    )


def _thumbnail(image: int, files: Mapping[int, Path]) -> str:
    if not files:
        return ""
    try:
        url = data_url(open_image(files[image]).image, _THUMBNAIL, 80)
    except (KeyError, ImageError):
        return '<p class="thumbnail quiet">The file of this image cannot be read.</p>'
    return f'<img class="thumbnail" src="{url}" alt="Image {image}">'


def _caption(number: str, sentence: Mapping[str, Any]) -> str:
    text, parts, last = sentence["caption"], [], 0
    marked = mark(sentence)
    for start, end, kind in marked.marks:
        parts += [escape(text[last:start]), _word(text[start:end], kind)]
        last = end
    parts.append(escape(text[last:]))
    parts += [
        f' <span class="quiet">(read as: {_word(word, kind)})</span>'
        for word, kind in marked.unplaced
    ]
    return f'<h5>Run {number}</h5><p class="caption">{"".join(parts)}</p>'


def _word(text: str, kind: Kind) -> str:
    told = f'<span class="hidden"> ({MEANINGS[kind]})</span>' if kind != "right" else ""
    return f'<span class="{kind}">{escape(text)}</span>{told}'
