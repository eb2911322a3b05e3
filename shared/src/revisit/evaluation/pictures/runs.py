"""Scored captions for a report, and how long they took."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks.objects.truth import count
from revisit.evaluation.files import read_json
from revisit.evaluation.results.costs import OF_START


class Run(NamedTuple):
    """Scored captions by one decoder, in the order of the image ids."""

    name: str
    counts: NDArray[np.int64]
    """(images, 7), as `chair.Score.counts`."""
    sentences: Sequence[Mapping[str, Any]]
    """As `chair.Score.sentences`."""
    record: Mapping[str, Any]
    """Of the run that made the captions (`captions.jsonl.run.json`); empty where there is none."""


def read_run(path: Path, name: str) -> Run:
    """A result of `revisit score chair --save_path`; raises `EvaluationError` for another file."""
    saved = read_json(path)
    try:
        sentences = sorted(saved["sentences"], key=lambda each: int(each["image_id"]))
        if not sentences:
            raise ValueError("no captions")
        counts = [count(each, round(100 * each["metrics"]["Len"])) for each in sentences]
        record = saved["captions"]["run"] or {}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EvaluationError(
            f"{path} is not a result of `revisit score chair --save_path` ({error!r}): a report "
            "shows captions that were scored by it"
        ) from error
    return Run(name, np.array(counts, np.int64), sentences, record)


def check_same_images(runs: Sequence[Run]) -> None:
    """Raises `EvaluationError` where runs captioned other images than the first."""
    images = [[int(each["image_id"]) for each in run.sentences] for run in runs]
    for run, captioned in zip(runs, images, strict=True):
        if captioned != images[0]:
            raise EvaluationError(
                f"a report shows captions of the same images, and those of {runs[0].name!r} and "
                f"of {run.name!r} are of others: give results of one --seed"
            )


class Times(NamedTuple):
    """How long runs took."""

    unit: str  # "a token" or "a caption"
    relative: list[float]  # seconds a unit over those of the first run


def times(compared: Sequence[Run]) -> Times | str:
    """The times of the runs; or why they cannot be compared."""
    records = [run.record.get("runs", []) for run in compared]
    starts = [[start for start in record if start.get("seconds")] for record in records]
    for number, run in enumerate(starts, 1):
        if not run:
            return f"nothing tells how long run {number} took"
    conditions = [{tuple(start.get(each) for each in OF_START) for start in run} for run in starts]
    if any(each != conditions[0] for each in conditions):
        return "the runs were on other devices or with other batch sizes, so times do not compare"
    counted = all(start.get("tokens") for run in starts for start in run)
    units, unit = ("tokens", "a token") if counted else ("captions", "a caption")
    seconds = [sum(start["seconds"] for start in run) for run in starts]
    made = [sum(start.get(units, 0) for start in run) for run in starts]
    if not all(made):
        return "the records do not count captions"
    each = [one / many for one, many in zip(seconds, made, strict=True)]
    return Times(unit, [one / each[0] for one in each])
