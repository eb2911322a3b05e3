"""A grid of settings, decoded with one model: `--sweep alpha=1e-5,1e-3 layers=last,all`.

Each combination is a run of its own, in the folder that its settings name, and continues as such.
Greedy decoding comes first: it is what the table of all of them holds the others against.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path

from revisit.config import OTHERS, PUBLISHED
from revisit.evaluation import EvaluationError, compare
from revisit.evaluation.answering import Captioner, Load, Outcome

_OWN = ("layers", "alpha", "divergence", "selection")  # of ReVisiT's settings, those with a flag


def combinations(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[argparse.Namespace]:
    """The flags of each run that a command line with `--sweep` asks for.

    What is swept is given to the parser behind the rest of the command line, so that it is read,
    and refused, like any flag.

    Raises:
        EvaluationError: a word of `--sweep` that is not NAME=VALUE,VALUE, a name that the decoder
            does not have, or something named twice.
    """
    args = parser.parse_args(argv)
    axes = _axes(args.sweep)
    seeds = axes.pop("seed", [str(args.seed)])
    grid = [["--decoder", "greedy"]]
    for each in _grid(args.decoder, axes):
        if each not in grid:
            grid.append(each)
    if args.output_path is not None and args.output_path.suffix in (".jsonl", ".json"):
        raise EvaluationError(f"--output_path {args.output_path}: a sweep needs a folder")
    runs = [parser.parse_args([*argv, "--seed", seed, *words]) for words in grid for seed in seeds]
    for run in runs:
        run.output_path = None  # a folder for each, by its settings
    return runs


def _grid(decoder: str, axes: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """The flags of each combination."""
    if "decoder" in axes:
        if len(axes) > 1:
            raise EvaluationError("--sweep: with decoder=... only seed=..., settings are of one")
        return [["--decoder", each] for each in axes["decoder"]]
    if axes and decoder == "greedy":
        decoder = "revisit"  # greedy decoding has no settings
    flags = _flags(decoder)
    if unknown := sorted(axes.keys() - flags.keys()):
        raise EvaluationError(
            f"--sweep {unknown[0]}: {decoder} has {', '.join(flags) or 'no settings'}; besides "
            "there are seed and decoder"
        )
    grid = []
    for values in product(*axes.values()):
        words = ["--decoder", decoder]
        for name, value in zip(axes, values, strict=True):
            words += [f"--{flags[name]}", value.replace("-", ",") if name == "layers" else value]
        grid.append(words)
    return grid


def _flags(decoder: str) -> dict[str, str]:
    """The flag of each setting of a decoder that can be swept; its own seed cannot."""
    if decoder == "revisit":
        return {name: flag for flag, name in PUBLISHED.items() if name in _OWN}
    names = [field.name for field in fields(OTHERS[decoder])] if decoder in OTHERS else []
    return {name: f"{decoder}_{name}" for name in names if name != "seed"}


def loaded_once(load: Load, runs: Sequence[argparse.Namespace]) -> Load:
    """`load` the first time, and see that the captioner can decode as all `runs` say; then the same
    captioner, which decodes as other flags say."""
    captioner: Captioner | None = None
    told: argparse.Namespace | None = None

    def again(args: argparse.Namespace) -> Captioner:
        nonlocal captioner, told
        if captioner is None:
            captioner = load(args)
            for run in runs[1:]:
                captioner.decode(run)
            told = runs[-1]
        if args is not told:
            captioner.decode(args)
        told = args
        return captioner

    return again


def run_all(
    runs: Sequence[argparse.Namespace],
    one: Callable[[argparse.Namespace], Outcome],
    scores: Callable[[argparse.Namespace], Mapping[str, Path]],
) -> int:
    """Each run in turn, and the tables of several.

    Args:
        one: does a run, its flags settled.
        scores: the files of its scores, by what a table of them is called.

    Returns:
        The exit status: that of the first run that fails, after which no other is begun; 1 where
        images cannot be read.
    """
    whole, lacking = True, 0
    for number, run in enumerate(runs, 1):
        if len(runs) > 1:
            print(f"{number} of {len(runs)}: {run.output_path}", flush=True)
        status, whole = one(run)
        if status > 1 or (status and not whole):
            return status
        lacking = max(lacking, status)
    if len(runs) == 1 or not whole:  # the process that ends last has the scores
        return lacking
    found = [scores(run) for run in runs]
    for name in found[0]:
        print(f"\n{name}" if name else "")
        if status := compare.main([str(each[name]) for each in found]):
            return status
    return lacking


def _axes(words: Sequence[str]) -> dict[str, list[str]]:
    """The values of each name that is swept."""
    axes: dict[str, list[str]] = {}
    for word in words:
        name, equals, listed = word.partition("=")
        values = listed.split(",")
        if not (name and equals and all(values)):
            raise EvaluationError(f"--sweep {word}: say NAME=VALUE,VALUE, as alpha=1e-5,1e-3")
        if name in axes or len(set(values)) < len(values):
            raise EvaluationError(f"--sweep {word}: name each setting and each value once")
        axes[name] = values
    return axes
