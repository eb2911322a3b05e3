"""The cost of a decoder: seconds a token over the baseline's, and peak memory.

Both mean something only against a run on the same machine, with as many images at once, in the same
releases. Where that is not recorded, or is not the same, there is a reason in place of a number.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from revisit.evaluation.results.result import Result

OF_START = ("device", "processor", "threads", "processes", "batch_size")
"""What the record of each start of a run says that moves its cost besides the decoder."""
_OF_SETTINGS = ("dtype", "torch version", "transformers version")
_NEEDED = ("device", "processor", "batch_size")


class UnknownCost(Exception):
    """The message says why there is no number."""


class Cost(NamedTuple):
    """The cost of a run."""

    relative: float
    """Seconds a token over the baseline's."""
    peak: int | None
    """Bytes, where all starts of the run measured them."""


def relative_cost(baseline: Result, result: Result) -> Cost:
    """The cost of a result's run; raises `UnknownCost`."""
    starts = _starts(result)
    conditions = _conditions(result, starts)
    try:
        baseline_starts = _starts(baseline)
        baseline_conditions = _conditions(baseline, baseline_starts)
    except UnknownCost as error:
        raise UnknownCost(f"of the baseline, {error}") from error
    if name := _different(baseline_conditions, conditions):
        mine, theirs = (_shown(each[name]) for each in (conditions, baseline_conditions))
        raise UnknownCost(f"{name} {mine}, the baseline's {theirs}")
    relative = _seconds_a_token(starts) / _seconds_a_token(baseline_starts)
    return Cost(relative, largest([start.get("peak_bytes") for start in starts]))


def largest(peaks: Sequence[int | None]) -> int | None:
    """The largest peak; None where one of them was not measured."""
    known = [peak for peak in peaks if peak is not None]
    return max(known) if len(known) == len(peaks) else None


def _starts(result: Result) -> list[dict[str, Any]]:
    """The starts of a result's run in which something was generated."""
    starts = [start for start in result.runs if start.get("seconds")]
    if not starts:
        raise UnknownCost("no run record says how long it took")
    if not all(start.get("tokens") for start in starts):
        raise UnknownCost("the run record does not count tokens")
    return starts


def _conditions(result: Result, starts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What moves the cost besides the decoder, the same in all starts."""
    first, *others = ({name: start.get(name) for name in OF_START} for start in starts)
    for name in _NEEDED:
        if first[name] is None:
            raise UnknownCost(f"the run record does not name the {name}")
    for other in others:
        if name := _different(first, other):
            raise UnknownCost(f"the run was continued with another {name}")
    return first | {name: result.settings.get(name) for name in _OF_SETTINGS}


def _different(first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first condition that differs; empty where none does."""
    return next((name for name in first if first[name] != other[name]), "")


def _seconds_a_token(starts: Sequence[Mapping[str, Any]]) -> float:
    seconds = sum(start["seconds"] for start in starts)
    return float(seconds / sum(start["tokens"] for start in starts))


def _shown(value: Any) -> str:
    return "not recorded" if value is None else str(value)
