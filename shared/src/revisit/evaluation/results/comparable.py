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
    """The results of each decoder together, in the order of their first ones.

    The same settings with the same seed a second time begin another group.
    """
    groups: dict[Any, Group] = {}
    for result in results:
        rest = {name: v for name, v in result.settings.items() if name not in ("seed", VERSION)}
        same = json.dumps(rest, sort_keys=True) if result.settings else result.file
        seed, again = result.settings.get("seed"), 0
        while seed in groups.setdefault((same, again), {}):
            again += 1
        groups[same, again][seed] = result
    return list(groups.values())


def check_comparable(groups: Sequence[Group]) -> None:
    """Raises `EvaluationError` where results differ in what moves the numbers by itself."""
    first, *others = (result for each in groups for result in each.values())
    for other in others:
        if first.benchmark != other.benchmark:
            _refuse(first, other, f"one is of {first.benchmark}, the other of {other.benchmark}")
        for name in (*first.conditions, *other.conditions):
            one, two = first.conditions.get(name), other.conditions.get(name)
            if one != two:
                _refuse(first, other, f"{name} is {one!r} in the first and {two!r} in the second")
    for each in groups[1:]:
        for pair in pairs(groups[0], each):
            _check_sample(*pair)


def pairs(first: Group, other: Group) -> list[tuple[Result, Result]]:
    """The two results of each sample.

    Raises `EvaluationError` where one group has a seed that the other lacks.
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
    """The seeds of a group, in a message."""
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
