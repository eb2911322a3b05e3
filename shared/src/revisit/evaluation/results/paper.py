"""The paper's figures beside a result: within the interval of its sample, outside it, or not of the
same setting.

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
"""How the paper decodes; a run with another value has another setting."""


class PaperFigure(NamedTuple):
    """A figure of the paper, and the result's; both in percent."""

    name: str
    """Of the result."""
    table: str
    source: str
    """`paper` or `notes`: where the paper's figure was read."""
    metric: str
    published: float
    value: float
    interval: tuple[float, float]
    """95%, of the bootstrap over the result's sample."""
    verdict: str
    """`within`, `outside`, or `not the same setting: ` and which."""


@cache
def tables() -> list[dict[str, Any]]:
    """The paper's tables, as `paper.toml` has them."""
    text = files("revisit.evaluation.results").joinpath("paper.toml").read_text("utf-8")
    found: list[dict[str, Any]] = tomllib.loads(text)["table"]
    return found


def paper_figures(results: Sequence[Result]) -> list[PaperFigure]:
    """Of each result, the figures in the rows of the paper that come nearest to its setting."""
    return [figure for result in results for figure in _figures(result)]


def _figures(result: Result) -> Iterator[PaperFigure]:
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
            yield PaperFigure(
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
    """The rows of the run's decoder whose settings differ least, each with its differences."""
    rows = [(_differences(settings, table["setting"] | row), row) for row in table["rows"]]
    rows = [(why, row) for why, row in rows if "decoder" not in why]
    least = min((len(why) for why, _ in rows), default=0)
    return [(why, row) for why, row in rows if len(why) == least]


def _differences(settings: Mapping[str, Any], published: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a run that differ from a row of the paper: name -> both values, in words.

    Of the settings that the row does not name, those in `_DEFAULTS` are compared.
    """
    if not settings:
        return {"model": "the result does not say what made it"}
    ours = {**_DEFAULTS, **settings, "decoder": decoder_of(settings)}
    ours["model"] = PurePath(settings.get("model", {}).get("name", "")).name
    return {
        name: f"{name} {ours.get(name)}, the paper's {value}"
        for name, value in {**_DEFAULTS, **published}.items()
        if name != "figures" and _lower(ours.get(name)) != _lower(value)
    }


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value
