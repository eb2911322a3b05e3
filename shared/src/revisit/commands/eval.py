"""`revisit-eval chair|pope --model MODEL ...`: the evaluation of any model of a stock Transformers.

The model is loaded by `AutoModelForImageTextToText` and asked by its processor and chat template.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from revisit.evaluation import captioning, polling

if TYPE_CHECKING:
    from revisit.evaluation.answering import Captioner

PROGRAMS = {
    "chair": (captioning.main, "Caption COCO images with a model of Transformers."),
    "pope": (polling.main, "Ask a model of Transformers POPE's questions."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The console script `revisit-eval`. Returns the exit status of its program."""
    given = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="revisit-eval",
        description="Evaluate any model of Transformers that reads images: caption COCO images and "
        "score the captions by CHAIR, or ask POPE's questions. `revisit-eval chair --help` and "
        "`revisit-eval pope --help` have the settings.",
    )
    parser.add_argument("benchmark", choices=sorted(PROGRAMS))
    benchmark = parser.parse_args(given[:1]).benchmark
    program, description = PROGRAMS[benchmark]
    from revisit.transformers.checkpoint import own_dtype

    return program(
        _load,
        description,
        results=None,
        own_dtype=own_dtype,
        argv=given[1:],
        program=f"revisit-eval {benchmark}",
    )


def _load(args: argparse.Namespace) -> "Captioner":
    from revisit.commands.stock import StockCaptioner  # once the arguments are checked

    return StockCaptioner(args)


if __name__ == "__main__":
    sys.exit(main())
