"""The program that asks a model POPE's questions and scores its answers, for every model family.

A family's script calls `main` as it calls that of `revisit.evaluation.captioning`, with the same
captioner. Here are the question files and the order; `revisit.evaluation.answering` has the rest.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from revisit.evaluation import EvaluationError
from revisit.evaluation.answering import (
    Captioner,
    Load,
    Outcome,
    Task,
    answer_tasks,
    common_settings,
    exit_status,
    settle_dtype,
)
from revisit.evaluation.benchmarks import pope
from revisit.evaluation.captions import ANSWERS
from revisit.evaluation.files import read_json_lines, sha256
from revisit.evaluation.flags import question_parser, settle
from revisit.evaluation.parts import open_store
from revisit.evaluation.sweep import combinations, loaded_once, run_all

ONE_WORD = " Please answer this question with one word."
"""What stands behind a question in the published code of VCD; in POPE's own nothing does."""


def main(
    load: Load,
    description: str,
    *,
    results: Path | None,
    own_dtype: Callable[[str], str],
    gpu_dtype: str = "auto",
    defaults: Mapping[str, Any] | None = None,
    argv: Sequence[str] | None = None,
    program: str | None = None,
) -> int:
    """Ask the questions that the command line says, and score the answers.

    Args and exit status are those of `revisit.evaluation.captioning.main`; the model is loaded once
    for all question files. It is 2 also where a file cannot be scored, since images are missing.
    """
    import torch

    parser = question_parser(description, gpu_dtype)
    parser.prog = program or parser.prog
    parser.set_defaults(**(defaults or {}))
    given = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(given)

    def run() -> int:
        if args.output_path is not None and args.output_path.suffix in (".jsonl", ".json"):
            raise EvaluationError(
                f"--output_path {args.output_path}: each of the question files gets a folder of "
                "its own, so give a folder"
            )
        prefix = "pope-one-word-" if args.one_word else "pope-"
        runs = combinations(parser, given) if args.sweep else [args]
        for each in runs:
            folder = args.output_path or results
            settle(each, folder, gpu_dtype, torch.cuda.device_count(), prefix)
        return run_all(runs, partial(_run, loaded_once(load, runs), own_dtype), _scores)

    return exit_status(parser.prog, run)


def question_file(folder: Path, split: str) -> Path:
    """POPE's file of a split, by its published name `coco_pope_random.json` or `random.jsonl`.

    Raises `EvaluationError` where there is none.
    """
    names = (f"coco_pope_{split}.json", f"{split}.jsonl")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise EvaluationError(
        f"--pope_path {folder} has no {' or '.join(names)}: prerequisites/download_pope.py "
        "brings the published files"
    )


def read_tasks(path: Path, behind: str = "") -> list[Task]:
    """The questions of a file of POPE's, in its order, each with `behind` at its end.

    Raises `EvaluationError` for a line that is no question, and as `pope.read_labels`.
    """
    pope.read_labels(path)  # what scoring needs comes first
    tasks = []
    for where, entry in read_json_lines(path):
        told = [entry.get(name) for name in ("image", "text")]
        if not all(isinstance(value, str) and value for value in told):
            raise EvaluationError(f"{where} needs the keys 'image' and 'text', both text")
        tasks.append(Task(entry["question_id"], told[0], told[1] + behind))
    if not tasks:
        raise EvaluationError(f"{path} holds no questions")
    return tasks


def _run(load: Load, own_dtype: Callable[[str], str], args: argparse.Namespace) -> Outcome:
    files = {split: question_file(args.pope_path, split) for split in dict.fromkeys(args.splits)}
    behind = ONE_WORD if args.one_word else ""
    tasks = {split: read_tasks(file, behind) for split, file in files.items()}
    for split, asked in tasks.items():
        _check_images(asked, files[split], args.data_path)
    settle_dtype(args, own_dtype)
    common = common_settings(args) | {"question": f"<text>{behind}"}
    scored, whole = 0, False
    for split, file in files.items():
        settings = common | {"split": split, "questions": sha256(file)}
        path = _scores(args)[split].with_name("answers.jsonl")
        status, whole = _ask(partial(load, args), tasks[split], settings, path, args)
        if status and not whole:
            return Outcome(status, whole)
        if whole:
            scored = max(scored, status, _score(file, path))
    return Outcome(scored, whole)


def _scores(args: argparse.Namespace) -> dict[str, Path]:
    """The result of each question file."""
    return {split: args.output_path / split / "pope.json" for split in dict.fromkeys(args.splits)}


def _ask(
    load: Callable[[], Captioner],
    tasks: Sequence[Task],
    settings: Mapping[str, Any],
    path: Path,
    args: argparse.Namespace,
) -> Outcome:
    with open_store(path, ANSWERS, args.process) as store:
        store.agree("settings", settings)
        return answer_tasks(load, tasks, store, args)


def _score(questions: Path, answers: Path) -> int:
    return pope.main(
        [
            *("--questions", str(questions), "--answers", str(answers)),
            *("--save_path", str(answers.with_name("pope.json"))),
        ]
    )


def _check_images(tasks: Sequence[Task], questions: Path, folder: Path) -> None:
    """`EvaluationError` unless some image of the questions is in the folder: others are reported
    one by one when their turn comes."""
    if not folder.is_dir():
        raise EvaluationError(f"--data_path {folder} is not a folder of images")
    if not any((folder / task.image).exists() for task in tasks):
        raise EvaluationError(
            f"--data_path {folder} holds none of the images that {questions} asks about "
            f"({tasks[0].image}, for one)"
        )
