"""Bootstrap: how far a score, or the difference of two of the same things, would move.

The things (images, questions) are drawn with replacement, both scores of a thing together (Efron
and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from revisit.evaluation import EvaluationError

Measure = Callable[[NDArray[Any]], NDArray[np.float64]]
"""Counts (..., columns), summed over things -> metrics (metrics, ...), fractions of 1."""


def paired_intervals(
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    measure: Measure,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> NDArray[np.float64]:
    """Percentile intervals of the differences `second - first`.

    Args:
        first, second: counts (things, columns) of two scores, row by row of the same thing.
        measure: the metrics of summed counts.
        resamples: how many times the things are drawn.
        seed: of the draws.
        level: the part of the draws inside an interval.

    Returns:
        (3, metrics): the difference, and the low and the high end of its interval.

    Raises:
        EvaluationError: the counts are not of the same shape.
    """
    if first.shape != second.shape:
        raise EvaluationError(f"counts of other shapes: {first.shape} and {second.shape}")
    differences = [
        measure(times @ second) - measure(times @ first)
        for times in _draws(len(first), resamples, seed)
    ]
    difference = measure(second.sum(0)) - measure(first.sum(0))
    return np.stack([difference, *_ends(differences, level)])


def intervals(
    counts: NDArray[np.int64],
    measure: Measure,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> NDArray[np.float64]:
    """Percentile intervals of one score: (2, metrics), their low and high ends. Args as above."""
    drawn = [measure(times @ counts) for times in _draws(len(counts), resamples, seed)]
    return _ends(drawn, level)


def _draws(things: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each thing is drawn, (at most 1000, things) at a time."""
    random = np.random.default_rng(seed)
    share = np.full(things, 1 / things)
    for start in range(0, resamples, 1000):
        yield random.multinomial(things, share, size=min(1000, resamples - start))


def _ends(drawn: list[NDArray[np.float64]], level: float) -> NDArray[np.float64]:
    tail = (1 - level) / 2
    return np.quantile(np.concatenate(drawn, axis=-1), [tail, 1 - tail], axis=-1)


def named_intervals(
    names: Sequence[str],
    measure: Measure,
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    **options: Any,
) -> dict[str, dict[str, float]]:
    """By its name, each metric's `difference`, and `low` and `high` of its interval; see
    `paired_intervals`."""
    found = paired_intervals(first, second, measure, **options)
    return {
        name: dict(zip(("difference", "low", "high"), map(float, column), strict=True))
        for name, column in zip(names, found.T, strict=True)
    }
