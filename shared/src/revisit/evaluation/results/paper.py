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
from revisit.evaluation.results.result import Result, decoder_of

_DEFAULTS = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": None,
    "revisit_selection": "min",
}
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
    rows = [
        (table, why, row)
        for table in tables()
        if table["benchmark"] == result.benchmark
        for why, row in _nearest(result.settings, table)
    ]
    if not rows:
        return
    columns = result.columns
    values = 100 * columns.measure(result.counts.sum(0))
    low, high = 100 * intervals(result.counts, columns.measure)
    for table, why, row in rows:
        for metric, published in row["figures"].items():
            column = columns.metrics.index(metric)
            verdict = "within" if low[column] <= published <= high[column] else "outside"
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


def _nearest(
    settings: Mapping[str, Any], table: Mapping[str, Any]
) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """The rows of a table that are of the run's decoder and differ least, and how they differ."""
    rows = [(differences(settings, table["setting"] | row), row) for row in table["rows"]]
    rows = [(why, row) for why, row in rows if "decoder" not in why]
    least = min((len(why) for why, _ in rows), default=0)
    return [(why, row) for why, row in rows if len(why) == least]


def differences(settings: Mapping[str, Any], published: Mapping[str, Any]) -> dict[str, str]:
    """What a run's settings have otherwise than a row of the paper: the setting -> in words.

    A setting that the row does not name counts only where it is no default.
    """
    if not settings:
        return {"model": "the result does not say what made it"}
    ours = {**_DEFAULTS, **settings, "decoder": decoder_of(settings)}
    ours["model"] = PurePath(settings.get("model", {}).get("name", "")).name
    return {
        name: f"{name} {ours.get(name)}, the paper's {value}"
        for name, value in {**_DEFAULTS, **published}.items()
        if name != "figures" and _plain(ours.get(name)) != _plain(value)
    }


def _plain(value: object) -> object:
    return value.lower() if isinstance(value, str) else value
