"""Checks that benchmarks share: of flags, images, questions and answers."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from revisit.evaluation import EvaluationError
from revisit.evaluation.answer_files import Form, Key, read_record
from revisit.evaluation.benchmarks.benchmark import Task
from revisit.evaluation.files import sha256


def check_whole(name: str, value: int, least: int) -> None:
    """Raises `EvaluationError` where a flag's value is below `least`."""
    if value < least:
        raise EvaluationError(f"--{name} {value}: say a whole number >= {least}")


def check_images(tasks: Sequence[Task], folder: Path, asked_by: Path) -> None:
    """Raises `EvaluationError` where an image that is asked about is not in the folder."""
    if not folder.is_dir():
        raise EvaluationError(f"--data_path {folder} is not a folder of images")
    names = dict.fromkeys(task.image for task in tasks if task.image is not None)
    if lacking := [name for name in names if not (folder / name).exists()]:
        raise EvaluationError(
            f"--data_path {folder} lacks {len(lacking)} of the {len(names)} images that {asked_by} "
            f"asks about ({lacking[0]}, for one)"
        )


def check_answered(questions: Collection[Key], answers: Collection[Key], form: Form) -> None:
    """Raises `EvaluationError` unless there are questions, and each has an answer, and each answer
    a question."""
    if not questions:
        raise EvaluationError("there are no questions to score")
    lacking, strangers = set(questions) - set(answers), set(answers) - set(questions)
    if lacking:
        raise EvaluationError(
            f"{len(lacking)} of {len(questions)} questions have no answer "
            f"({form.shown(min(lacking, key=str))}, for one)"
        )
    if strangers:
        raise EvaluationError(
            f"{len(strangers)} answers are to no question ({form.shown(min(strangers, key=str))}, "
            "for one): do the two files belong together?"
        )


def check_asked(record: Mapping[str, Any], digest: str, answers: object, questions: object) -> None:
    """Raises `EvaluationError` where the record of a run says that it asked other questions than
    those with this sha256."""
    settings = record.get("settings", {})
    if settings.get("questions", digest) != digest:
        split = f"of the split {settings['split']}, " if "split" in settings else ""
        raise EvaluationError(
            f"{answers} are answers to other questions than those in {questions}: their run "
            f"asked those {split}of sha256 {settings['questions'][:12]}..., and these are of "
            f"{digest[:12]}...; give the questions that were asked, byte by byte"
        )


def answers_source(answers: Path, questions: Path, digest: str) -> dict[str, Any]:
    """A scored file of answers as a result keeps it: its name, sha256, and the record of its run.

    Raises `EvaluationError` where the run asked other questions than those with this sha256.
    """
    record = read_record(answers)
    check_asked(record, digest, answers, questions)
    return {"file": str(answers), "sha256": sha256(answers), "run": record or None}
