"""Which results may be compared, and which of them are one decoder's on several samples."""

import json
from collections.abc import Sequence
from typing import Any, NoReturn

from revisit.evaluation import EvaluationError
from revisit.evaluation.answer_files import VERSION
from revisit.evaluation.results.result import Result

Group = dict[Any, Result]
"""Results that differ by their seed alone, by that seed."""


def group(results: Sequence[Result]) -> list[Group]:
    """The results of each decoder together, in the order given.

    The same settings with the same seed a second time are a group of their own.
    """
    found: dict[Any, Group] = {}
    for result in results:
        rest = {name: v for name, v in result.settings.items() if name not in ("seed", VERSION)}
        same = json.dumps(rest, sort_keys=True) if result.settings else result.file
        seed, again = result.settings.get("seed"), 0
        while seed in found.setdefault((same, again), {}):
            again += 1
        found[same, again][seed] = result
    return list(found.values())


def check_comparable(groups: Sequence[Group]) -> None:
    """Raises `EvaluationError` where results differ in what moves the numbers by itself."""
    first = next(iter(groups[0].values()))
    for other in [result for each in groups for result in each.values()]:
        if first.benchmark != other.benchmark:
            _refuse(first, other, f"one is of {first.benchmark}, the other of {other.benchmark}")
        for condition in (*first.conditions, *other.conditions):
            mine, theirs = (each.conditions.get(condition) for each in (first, other))
            if mine != theirs:
                unlike = f"{condition} is {mine!r} in the first and {theirs!r} in the second"
                _refuse(first, other, unlike)
    for each in groups[1:]:
        for mine, theirs in pairs(groups[0], each):
            _check_sample(mine, theirs)


def pairs(first: Group, other: Group) -> list[tuple[Result, Result]]:
    """The two results of each sample.

    Raises `EvaluationError` where one of them has a seed that the other lacks.
    """
    if len(first) == len(other) == 1:
        return list(zip(first.values(), other.values(), strict=True))
    if first.keys() != other.keys():
        _refuse(
            next(iter(first.values())),
            next(iter(other.values())),
            f"of the first's settings there are the seeds {seeds(first)}, of the second's "
            f"{seeds(other)}: a mean is held against that over the same samples",
        )
    return [(first[seed], other[seed]) for seed in first]


def seeds(group: Group) -> str:
    """The seeds of a group, as a user reads them."""
    return ", ".join(map(str, group))


def _check_sample(first: Result, other: Result) -> None:
    things = first.columns.things
    alone = set(first.things) ^ set(other.things)
    if alone:
        _refuse(
            first,
            other,
            f"{len(alone)} {things} are in one of them only ({things[:-1]} id "
            f"{min(alone, key=str)}, for one); take the same sample: the same --seed and "
            "--num_eval_samples",
        )
    for name, value in first.truth.items():
        if other.truth[name] != value:
            _refuse(first, other, f"{name} differ: score both against the same")


def _refuse(first: Result, other: Result, why: str) -> NoReturn:
    raise EvaluationError(f"{first.file} and {other.file} cannot be compared: {why}")
