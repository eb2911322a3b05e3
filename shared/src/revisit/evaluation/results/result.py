"""A saved result of `revisit score` or `revisit eval`, read for a comparison."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks.benchmark import Columns
from revisit.evaluation.benchmarks.registry import BENCHMARKS
from revisit.evaluation.files import read_json

# The settings that move the numbers more than a decoder does.
_SAME = ("question", "max_new_tokens")


class Result(NamedTuple):
    """A saved result."""

    file: str
    name: str
    benchmark: str
    columns: Columns
    counts: NDArray[np.int64]
    """(things, columns), in the order of their ids."""
    things: list[Any]
    """The ids of the images or questions."""
    truth: Mapping[str, Any]
    """What they were scored against, by its name in a message."""
    conditions: Mapping[str, Any]
    """What has to be the same in all results."""
    settings: dict[str, Any]
    """Of the run that made the answers; empty where there is no record of it."""
    runs: list[dict[str, Any]]
    """The record of each start of that run."""


def read_result(path: Path) -> Result:
    """Read a result; raises `EvaluationError` for another file."""
    saved = read_json(path)
    try:
        older = "chair" if "sentences" in saved else "pope"  # older results name no benchmark
        name = saved.get("benchmark", older)
        benchmark = BENCHMARKS[name]
        found = benchmark.counted(saved)
        settings = found.record.get("settings", {})
        same = {name: settings[name] for name in _SAME if name in settings}
    except EvaluationError as error:
        raise EvaluationError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EvaluationError(
            f"{path} is not a result of `revisit score` or `revisit eval` ({error!r}): captions "
            "and answers are scored first"
        ) from error
    return Result(
        file=str(path),
        name=name_of(settings) or path.stem,
        benchmark=name,
        columns=benchmark.columns,
        counts=found.counts,
        things=found.things,
        truth=found.truth,
        conditions={**found.conditions, **same},
        settings=settings,
        runs=found.record.get("runs", []),
    )


def name_of(settings: Mapping[str, Any]) -> str:
    """The name of a run with these settings: its model and decoder; empty without settings."""
    if not settings:
        return ""
    decoder = decoder_of(settings)
    if settings.get("do_sample") and decoder == "greedy":
        decoder = "sampling"
    shown = {
        name.removeprefix(f"{decoder}_"): value
        for name, value in settings.items()
        if name.startswith(f"{decoder}_") and "version" not in name
    }
    shown |= {
        name: settings[name] for name in ("early_exit_layers", "relative_top") if name in settings
    }
    chosen = ", ".join(f"{name} {value}" for name, value in shown.items())
    model = settings.get("model", {}).get("name", "")
    return " ".join(filter(None, [model, decoder, f"({chosen})" if chosen else ""]))


def decoder_of(settings: Mapping[str, Any]) -> str:
    """The decoder that a run's settings name."""
    return settings.get("decoder") or ("revisit" if settings.get("use_revisit") else "greedy")
