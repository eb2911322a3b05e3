"""Paired bootstrap: how far the difference of two scores of the same things would move.

The things (images, questions) are drawn with replacement, both scores of a thing together (Efron
and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13).
"""

from collections.abc import Callable, Sequence
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
    things = len(first)
    random = np.random.default_rng(seed)
    draws = []
    for start in range(0, resamples, 1000):  # in parts: `times` is (resamples, things)
        times = random.multinomial(
            things, np.full(things, 1 / things), size=min(1000, resamples - start)
        )
        draws.append(measure(times @ second) - measure(times @ first))
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(draws, axis=-1), [tail, 1 - tail], axis=-1)
    return np.stack([measure(second.sum(0)) - measure(first.sum(0)), low, high])


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """`part / whole`, and 0 where `whole` is 0."""
    found: NDArray[np.float64] = np.zeros(np.shape(part))
    np.divide(part, whole, out=found, where=whole != 0)
    return found


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
