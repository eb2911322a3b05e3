"""The images whose captions a run changed most, for the better and for the worse, in a report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from revisit.evaluation.benchmarks.objects.coco import image_id
from revisit.evaluation.images import ImageError, open_image
from revisit.evaluation.pictures.marks import Kind, mark
from revisit.evaluation.pictures.runs import Run
from revisit.evaluation.pictures.templates import data_url

SHOWN = 4
"""Images that each run bettered most, and as many that it harmed most."""

_THUMBNAIL = 320  # pixels
_COUNT_WRONG, _COUNT_FOUND, _COUNT_TRUE = 2, 4, 5  # columns of the counts


def changes(baseline: Run, run: Run, number: int, key: str) -> dict[str, Any]:
    """What `report.html` shows of the images whose caption a run bettered and harmed most."""
    gains = _errors(baseline.counts) - _errors(run.counts)
    best = [int(at) for at in np.argsort(-gains, kind="stable")[:SHOWN] if gains[at] > 0]
    worst = [int(at) for at in np.argsort(gains, kind="stable")[:SHOWN] if gains[at] < 0]
    files, missing = _files(baseline.record)
    return {
        "key": key,
        "number": number,
        "name": run.name,
        "fewer": (gains > 0).sum(),
        "more": (gains < 0).sum(),
        "same": (gains == 0).sum(),
        "missing": missing,
        "shown": {
            heading: [_card(baseline, run, number, at, files) for at in chosen]
            for heading, chosen in (("Most improved", best), ("Most harmed", worst))
        },
    }


def _errors(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    missed: NDArray[np.int64] = counts[:, _COUNT_TRUE] - counts[:, _COUNT_FOUND]
    return counts[:, _COUNT_WRONG] + missed


def _files(record: Mapping[str, Any]) -> tuple[dict[int, Path], str]:
    """By image id, the images' files; or why they are not shown."""
    named = record.get("settings", {}).get("data_path")
    if named is None:
        return {}, "The images are not shown: no record of the run says where they are."
    if not Path(named).is_dir():
        return {}, f"The images are not shown: the run's folder of images, {named}, is not here."
    return {image_id(name): Path(named, name) for name in record.get("images", [])}, ""


def _card(
    baseline: Run, run: Run, number: int, at: int, files: Mapping[int, Path]
) -> dict[str, Any]:
    first, second = baseline.sentences[at], run.sentences[at]
    image = int(first["image_id"])
    try:
        url = data_url(open_image(files[image]).image, _THUMBNAIL, 80)
    except (KeyError, ImageError):
        url = ""
    return {
        "image": image,
        "url": url,
        "there": ", ".join(first["gt_objects"]) or "no object of COCO",
        "captions": [(1, *_pieces(first)), (number, *_pieces(second))],
    }


def _pieces(
    sentence: Mapping[str, Any],
) -> tuple[list[tuple[str, Kind | None]], list[tuple[str, Kind]]]:
    """A caption's text in pieces, object words with their kind; and those with no place in it."""
    text, last = sentence["caption"], 0
    pieces: list[tuple[str, Kind | None]] = []
    marked = mark(sentence)
    for start, end, kind in marked.marks:
        pieces += [(text[last:start], None), (text[start:end], kind)]
        last = end
    return [*pieces, (text[last:], None)], marked.unplaced
