"""POPE: whether a model says "yes" to objects that an image does not show.

Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023. Questions
are "Is there a dog in the image?", half of them to be answered with yes. An answer is read by the
published rule: only its first sentence (up to the first "."), commas dropped, split at spaces; it
means no where "No", "no" or "not" is one of the words, and yes otherwise.

=========  ====================================================
Accuracy   right answers / questions
Precision  right among the answers that mean yes; 0 where none
Recall     answers that mean yes / questions whose label is yes
F1         harmonic mean of precision and recall
Yes        answers that mean yes / questions
=========  ====================================================
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from revisit.evaluation import EvaluationError
from revisit.evaluation.files import read_json_lines, read_run, sha256, write_json
from revisit.evaluation.results.bootstrap import ratio

METRICS = ("Accuracy", "Precision", "Recall", "F1", "Yes")


def means_yes(answer: str) -> bool:
    """What an answer means, by the published rule."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"}.intersection(words)


def score(labels: Mapping[Any, bool], answers: Mapping[Any, str]) -> dict[str, float]:
    """The metrics of the module's docstring, as fractions of 1.

    Args:
        labels: question id -> whether yes is right.
        answers: question id -> what the model said.

    Raises:
        EvaluationError: no questions, a question without an answer, or an answer to no question.
    """
    if not labels:
        raise EvaluationError("there are no questions to score")
    if lacking := labels.keys() - answers.keys():
        raise EvaluationError(
            f"{len(lacking)} of {len(labels)} questions have no answer "
            f"(question_id {min(lacking, key=str)}, for one)"
        )
    if strangers := answers.keys() - labels.keys():
        raise EvaluationError(
            f"{len(strangers)} answers are to no question (question_id "
            f"{min(strangers, key=str)}, for one): do the two files belong together?"
        )
    return metrics(counts(labels, answers).sum(0))


def counts(labels: Mapping[Any, bool], answers: Mapping[Any, str]) -> NDArray[np.int64]:
    """What the metrics sum, (questions, 5) in the order of `labels`: questions, answers that mean
    yes, labels of yes, answers that mean yes to these, right answers."""
    said = [(means_yes(answers[each]), label) for each, label in labels.items()]
    return np.array([(1, yes, true, yes and true, yes == true) for yes, true in said], np.int64)


def metrics(totals: NDArray[np.int64]) -> dict[str, float]:
    """The metrics of the module's docstring, as fractions of 1, from counts (5,) summed."""
    return {name: float(value) for name, value in zip(METRICS, measure(totals), strict=True)}


def measure(totals: NDArray[np.int64]) -> NDArray[np.float64]:
    """Counts (..., 5) -> metrics (5, ...)."""
    asked, yes, true, found, right = np.moveaxis(totals, -1, 0)
    precision, recall = ratio(found, yes), ratio(found, true)
    f1 = ratio(2 * precision * recall, precision + recall)
    return np.stack([ratio(right, asked), precision, recall, f1, ratio(yes, asked)])


def read_labels(path: Path) -> dict[Any, bool]:
    """Question id -> whether yes is right, from POPE's JSON Lines."""
    labels = _column(path, "label")
    for each, label in labels.items():
        if label not in ("yes", "no"):
            raise EvaluationError(f"{path}, question_id {each}: label {label!r} is not yes or no")
    return {each: label == "yes" for each, label in labels.items()}


def read_answers(path: Path) -> dict[Any, str]:
    """Question id -> answer, from JSON Lines."""
    answers = _column(path, "answer")
    for each, answer in answers.items():
        if not isinstance(answer, str):
            raise EvaluationError(f"{path}, question_id {each}: the answer is not text")
    return answers


def check_questions(run: Any, digest: str, answers: object, questions: object) -> None:
    """Raises `EvaluationError` where the record of a run says that its answers are to other
    questions than those of a file with this sha256."""
    settings = run.get("settings", {}) if isinstance(run, dict) else {}
    if settings.get("questions", digest) != digest:
        raise EvaluationError(
            f"{answers} are answers to other questions than those in {questions}: their run "
            f"asked those of the split {settings.get('split')}, of sha256 "
            f"{settings['questions'][:12]}..., and this file's is {digest[:12]}...; give the file "
            "that was asked, byte by byte"
        )


def _column(path: Path, key: str) -> dict[Any, Any]:
    """Question id -> value of ``key``; the error names the line that lacks one or repeats an id."""
    found: dict[Any, Any] = {}
    for where, entry in read_json_lines(path):
        if not isinstance(entry, dict) or not {"question_id", key} <= entry.keys():
            raise EvaluationError(f"{where} needs the keys 'question_id' and {key!r}")
        question = entry["question_id"]
        if not isinstance(question, int | str):
            raise EvaluationError(f"{where}: question_id {question!r} is no number and no text")
        if question in found:
            raise EvaluationError(f"{where} repeats question_id {question}; keep one")
        found[question] = entry[key]
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="revisit-pope",
        description="Score the answers to POPE's questions: does the model say yes to objects "
        "that are not in the image?",
    )
    add = parser.add_argument
    add(
        "--questions",
        type=Path,
        required=True,
        metavar="JSONL",
        help="POPE's file: question_id, image, text and label (yes or no), one question a line",
    )
    add(
        "--answers",
        type=Path,
        required=True,
        metavar="JSONL",
        help="question_id and answer, one a line",
    )
    add("--save_path", type=Path, metavar="JSON", help="write the metrics and what they are of")
    return parser


def _run(args: argparse.Namespace) -> None:
    inputs = [args.questions.resolve(), args.answers.resolve()]
    if args.save_path and args.save_path.resolve() in inputs:
        raise EvaluationError(f"--save_path {args.save_path} would overwrite an input")
    labels = read_labels(args.questions)
    answers = read_answers(args.answers)
    check_questions(read_run(args.answers), sha256(args.questions), args.answers, args.questions)
    found = score(labels, answers)
    if args.save_path:
        write_json(args.save_path, _saved(args, labels, answers))
    print(f"{len(labels)} questions; percent")
    print("".join(f"{name:>11}" for name in METRICS))
    print("".join(f"{100 * found[name]:11.1f}" for name in METRICS))


def _saved(
    args: argparse.Namespace, labels: Mapping[Any, bool], answers: Mapping[Any, str]
) -> dict[str, Any]:
    files = {
        name: {"file": str(path), "sha256": sha256(path)}
        for name, path in (("questions", args.questions), ("answers", args.answers))
    }
    return {
        "overall_metrics": score(labels, answers),
        "count": len(labels),
        "questions": files["questions"],
        "answers": files["answers"] | {"run": read_run(args.answers)},
        "answered": [
            {"question_id": each, "label": "yes" if label else "no", "answer": answers[each]}
            for each, label in labels.items()
        ],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The console script `revisit-pope`. Returns 0, or 2 where the input is bad."""
    args = _parser().parse_args(argv)
    try:
        _run(args)
    except EvaluationError as error:
        print(f"revisit-pope: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
