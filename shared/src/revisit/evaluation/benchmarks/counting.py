"""Counts of answers, and metrics as formulas on them.

NumPy is loaded when something is counted, so that `--help`, which reads benchmarks, is quick.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Counts = NDArray[np.int64]
    Metrics = NDArray[np.float64]
    Measure = Callable[[ArrayLike], Metrics]
else:
    Counts = Metrics = Measure = Any


def by_columns(formulas: Callable[[Any], Any]) -> Measure:
    """A `measure` from its formulas on the columns of counts, (columns, ...) -> (metrics, ...)."""

    @wraps(formulas)
    def measure(totals: "ArrayLike") -> Metrics:
        import numpy as np

        return np.stack(formulas(np.moveaxis(np.asarray(totals), -1, 0)))

    return measure


def ratio(part: Any, whole: Any) -> Any:
    """part / whole, numbers or arrays; 0 where whole is 0, as part is then."""
    return part / (whole + (whole == 0))


def as_counts(rows: Sequence[Sequence[int]]) -> Counts:
    """Rows of counts as int64, (things, columns)."""
    import numpy as np

    return np.array(rows, np.int64)
