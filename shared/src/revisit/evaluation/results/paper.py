"""The paper's figures beside a run's: within the interval of the run's sample, outside it, or not
of the same setting.

`paper.toml` holds the figures (Cho & Kim, arXiv 2506.09522) with where each was read.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import Any, NamedTuple

from revisit.evaluation.results.bootstrap import intervals
from revisit.evaluation.results.result import Result

_DEFAULTS = {"do_sample": False, "num_beams": 1, "repetition_penalty": None}
"""How the paper decodes: what a run's record says otherwise is another setting."""


class Beside(NamedTuple):
    """A figure of the paper, and the run's."""

    name: str
    """Of the result."""
    table: str
    source: str
    """`paper` or `notes`: where the paper's figure was read."""
    metric: str
    published: float
    """Percent."""
    value: float
    """The run's, percent."""
    interval: tuple[float, float]
    """95% of the bootstrap over the run's sample, percent."""
    verdict: str
    """`within`, `outside`, or `not the same setting: ` and which."""


@cache
def tables() -> list[dict[str, Any]]:
    """The paper's tables, as `paper.toml` has them."""
    text = files("revisit.evaluation.results").joinpath("paper.toml").read_text("utf-8")
    found: list[dict[str, Any]] = tomllib.loads(text)["table"]
    return found


def beside(results: Sequence[Result]) -> list[Beside]:
    """Each result with the rows of the paper that come nearest to its setting."""
    return [line for result in results for line in _beside(result)]


def _beside(result: Result) -> Iterator[Beside]:
    metrics = result.columns.metrics
    values = 100 * result.columns.measure(result.counts.sum(0))
    low, high = 100 * intervals(result.counts, result.columns.measure)
    for table in tables():
        if table["benchmark"] != result.benchmark:
            continue
        unlike = [
            (differences(result.settings, table["setting"] | row), row) for row in table["rows"]
        ]
        unlike = [(why, row) for why, row in unlike if "decoder" not in why]
        nearest = min((len(why) for why, _ in unlike), default=0)
        for why, row in unlike:
            if len(why) > nearest:
                continue
            for metric, published in row["figures"].items():
                column = metrics.index(metric)
                inside = low[column] <= published <= high[column]
                verdict = "within" if inside else "outside"
                if why:
                    verdict = "not the same setting: " + "; ".join(why.values())
                yield Beside(
                    result.name,
                    table["name"],
                    table["source"],
                    metric,
                    published,
                    float(values[column]),
                    (float(low[column]), float(high[column])),
                    verdict,
                )


def differences(settings: Mapping[str, Any], published: Mapping[str, Any]) -> dict[str, str]:
    """What a run's settings have otherwise than a row of the paper: the setting -> in words.

    A setting that the row does not name counts only where it is no default.
    """
    if not settings:
        return {"model": "the result does not say what made it"}
    decoder = settings.get("decoder") or ("revisit" if settings.get("use_revisit") else "greedy")
    ours = _DEFAULTS | {"revisit_selection": "min"} | dict(settings) | {"decoder": decoder}
    ours["model"] = PurePath(settings.get("model", {}).get("name", "")).name
    expected = _DEFAULTS | {"revisit_selection": "min"} | dict(published)
    expected.pop("figures", None)
    return {
        name: f"{name} {ours.get(name)}, the paper's {value}"
        for name, value in expected.items()
        if _plain(ours.get(name)) != _plain(value)
    }


def _plain(value: object) -> object:
    return value.lower() if isinstance(value, str) else value
