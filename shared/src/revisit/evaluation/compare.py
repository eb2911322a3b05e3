"""One table of several results of `revisit-chair`: decoders, settings or models on the same images.

The first result is the baseline; the others are told with the paired bootstrap interval of their
difference to it. What another sample of images, another length of captions or another scorer would
move more than a decoder does (docs/evaluation.md) has to be the same in all of them.
"""

import argparse
import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from revisit.evaluation import EvaluationError
from revisit.evaluation.chair import METRICS, metrics, paired_bootstrap
from revisit.evaluation.files import read_json

# What a run was told to write, of its record; a result without one says nothing of it.
SAME = ("question", "max_new_tokens")


class Result(NamedTuple):
    """A file of `revisit-chair --save_path`."""

    file: str
    name: str
    counts: NDArray[np.int64]
    """(images, 7), in the order of the image ids."""
    images: list[int]
    repeats: float
    """The part of the captions that name an object twice."""
    conditions: dict[str, Any]
    """What has to be the same in all results."""


def read_result(path: Path) -> Result:
    """A result as it was saved.

    Raises `EvaluationError` for a file that `revisit-chair` did not write.
    """
    saved = read_json(path)
    try:
        sentences = sorted(saved["sentences"], key=lambda each: int(each["image_id"]))
        counts = np.array([_counts(each) for each in sentences], np.int64)
        twice = [len(set(each["node_words"])) < len(each["node_words"]) for each in sentences]
        images = [each["image_id"] for each in sentences]
        run = (saved["captions"]["run"] or {}).get("settings", {})
        conditions = {
            "images": images,
            "the images' objects": [each["gt_objects"] for each in sentences],
            "lemmatizer": saved["settings"]["lemmatizer"],
            **{name: run[name] for name in SAME if name in run},
        }
        repeats = sum(twice) / len(twice)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise EvaluationError(
            f"{path} is not a result of `revisit-chair --save_path` ({error!r}): captions are "
            "scored by it first"
        ) from error
    return Result(str(path), name_of(run) or path.stem, counts, images, repeats, conditions)


def _counts(sentence: Mapping[str, Any]) -> tuple[int, ...]:
    """What `revisit.evaluation.chair` counts of a caption, from what it saved."""
    wrong, truth = sentence["hallucinated"], sentence["gt_objects"]
    found = set(truth).intersection(sentence["node_words"])
    words = round(100 * sentence["metrics"]["Len"])
    return 1, bool(wrong), len(wrong), len(sentence["words"]), len(found), len(truth), words


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


def check_alike(results: Sequence[Result]) -> None:
    """Raises `EvaluationError` where results differ in what moves the numbers by itself."""
    first = results[0]
    for other in results[1:]:
        for condition in (*first.conditions, *other.conditions):
            if first.conditions.get(condition) != other.conditions.get(condition):
                raise EvaluationError(
                    f"{first.file} and {other.file} cannot be compared: "
                    f"{_unlike(condition, first, other)}"
                )


def _unlike(condition: str, first: Result, other: Result) -> str:
    mine, theirs = (each.conditions.get(condition) for each in (first, other))
    if condition == "images":
        alone = set(first.images) ^ set(other.images)
        return (
            f"{len(alone)} images are in one of them only (image id {min(alone)}, for one); "
            "caption the same sample: the same --seed and --num_eval_samples"
        )
    if condition == "the images' objects":
        return "they were scored against other ground truths; score both with the same annotations"
    return f"{condition} is {mine!r} in the first and {theirs!r} in the second"


HEADER = ["", *METRICS, "twice", *(f"{name} - baseline" for name in METRICS)]


def rows(results: Sequence[Result], resamples: int = 10_000) -> list[list[str]]:
    """The table below `HEADER`: percent, Len in words, differences with their 95% intervals."""
    table = []
    for number, result in enumerate(results):
        values = [*metrics(result.counts.sum(0)).values(), result.repeats]
        cells = [result.name, *(f"{100 * value:.1f}" for value in values)]
        if number:
            gaps = paired_bootstrap(results[0].counts, result.counts, resamples)
            cells += [_interval(gaps[name]) for name in METRICS]
        table.append(cells + [""] * (len(HEADER) - len(cells)))
    return table


def _interval(gap: Mapping[str, float]) -> str:
    difference, low, high = (100 * gap[name] for name in ("difference", "low", "high"))
    return f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]"


def markdown(table: Sequence[Sequence[str]]) -> str:
    """The table in Markdown, its columns lined up."""
    lines = [HEADER, *table]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(
        1, ["-" * width for width in widths[:1]] + ["-" * (w - 1) + ":" for w in widths[1:]]
    )
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def as_csv(table: Sequence[Sequence[str]]) -> str:
    """The table as comma-separated values."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEADER, *table])
    return text.getvalue()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="revisit-compare",
        description="One table of results of revisit-chair (chair.json): percent, Len in words, "
        "captions that name an object twice, and the 95%% intervals of the differences to the "
        "first (bootstrap over images). Results on other images, with captions of another length "
        "or by another scorer are refused.",
    )
    add = parser.add_argument
    add("results", type=Path, nargs="+", metavar="RESULT", help="the first is the baseline")
    add("--csv", type=Path, metavar="FILE", help="write the table as comma-separated values too")
    add(
        "--report",
        type=Path,
        metavar="HTML",
        help="write a page too: the table, the images that changed most, and plots",
    )
    return parser


def _run(args: argparse.Namespace) -> None:
    if args.csv and args.csv.resolve() in [each.resolve() for each in args.results]:
        raise EvaluationError(f"--csv {args.csv} would overwrite a result")
    results = [read_result(path) for path in args.results]
    check_alike(results)
    table = rows(results)
    print(f"{len(results[0].images)} images\n\n{markdown(table)}")
    if args.csv:
        try:
            args.csv.write_text(as_csv(table), encoding="utf-8")
        except OSError as error:
            raise EvaluationError(f"cannot write {args.csv}: {error.strerror}") from error
    if args.report:
        from revisit.evaluation.pictures.report import compare_report

        compare_report(args.report, args.results, [each.name for each in results])


def main(argv: Sequence[str] | None = None) -> int:
    """The console script `revisit-compare`. Returns 0, or 2 where the input is bad."""
    args = _parser().parse_args(argv)
    try:
        _run(args)
    except EvaluationError as error:
        print(f"revisit-compare: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
