"""`revisit eval chair|pope --model MODEL ...`: a benchmark, by any decoder and engine.

A family's script says how its model is loaded::

    FAMILY = Family(load=LlavaCaptioner, own_dtype=own_dtype, results=Path("results/llava"))

    if __name__ == "__main__":
        raise SystemExit(main(["chair", *sys.argv[1:]], FAMILY, Path(__file__).name))
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from revisit.commands.flags import DECODERS, FLATTENED, decoder_flags, new_app, to_config
from revisit.commands.main import RESUME
from revisit.commands.main import run as run_app
from revisit.config import DecoderConfig, NamedLayers
from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks.benchmark import Benchmark
from revisit.evaluation.benchmarks.registry import BENCHMARKS
from revisit.evaluation.process import this_process
from revisit.evaluation.run import Dtype, Generation, Place, Run
from revisit.evaluation.sweep import combinations

if TYPE_CHECKING:  # loaded once the flags are checked
    from revisit.evaluation.captioner import Captioner, Load

    Name = str
else:
    Name = Literal[("greedy", *DECODERS)]


@dataclass(frozen=True)
class Family:
    """How the models of a family are loaded, and its defaults.

    Args:
        load: called once, after everything that can be checked without the model has been; see
            `revisit.evaluation.captioner.Load`.
        own_dtype: from `model_path`, the dtype that `--dtype auto` means. Raises as `load` does.
        results: without `--output_path`, the folder that gets a folder for each setting; None:
            results/MODEL in the working folder.
        gpu_dtype: the default of `--dtype` on a GPU.
        layers: the default of `--early_exit_layers`.
    """

    load: "Load"
    own_dtype: Callable[[str], str]
    results: Path | None = None
    gpu_dtype: Dtype = "auto"
    layers: NamedLayers = "last"


def main(
    argv: Sequence[str] | None = None, family: Family | None = None, program: str = "revisit eval"
) -> int:
    """Ask a model what a benchmark asks, and score the answers.

    Args:
        argv: a benchmark's name and flags.
        family: None evaluates any model by its processor and chat template, or on an engine.

    Returns:
        The exit status: that of `revisit.evaluation.evaluate.evaluate`; 2 for bad arguments or
        input, 130 on Ctrl-C. Whatever it is, the answers made so far are in the file, and the same
        command goes on from there.
    """
    argv = sys.argv[1:] if argv is None else argv
    return run_app(new_eval(family, program), argv, RESUME)


def run_of(argv: Sequence[str], family: Family) -> Run:
    """The run of a command line without a sweep."""
    found: list[Run] = []

    def keep(runs: Sequence[Run], family: Family, dry_run: bool) -> int:
        found.extend(runs)
        return 0

    run_app(new_eval(family, then=keep), argv)
    return found[0]


def new_eval(
    family: Family | None = None, program: str = "eval", then: Callable[..., int] | None = None
) -> App:
    """The command, with a subcommand for each benchmark, which calls `then(runs, family, dry_run)`;
    None evaluates."""
    app = new_app(program, "Ask a model what a benchmark asks, and score the answers.")
    family, then = family or _any_model(), then or _evaluate
    decoders = decoder_flags(DECODERS, {"revisit_layers": family.layers})
    for name, kind in BENCHMARKS.items():
        app.command(_command(kind, decoders, family, then), name=name)
    return app


def _command(
    kind: type[Benchmark], decoders: type, family: Family, then: Callable[..., int]
) -> Callable[..., int]:
    """The subcommand of a benchmark, whose flags are the fields of the dataclasses."""
    longest = ("max_new_tokens", int, field(default=kind.max_new_tokens))
    generations = make_dataclass(
        "Generation", [longest], bases=(Generation,), frozen=True, kw_only=True
    )
    generations.__doc__ = Generation.__doc__
    generations.__module__ = __name__  # of a class of `types` cyclopts takes no fields
    with_defaults = generations(), Place(), decoders()

    def command(
        *,
        benchmark: Annotated[kind, Parameter(name="*", consume_multiple=True)],  # type: ignore[valid-type]
        model_path: Annotated[
            str,
            Parameter(
                name=("--model_path", "--model"),
                help="folder of the model, its hub id, or its name on a server",
            ),
        ],
        decoder: Annotated[
            Name, Parameter(help="what decodes; --use_revisit is --decoder revisit")
        ] = "greedy",
        output_path: Annotated[
            Path | None,
            Parameter(
                help="folder of the answers, or a captions file (default: a folder named by "
                "decoding and seed, in the folder of results)"
            ),
        ] = None,
        seed: Annotated[int, Parameter(help="of the sample of images, and of sampling")] = 42,
        sweep: Annotated[
            tuple[str, ...],
            Parameter(
                consume_multiple=True,
                metavar="NAME=VALUE,VALUE",
                help="run every combination with one model, greedy decoding first, each in its "
                "folder, and print one table: settings of the decoder, seed, decoder; layers as "
                "0-10-20",
            ),
        ] = (),
        dry_run: Annotated[bool, Parameter(help="say what would run, and load nothing")] = False,
        generation: Annotated[generations, FLATTENED] = with_defaults[0],  # type: ignore[valid-type]
        place: Annotated[Place, FLATTENED] = with_defaults[1],
        settings: Annotated[decoders, FLATTENED] = with_defaults[2],  # type: ignore[valid-type]
    ) -> int:
        import torch

        process = this_process(os.environ)
        gpus = torch.cuda.device_count()
        configs = _configs(settings)
        run = Run(
            model_path=model_path,
            benchmark=benchmark,
            decoder=configs[decoder],
            generation=Generation(**asdict(generation)),
            place=place.settled(gpus=gpus, gpu_dtype=family.gpu_dtype, process=process),
            process=process,
            seed=seed,
        )
        return then(_runs(run, sweep, configs, output_path, family), family, dry_run)

    command.__doc__ = f"{(kind.__doc__ or '').splitlines()[0]}\n\nThe same command continues a run."
    return command


def _configs(settings: Any) -> dict[str, DecoderConfig | None]:
    """Each decoder as its flags set it."""
    configs = {}
    for name in ("greedy", *DECODERS):
        try:
            configs[name] = to_config(name, settings)
        except ValueError as error:
            raise EvaluationError(f"--decoder {name}: {error}") from error
    return configs


def _runs(
    run: Run,
    sweep: Sequence[str],
    configs: dict[str, DecoderConfig | None],
    output_path: Path | None,
    family: Family,
) -> list[Run]:
    """The runs of a command line; one, where nothing is swept."""
    if not sweep:
        return [run.writing_to(output_path, family.results)]
    if output_path is not None and output_path.suffix in (".jsonl", ".json"):
        raise EvaluationError(f"--output_path {output_path}: a sweep needs a folder")
    results = output_path or family.results
    return [each.writing_to(None, results) for each in combinations(run, sweep, configs)]


def _evaluate(runs: Sequence[Run], family: Family, dry_run: bool) -> int:
    from revisit.evaluation.evaluate import evaluate, plan

    with logging_to_stderr():
        if dry_run:
            print(json.dumps([plan(run, family.own_dtype) for run in runs], indent=1))
            return 0
        return evaluate(runs, family.load, family.own_dtype)


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
    def load(run: Run) -> "Captioner":
        from revisit.commands.engines.choose import load

        return load(run)

    def own_dtype(model: str) -> str:
        from revisit.transformers.checkpoint import own_dtype

        return own_dtype(model)

    return Family(load, own_dtype)


eval = new_eval()

if __name__ == "__main__":
    sys.exit(main())
