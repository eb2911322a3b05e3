"""How the benchmarks measure: by the clock, by turns, and by what PyTorch is asked to do."""

import itertools
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode


def clock(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> float:
    """Seconds that one call takes."""
    started = time.perf_counter()
    function(*arguments, **keywords)
    return time.perf_counter() - started


def by_turns(
    ways: Mapping[str, Callable[[], Any]],
    repeats: int,
    seconds: Callable[[Callable[[], Any]], float] = clock,
) -> dict[str, list[float]]:
    """Seconds of each way in each turn; figures of different minutes could not be compared.

    The first turn warms up and is not counted. A way that a GPU has no memory for is left out.
    """
    took: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name in list(took):
            try:
                value = seconds(ways[name])
            except torch.cuda.OutOfMemoryError:
                del took[name]
                torch.cuda.empty_cache()
                continue
            took[name] += [value] if turn else []
    return took


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and from where to where they go."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def put(page: Path, mark: str, text: str) -> None:
    """Write text between the two marks of a page, <!-- mark --> and <!-- /mark -->."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- /{mark} -->\n")
    if not end:
        raise SystemExit(f"{page} lacks the marks <!-- {mark} --> and <!-- /{mark} -->")
    page.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most bytes that tensors made by a function take at a time, on a CPU."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would print
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    events = [each for each in seen.profiler.kineto_results.events() if each.name() == "[memory]"]
    changes = [each.nbytes() for each in sorted(events, key=lambda each: each.start_ns())]
    return int(max(itertools.accumulate(changes, initial=0)))


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what PyTorch is asked to do: on a GPU about one kernel each. Views are not counted."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))
