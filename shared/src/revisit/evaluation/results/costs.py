"""What runs took, and whether it may be held together: a speed is a ratio, measured side by side.

Seconds a token and peak memory say something of a decoder only against those of another one on the
same machine, with as many images at once, in the same releases. Where that is not recorded, or is
not the same, there is no number but a reason.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

# Of each start of a run, and of its settings: what moves seconds and bytes besides the decoder.
_OF_RUN = ("device", "processor", "threads", "processes", "batch_size")
_NEEDED = ("device", "processor", "batch_size")
_OF_SETTINGS = ("dtype", "torch version", "transformers version")


class Cost(NamedTuple):
    """What the starts of one run took together."""

    seconds: float
    """For each token."""
    peak: int | None
    """Bytes, where they were measured."""
    place: dict[str, Any]


def cost(settings: Mapping[str, Any], runs: Iterable[Mapping[str, Any]]) -> Cost | str:
    """What a run took, from its record; or why that is not known."""
    worked = [run for run in runs if run.get("seconds")]
    if not worked:
        return "no run record says how long it took"
    if not all(run.get("tokens") for run in worked):
        return "the run record does not count tokens"
    places = [_place(settings, run) for run in worked]
    if lacking := [name for name in _NEEDED if places[0][name] is None]:
        return f"the run record does not name the {lacking[0]}"
    if (unlike := _unlike(places[0], places[1:])) is not None:
        return f"the run was continued with another {unlike[0]}"
    peaks = [run.get("peak_bytes") for run in worked]
    known = [peak for peak in peaks if peak is not None]
    return Cost(
        sum(run["seconds"] for run in worked) / sum(run["tokens"] for run in worked),
        max(known) if len(known) == len(peaks) else None,
        places[0],
    )


def apart(baseline: Cost, other: Cost) -> str:
    """Why two costs may not be held together; empty where they may."""
    unlike = _unlike(baseline.place, [other.place])
    if unlike is None:
        return ""
    name, mine, theirs = unlike
    return f"{name} {_shown(theirs)}, the baseline's {_shown(mine)}"


def _place(settings: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    return {name: run.get(name) for name in _OF_RUN} | {
        name: settings.get(name) for name in _OF_SETTINGS
    }


def _unlike(
    first: Mapping[str, Any], others: Iterable[Mapping[str, Any]]
) -> tuple[str, Any, Any] | None:
    for other in others:
        for name, value in first.items():
            if other[name] != value:
                return name, value, other[name]
    return None


def _shown(value: Any) -> str:
    return "not recorded" if value is None else str(value)
