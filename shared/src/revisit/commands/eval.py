"""`revisit-eval chair|pope --model MODEL ...`: the evaluation of any model of a stock Transformers.

The model is loaded by `AutoModelForImageTextToText` and asked by its processor and chat template;
or it is served by vLLM, here or elsewhere (`--engine`).
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from revisit.commands.engines import choose
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
        "`revisit-eval pope --help` have the other settings.",
    )
    parser.add_argument("benchmark", choices=sorted(PROGRAMS))
    choose.add_flags(parser)
    benchmark = parser.parse_args(given[:1]).benchmark
    chosen = argparse.ArgumentParser(prog=parser.prog, add_help=False, allow_abbrev=False)
    choose.add_flags(chosen)
    told, rest = chosen.parse_known_args(given[1:])
    if (told.engine == "openai") != (told.base_url is not None):
        parser.error("--base_url and --engine openai: one needs the other")
    program, description = PROGRAMS[benchmark]
    from revisit.transformers.checkpoint import own_dtype

    served = told.engine == "openai"
    return program(
        partial(_load, told.engine, told.base_url),
        description,
        results=None,
        own_dtype=(lambda _: choose.THE_SERVERS) if served else own_dtype,
        defaults={"dtype": "auto"} if served else None,
        argv=rest,
        program=f"revisit-eval {benchmark}",
    )


def _load(engine: str, base_url: str | None, args: argparse.Namespace) -> "Captioner":
    if engine != "transformers":
        return choose.load(args, engine, base_url)
    from revisit.commands.engines.transformers import (
        StockCaptioner,  # once the arguments are checked
    )

    return StockCaptioner(args)


if __name__ == "__main__":
    sys.exit(main())
