"""`revisit-eval chair|pope --model MODEL ...`: a benchmark, by any decoder and engine.

A family's script says how its model is loaded::

    FAMILY = Family(load=LlavaCaptioner, own_dtype=own_dtype, results=Path("results/llava"))

    if __name__ == "__main__":
        raise SystemExit(main(["chair", *sys.argv[1:]], FAMILY))
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revisit.commands import eval_flags
from revisit.config import DecoderConfig, NamedLayers
from revisit.evaluation import EvaluationError
from revisit.evaluation.answering import Load
from revisit.evaluation.evaluate import evaluate
from revisit.evaluation.run import Dtype, Run
from revisit.evaluation.shards import this_process
from revisit.evaluation.sweep import combinations


@dataclass(frozen=True)
class Family:
    """What a family's programs have of their own.

    Args:
        load: called once, after everything that can be checked without the model has been.
        own_dtype: from `model_path`, the dtype that `--dtype auto` means. Raises as `load` does.
        results: the folder that gets a folder for each setting, where `--output_path` is left out;
            None: one of the model's name in results/ of the working folder.
        gpu_dtype: what `--dtype` is on a GPU where it is left out.
        layers: what `--early_exit_layers` is where it is left out.
    """

    load: Load
    own_dtype: Callable[[str], str]
    results: Path | None = None
    gpu_dtype: Dtype = "auto"
    layers: NamedLayers = "last"


def main(
    argv: Sequence[str] | None = None, family: Family | None = None, program: str = "revisit-eval"
) -> int:
    """Ask a model what a benchmark asks, and score the answers.

    Args:
        argv: a benchmark's name and flags.
        family: None evaluates any model by its processor and chat template, or on an engine.

    Returns:
        The exit status: see `evaluate`; 2 for bad arguments or input, 130 on Ctrl-C. Whatever it
        is, the answers made so far are in the file, and the same command goes on from there.
    """
    family = family or _any_model()
    flags = eval_flags.parse(sys.argv[1:] if argv is None else argv, program, family.layers)
    with logging_to_stderr():
        try:
            return evaluate(runs_of(flags, family), family.load, family.own_dtype)
        except EvaluationError as error:
            print(f"{flags.program}: error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted; the same command continues", file=sys.stderr)
            return 130


def runs_of(flags: eval_flags.Flags, family: Family) -> list[Run]:
    """The runs that a command line asks for; one, where nothing is swept.

    Raises `EvaluationError` where flags do not fit together or do not fit this machine.
    """
    import torch

    process = this_process(os.environ)
    gpus = torch.cuda.device_count()
    decoders: Mapping[str, DecoderConfig | None] = flags.decoders()
    run = Run(
        model_path=flags.model_path,
        benchmark=flags.benchmark(),
        decoder=decoders[flags.decoder],
        generation=flags.generation(),
        place=flags.place().settled(gpus=gpus, gpu_dtype=family.gpu_dtype, process=process),
        process=process,
        seed=flags.seed,
    )
    if not flags.sweep:
        return [run.writing_to(flags.output_path, family.results)]
    if flags.output_path is not None and flags.output_path.suffix in (".jsonl", ".json"):
        raise EvaluationError(f"--output_path {flags.output_path}: a sweep needs a folder")
    results = flags.output_path or family.results
    return [each.writing_to(None, results) for each in combinations(run, flags.sweep, decoders)]


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Show what is logged: a warning by that word, other messages as they are."""

    class Format(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            text = super().format(record)
            return f"WARNING: {text}" if record.levelno == logging.WARNING else text

    logger, handler = logging.getLogger("revisit"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(Format())
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _any_model() -> Family:
    def load(run: Run) -> Any:
        from revisit.commands.engines.choose import load

        return load(run)

    def own_dtype(model: str) -> str:
        from revisit.transformers.checkpoint import own_dtype

        return own_dtype(model)

    return Family(load, own_dtype)


if __name__ == "__main__":
    sys.exit(main())
