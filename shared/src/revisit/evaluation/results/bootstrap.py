"""Bootstrap intervals of a score, and of the difference of two scores of the same images.

The things that are counted (images, questions) are drawn with replacement, both scores of a thing
together (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13). Intervals are
percentile intervals of 95%.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from revisit.evaluation import EvaluationError

Measure = Callable[[NDArray[Any]], NDArray[np.float64]]
"""Counts (..., columns), summed over things -> metrics (metrics, ...), fractions of 1."""

_RESAMPLES = 10_000
_TAIL = (1 - 0.95) / 2  # on each side of an interval


def paired_intervals(
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    measure: Measure,
    resamples: int = _RESAMPLES,
) -> NDArray[np.float64]:
    """The intervals of the differences `second - first`.

    Args:
        first, second: counts (things, columns) of two scores, row by row of the same thing.
        measure: the metrics of summed counts.
        resamples: how many times the things are drawn.

    Returns:
        (3, metrics): the difference, and the low and the high end of its interval.

    Raises:
        EvaluationError: the counts are not of the same shape.
    """
    if first.shape != second.shape:
        raise EvaluationError(f"counts of other shapes: {first.shape} and {second.shape}")
    drawn = [
        measure(times @ second) - measure(times @ first) for times in _draws(len(first), resamples)
    ]
    difference = measure(second.sum(0)) - measure(first.sum(0))
    return np.stack([difference, *_ends(drawn)])


def intervals(counts: NDArray[np.int64], measure: Measure) -> NDArray[np.float64]:
    """The intervals of one score with counts (things, columns): (2, metrics), low and high ends."""
    return _ends([measure(times @ counts) for times in _draws(len(counts), _RESAMPLES)])


def _draws(things: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    """How often each thing is drawn, (at most 1000, things) at a time."""
    random = np.random.default_rng(seed=0)
    share = np.full(things, 1 / things)
    for start in range(0, resamples, 1000):
        yield random.multinomial(things, share, size=min(1000, resamples - start))


def _ends(drawn: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.quantile(np.concatenate(drawn, axis=-1), [_TAIL, 1 - _TAIL], axis=-1)


def named_intervals(
    names: Sequence[str],
    measure: Measure,
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    resamples: int = _RESAMPLES,
) -> dict[str, dict[str, float]]:
    """What `paired_intervals` returns, by the metric's name and `difference`, `low` and `high`."""
    found = paired_intervals(first, second, measure, resamples)
    return {
        name: dict(zip(("difference", "low", "high"), map(float, column), strict=True))
        for name, column in zip(names, found.T, strict=True)
    }
