"""The images of a report whose captions a run improved most, and harmed most."""

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

_SHOWN = 4  # images that a run improved most, and as many that it harmed most
_THUMBNAIL = 320  # pixels
_COUNT_WRONG, _COUNT_FOUND, _COUNT_TRUE = 2, 4, 5  # columns of the counts


def changes(baseline: Run, run: Run, number: int, key: str) -> dict[str, Any]:
    """The values of `report.html` for the images whose captions a run improved or harmed most."""
    gains = _errors(baseline.counts) - _errors(run.counts)
    best = [at for at in np.argsort(-gains, kind="stable")[:_SHOWN] if gains[at] > 0]
    worst = [at for at in np.argsort(gains, kind="stable")[:_SHOWN] if gains[at] < 0]
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
    """The images' files, by image id; or why they are not shown."""
    folder = record.get("settings", {}).get("data_path")
    if folder is None:
        return {}, "The images are not shown: no record of the run says where they are."
    if not Path(folder).is_dir():
        return {}, f"The images are not shown: the run's folder of images, {folder}, is not here."
    return {image_id(name): Path(folder, name) for name in record.get("images", [])}, ""


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
    """The text of a caption in pieces, object words with their kind; and the words not in it."""
    text, cursor = sentence["caption"], 0
    pieces: list[tuple[str, Kind | None]] = []
    marked = mark(sentence)
    for start, end, kind in marked.marks:
        pieces += [(text[cursor:start], None), (text[start:end], kind)]
        cursor = end
    return [*pieces, (text[cursor:], None)], marked.unplaced
