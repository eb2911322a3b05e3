"""One table of several results of `revisit-chair` or `revisit-pope`: decoders, settings, models.

The first result is the baseline; the others are told with the paired bootstrap interval of their
difference to it, and with what they cost beside it. What another sample of images, another length
of captions or another scorer would move more than a decoder does (docs/evaluation.md) has to be the
same in all of them. Results that differ by their seed alone are one row: mean and standard
deviation over the samples.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from revisit.evaluation import EvaluationError
from revisit.evaluation.pictures.tradeoff import write_tradeoff
from revisit.evaluation.results.tables import as_csv, compare, markdown


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="revisit-compare",
        description="One table of results of revisit-chair (chair.json) or of revisit-pope: "
        "percent, Len in words, captions that name an object twice; seconds a token over the "
        "baseline's and peak memory, where both were measured alike; the 95%% intervals of the "
        "differences to the baseline (bootstrap over images, or questions). Results that differ by "
        "their seed alone are one row: mean and standard deviation. Results on other images, with "
        "captions of another length or by another scorer are refused.",
    )
    add = parser.add_argument
    add("results", type=Path, nargs="+", metavar="RESULT", help="the first is the baseline")
    add("--csv", type=Path, metavar="FILE", help="write the table as comma-separated values too")
    add(
        "--plot",
        type=Path,
        metavar="PNG",
        help="draw quality against cost (needs matplotlib)",
    )
    add(
        "--report",
        type=Path,
        metavar="HTML",
        help="write a page too: the table, the images that changed most, and plots",
    )
    return parser


def _run(args: argparse.Namespace) -> None:
    inputs = [each.resolve() for each in args.results]
    for flag in ("csv", "plot", "report"):
        path = getattr(args, flag)
        if path and path.resolve() in inputs:
            raise EvaluationError(f"--{flag} {path} would overwrite a result")
    found = compare(args.results)
    print(f"{found.title}\n\n{markdown(found.rows, found.columns)}")
    if args.csv:
        try:
            args.csv.write_text(as_csv(found.rows, found.columns), encoding="utf-8")
        except OSError as error:
            raise EvaluationError(f"cannot write {args.csv}: {error.strerror}") from error
    if args.plot:
        write_tradeoff(found.rows, found.columns, args.plot)
    if args.report:
        from revisit.evaluation.pictures.report import compare_report

        compare_report(args.report, args.results, [each.name for each in found.results])


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
