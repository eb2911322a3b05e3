"""A step for many rows: ragged ones together against one after another, and requests that come and
go, as a serving engine decodes them.

Each row has vision states, plausible tokens and logits of its own; its sizes are drawn between half
and one and a half times those of the shape.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from drift import Work, drift
from revisit import LMHead, ReVisiTConfig
from revisit.core.columns import Cache
from revisit.core.rows import refine
from revisit.core.session import Session

CONFIG = ReVisiTConfig()


class Ragged(NamedTuple):
    """The sizes of a row, on average."""

    name: str
    tokens: int  # vision states
    candidates: int  # tokens in V_cons
    width: int
    vocabulary: int


class Batch(NamedTuple):
    """A step of some rows; seconds."""

    ragged: Ragged
    rows: int
    together: float
    alone: float  # the same rows one after another
    operators: int  # of a step together in which no token is new


class Traffic(NamedTuple):
    """Requests that come and go, so many at a time."""

    ragged: Ragged
    slots: int
    requests: int
    longest: int  # steps of the longest request
    together: float  # seconds of ReVisiT's own work
    alone: float  # one request after another


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what PyTorch is asked to do: on a GPU about one kernel each. Views are not counted."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


class Row(NamedTuple):
    """What a row is made of."""

    states: Tensor  # (M, d)
    logits: list[Tensor]  # (V,) of each step


def rows_of(ragged: Ragged, count: int, work: Work, dtype: torch.dtype) -> list[Row]:
    """`count` rows, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for seed in range(count):
        share = (torch.rand(2, generator=generator) + 0.5).tolist()
        tokens = max(1, round(ragged.tokens * share[0]))
        candidates = max(2, round(ragged.candidates * share[1]))
        states = torch.randn(tokens, ragged.width, generator=generator).mul_(2).to(dtype)
        made.append(Row(states, list(drift(ragged.vocabulary, candidates, work, seed))))
    return made


def weight(ragged: Ragged, dtype: torch.dtype) -> LMHead:
    """A random LM head."""
    torch.manual_seed(0)
    return LMHead(torch.empty(ragged.vocabulary, ragged.width).normal_(0, 0.02).to(dtype))


def batch(ragged: Ragged, count: int, work: Work, dtype: torch.dtype) -> Batch:
    """The median step of `count` rows together, and of the same rows one after another."""
    head, rows = weight(ragged, dtype), rows_of(ragged, count, work, dtype)
    cache = Cache(head, count * CONFIG.cache_bytes)
    sessions = [Session(row.states, cache, CONFIG) for row in rows]
    # Alone each has a cache of its own, as if nobody else was there.
    own = [Session(row.states, Cache(head, CONFIG.cache_bytes), CONFIG) for row in rows]
    together, alone = [], []
    for step in range(work.steps):
        logits = torch.stack([row.logits[step] for row in rows])
        started = time.perf_counter()
        refine(logits, sessions)
        between = time.perf_counter()
        for row, session in zip(logits, own, strict=True):
            refine(row.unsqueeze(0), [session])
        together.append(between - started)
        alone.append(time.perf_counter() - between)
    with Operators() as counted:
        refine(logits, sessions)
    half = slice(work.steps // 4, None)  # a first step keeps all of its tokens
    return Batch(
        ragged,
        count,
        statistics.median(together[half]),
        statistics.median(alone[half]),
        counted.count,
    )


def traffic(ragged: Ragged, slots: int, requests: int, work: Work, dtype: torch.dtype) -> Traffic:
    """Requests of a half to all of `work.steps`, `slots` at a time, against one after another."""
    head, rows = weight(ragged, dtype), rows_of(ragged, requests, work, dtype)
    generator = torch.Generator().manual_seed(1)
    least = work.steps // 2
    lengths = torch.randint(least, work.steps + 1, (requests,), generator=generator).tolist()
    one = serve(head, rows, lengths, 1)
    several = serve(head, rows, lengths, slots)
    return Traffic(ragged, slots, requests, work.steps, several, one)


def serve(head: LMHead, rows: Sequence[Row], lengths: Sequence[int], slots: int) -> float:
    """Seconds of ReVisiT's own work: sessions opened, steps, sessions closed."""
    cache = Cache(head, slots * CONFIG.cache_bytes)
    waiting = list(range(len(rows)))[::-1]
    running: dict[int, Session] = {}
    done = dict.fromkeys(waiting, 0)
    seconds = 0.0
    while waiting or running:
        started = time.perf_counter()
        while waiting and len(running) < slots:
            number = waiting.pop()
            running[number] = Session(rows[number].states, cache, CONFIG, number)
        seconds += time.perf_counter() - started
        logits = torch.stack([rows[number].logits[done[number]] for number in running])
        started = time.perf_counter()
        refine(logits, list(running.values()))
        for number in list(running):
            done[number] += 1
            if done[number] == lengths[number]:
                running.pop(number).close()
        seconds += time.perf_counter() - started
    return seconds


ROWS = (1, 2, 4, 8, 16, 32, 64)
SHAPES = (
    Ragged("LLaVA-1.5-7B, last", 576, 300, 4096, 32_000),
    Ragged("small", 64, 50, 128, 1_000),
)
QUICK = (Ragged("tiny", 24, 20, 32, 700),)


def parts(quick: bool) -> int:
    """How many steps of progress `measured` takes."""
    shapes, counts = _plan(quick)
    return len(shapes) * (len(counts) + 1)


def _plan(quick: bool) -> tuple[Sequence[Ragged], Sequence[int]]:
    return (QUICK, (1, 2)) if quick else (SHAPES, ROWS)


def measured(quick: bool, dtype: torch.dtype, progress: Any) -> tuple[list[Batch], list[Traffic]]:
    """All of it, announced step by step."""
    work = Work([], 6) if quick else Work([], 24)
    shapes, counts = _plan(quick)
    batches, served = [], []
    for ragged in shapes:
        for count in counts:
            progress.set_description(f"{ragged.name}: {count} rows")
            batches.append(batch(ragged, count, work, dtype))
            progress.update()
        progress.set_description(f"{ragged.name}: requests")
        several = counts[-1] // 2
        served.append(traffic(ragged, several, 3 * several, work, dtype))
        progress.update()
    return batches, served
