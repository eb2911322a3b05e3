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

from revisit.evaluation import EvaluationError
from revisit.evaluation.files import read_json_lines, sha256, write_json

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
    said = {each: means_yes(answers[each]) for each in labels}
    yes, true = sum(said.values()), sum(labels.values())
    found = sum(said[each] and labels[each] for each in labels)
    right = sum(said[each] == labels[each] for each in labels)
    precision, recall = found / max(1, yes), found / max(1, true)
    f1 = 2 * precision * recall / (precision + recall) if found else 0.0
    values = (right / len(labels), precision, recall, f1, yes / len(labels))
    return dict(zip(METRICS, values, strict=True))


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
    inputs = {"questions": args.questions, "answers": args.answers}
    if args.save_path and args.save_path.resolve() in [path.resolve() for path in inputs.values()]:
        raise EvaluationError(f"--save_path {args.save_path} would overwrite an input")
    labels = read_labels(args.questions)
    metrics = score(labels, read_answers(args.answers))
    if args.save_path:
        files = {name: {"file": str(path), "sha256": sha256(path)} for name, path in inputs.items()}
        write_json(args.save_path, {"overall_metrics": metrics, "count": len(labels)} | files)
    print(f"{len(labels)} questions; percent")
    print("".join(f"{name:>11}" for name in METRICS))
    print("".join(f"{100 * metrics[name]:11.1f}" for name in METRICS))


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
