"""Results as `revisit-chair` and `revisit-pope` saved them, read to be compared."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks import chair, pope
from revisit.evaluation.files import read_json
from revisit.evaluation.results.bootstrap import Measure, ratio


class Kind(NamedTuple):
    """A way to score, and what it counts."""

    program: str
    things: str
    metrics: tuple[str, ...]
    measure: Measure


class Result(NamedTuple):
    """A file of `--save_path`."""

    file: str
    name: str
    kind: Kind
    counts: NDArray[np.int64]
    """(things, columns), in the order of their ids."""
    things: list[Any]
    """The ids of the images or questions."""
    truth: dict[str, Any]
    """What they were scored against, by how a message calls it."""
    conditions: dict[str, Any]
    """What has to be the same in all results."""
    settings: dict[str, Any]
    """Of the run that made what was scored; empty where nothing is known of it."""
    runs: list[dict[str, Any]]
    """What each start of that run took."""


def read_result(path: Path) -> Result:
    """A result as it was saved.

    Raises `EvaluationError` for a file that neither program wrote.
    """
    saved = read_json(path)
    try:
        read = _read_chair if "sentences" in saved else _read_pope
        result = read(saved)
        settings = result.settings
        conditions = {name: settings[name] for name in chair.SAME if name in settings}
        return result._replace(
            file=str(path),
            name=name_of(settings) or path.stem,
            conditions=result.conditions | conditions,
        )
    except EvaluationError as error:
        raise EvaluationError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EvaluationError(
            f"{path} is not a result of `revisit-chair --save_path` or `revisit-pope --save_path` "
            f"({error!r}): captions and answers are scored by them first"
        ) from error


def _chair_measure(totals: NDArray[Any]) -> NDArray[np.float64]:
    """Counts (..., 8), those of `chair` and captions that name an object twice -> (6, ...)."""
    twice = ratio(totals[..., -1], totals[..., 0])
    return np.concatenate([chair.measure(totals[..., :-1]), twice[None]])


CHAIR = Kind("revisit-chair", "images", (*chair.METRICS, "twice"), _chair_measure)
POPE = Kind("revisit-pope", "questions", pope.METRICS, pope.measure)


def _read_chair(saved: Mapping[str, Any]) -> Result:
    sentences = sorted(saved["sentences"], key=lambda each: int(each["image_id"]))
    if not sentences:
        raise ValueError("no captions")
    images = [each["image_id"] for each in sentences]
    run = saved["captions"]["run"] or {}
    source = saved["settings"].get("ground_truth", {}).get("source")
    chair.check_run(run, [int(image) for image in images], source, "what was scored")
    return Result(
        file="",
        name="",
        kind=CHAIR,
        counts=np.array([_counts(each) for each in sentences], np.int64),
        things=images,
        truth={"the images' objects": [each["gt_objects"] for each in sentences]},
        conditions={"lemmatizer": saved["settings"]["lemmatizer"]},
        settings=run.get("settings", {}),
        runs=run.get("runs", []),
    )


def _counts(sentence: Mapping[str, Any]) -> tuple[int, ...]:
    """What `chair` counts of a caption, and whether it names an object twice, from what it saved.

    (8,): the last is 1 where it does.
    """
    wrong, truth, named = (sentence[key] for key in ("hallucinated", "gt_objects", "node_words"))
    words = round(100 * sentence["metrics"]["Len"])
    found = set(truth).intersection(named)
    said = (bool(wrong), len(wrong), len(sentence["words"]), len(found), len(truth), words)
    return 1, *said, len(set(named)) < len(named)


def _read_pope(saved: Mapping[str, Any]) -> Result:
    answered = sorted(saved["answered"], key=lambda each: str(each["question_id"]))
    if not answered:
        raise ValueError("no questions")
    labels = {each["question_id"]: each["label"] == "yes" for each in answered}
    answers = {each["question_id"]: each["answer"] for each in answered}
    run = saved["answers"]["run"] or {}
    questions = saved["questions"]
    pope.check_questions(run, questions["sha256"], "what was scored", questions.get("file"))
    return Result(
        file="",
        name="",
        kind=POPE,
        counts=pope.counts(labels, answers),
        things=list(labels),
        truth={"the question files": saved["questions"]["sha256"]},
        conditions={},
        settings=run.get("settings", {}),
        runs=run.get("runs", []),
    )


def name_of(settings: Mapping[str, Any]) -> str:
    """What a run's settings call it: its model and how it decoded; empty where nothing is told."""
    if not settings:
        return ""
    decoder = settings.get("decoder") or ("revisit" if settings.get("use_revisit") else "greedy")
    if settings.get("do_sample") and decoder == "greedy":
        decoder = "sampling"
    told = {
        name.removeprefix(f"{decoder}_"): value
        for name, value in settings.items()
        if name.startswith(f"{decoder}_") and "version" not in name
    }
    told |= {
        name: settings[name] for name in ("early_exit_layers", "relative_top") if name in settings
    }
    chosen = ", ".join(f"{name} {value}" for name, value in told.items())
    model = settings.get("model", {}).get("name", "")
    return " ".join(filter(None, [model, decoder, f"({chosen})" if chosen else ""]))
