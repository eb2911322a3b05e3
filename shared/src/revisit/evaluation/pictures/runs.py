"""Scored captions, as a report takes them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from revisit.evaluation.chair import Score
from revisit.evaluation.compare import read_result
from revisit.evaluation.files import read_json


class Run(NamedTuple):
    """Scored captions by one decoder, in the order of the image ids."""

    name: str
    counts: NDArray[np.int64]
    """(images, 7), as `chair.Score.counts`."""
    sentences: Sequence[Mapping[str, Any]]
    """As `chair.Score.sentences`."""
    record: Mapping[str, Any]
    """What made the captions (`captions.jsonl.run.json`); empty where that is not known."""


def read_run(path: Path, name: str) -> Run:
    """A result of `revisit-chair --save_path`; raises `EvaluationError` for another file."""
    counts = read_result(path).counts
    saved = read_json(path)
    sentences = sorted(saved["sentences"], key=lambda each: int(each["image_id"]))
    return Run(name, counts, sentences, saved["captions"]["run"] or {})


def scored_run(name: str, scored: Score, record: Mapping[str, Any]) -> Run:
    """The same from what `chair.score` found."""
    order = np.argsort(scored.image_ids)
    return Run(name, scored.counts[order], [scored.sentences[at] for at in order], record)


def seconds(record: Mapping[str, Any]) -> float | None:
    """Of a caption, where the record tells."""
    runs = record.get("runs", [])
    made = sum(each.get("captions", 0) for each in runs)
    taken = sum(each.get("seconds", 0.0) for each in runs)
    return float(taken / made) if made and taken else None
