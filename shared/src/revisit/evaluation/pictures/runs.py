"""Scored captions, as a report takes them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks.chair import Score
from revisit.evaluation.files import read_json

# Of each start of a run: what moves its time besides the decoder.
_PLACE = ("device", "processor", "threads", "processes", "batch_size")


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
    """A result of `revisit score chair --save_path`; raises `EvaluationError` for another file."""
    saved = read_json(path)
    try:
        sentences = sorted(saved["sentences"], key=lambda each: int(each["image_id"]))
        if not sentences:
            raise ValueError("no captions")
        counts = np.array([_counts(each) for each in sentences], np.int64)
        record = saved["captions"]["run"] or {}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EvaluationError(
            f"{path} is not a result of `revisit score chair --save_path` ({error!r}): a report "
            "shows captions that were scored by it"
        ) from error
    return Run(name, counts, sentences, record)


def _counts(sentence: Mapping[str, Any]) -> tuple[int, ...]:
    """What `chair` counts of a caption, from what it saved."""
    wrong, truth = sentence["hallucinated"], sentence["gt_objects"]
    found = set(truth).intersection(sentence["node_words"])
    words = round(100 * sentence["metrics"]["Len"])
    return 1, bool(wrong), len(wrong), len(sentence["words"]), len(found), len(truth), words


def scored_run(name: str, scored: Score, record: Mapping[str, Any]) -> Run:
    """The same from what `chair.score` found."""
    order = np.argsort(scored.image_ids)
    return Run(name, scored.counts[order], [scored.sentences[at] for at in order], record)


def check_same_images(runs: Sequence[Run]) -> None:
    """Raises `EvaluationError` where runs captioned other images than the first."""
    images = [[int(each["image_id"]) for each in run.sentences] for run in runs]
    for run, own in zip(runs, images, strict=True):
        if own != images[0]:
            raise EvaluationError(
                f"a report shows captions of the same images, and those of {runs[0].name!r} and "
                f"of {run.name!r} are of others: give results of one --seed"
            )


class Times(NamedTuple):
    """How long runs took, relative to the first."""

    of: str  # what each time is of
    relative: list[float]


def times(runs: Sequence[Run]) -> Times | str:
    """Of the runs of a report; or why they cannot be told."""
    starts = [[each for each in run.record.get("runs", []) if each.get("seconds")] for run in runs]
    for number, own in enumerate(starts, 1):
        if not own:
            return f"nothing tells how long run {number} took"
    places = [{tuple(each.get(name) for name in _PLACE) for each in own} for own in starts]
    if any(each != places[0] for each in places):
        return "the runs were on other devices or with other batch sizes, so times do not compare"
    told = all(each.get("tokens") for own in starts for each in own)
    unit, of = ("tokens", "a token") if told else ("captions", "a caption")
    taken = [sum(each["seconds"] for each in own) for own in starts]
    made = [sum(each.get(unit, 0) for each in own) for own in starts]
    if not all(made):
        return "the records do not count captions"
    each = [one / many for one, many in zip(taken, made, strict=True)]
    return Times(of, [one / each[0] for one in each])
