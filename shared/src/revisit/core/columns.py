"""The logits of prompts' vision tokens, token by token of the vocabulary, computed when needed.

A column H W[w], the logit of word w at every vision state, does not change during a generation,
and the plausible words of neighbouring steps overlap. So each column is computed once and kept,
within a budget for all prompts together; the projection onto the whole vocabulary is never formed.

The columns of all prompts lie in one flat tensor, each contiguous and at a multiple of the grain.
A step reads them through overlapping windows, one window at every multiple, so that one gather
serves columns of any length: what a window shows behind a shorter column belongs to others, and
the caller leaves it out.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from revisit.core.head import Head

_NEVER = torch.iinfo(torch.int32).max


class Sizes(NamedTuple):
    """What suits a device: how large its temporaries are, and how it takes memory."""

    block: int  # bytes of a float32 temporary (rows, words, states)
    narrowest: int  # vision states in it at least, whatever its bytes
    gathered: int  # bytes of LM head rows in float32 that are multiplied at a time
    product: int  # multiplications that take less time than another call
    spilled: int  # bytes of logits projected at a time
    grain: int  # where a column may begin, in elements: cache lines
    multiple: int  # of words in every product: a GPU looks for a kernel for each size that is new
    at_once: bool  # whether the whole budget is taken when a pool begins


# Temporaries within a CPU's cache; its memory grows with the columns. On a GPU they are large
# enough to fill it, and memory is taken once: growing would copy, and need both for a moment.
CPU = Sizes(5 * 2**18, 128, 4 * 2**20, 2**22, 32 * 2**20, 32, 1, False)
GPU = Sizes(64 * 2**20, 128, 64 * 2**20, 2**22, 32 * 2**20, 32, 128, True)


def put(values: Any, device: torch.device) -> Tensor:
    """Integers of the host as int64 on a device, without waiting for it."""
    pinned = device.type == "cuda"
    tensor = torch.tensor(values, dtype=torch.int64, device="cpu", pin_memory=pinned)
    return tensor.to(device, non_blocking=True)


def positions(
    ranks: Tensor, counts: Sequence[int], numbers: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Where a mask (B, V) is true, from its running sums (B, V) int32 and its sums, at least one.

    `nonzero` would do the same, but a GPU would have to be waited for.

    Args:
        numbers: (V,) int32, from 1 on.

    Returns:
        (B, c) int64, ascending, c the largest count: a row with fewer is filled up with its last.
        And (B, c) bool, where it is; None if nowhere.
    """
    order = numbers[: max(counts)]
    if min(counts) == max(counts):
        return torch.searchsorted(ranks, order.expand(len(counts), -1).contiguous()), None
    last = ranks[:, -1:]
    return torch.searchsorted(ranks, torch.minimum(order, last)), order > last


class Pool:
    """The columns of all prompts that are decoded at a time, with one budget.

    Prompts come and go in any order; one that has ended gives back what it held. A prompt whose
    new columns find no room lets them take the place of its own that were not used for longest;
    what does not fit at all is computed in blocks, and not kept.

    Args:
        head: the LM head that projects them.
        budget: bytes that kept columns may take. Which words are kept takes another 12 bytes a word
            of the vocabulary, for each prompt that is open.
        sizes: what suits the head's device if None.

    Attributes:
        table: (n,) flat, all columns; what none of them covers is undefined.
        slots: (prompts, V) int32, where a word's column begins, in grains; any where it is absent.
        absent: (prompts, V) float32, 1 for the words that the table does not hold, else 0.
        used: (prompts, V) int32, the step that needed a word last.
        numbers: (V,) int32, from 1 on.
        latest: what `refine` prepared for the rows of its last batch.
    """

    def __init__(self, head: Head, budget: int, sizes: Sizes | None = None) -> None:
        self.head = head
        self.sizes = sizes or (CPU if head.device.type == "cpu" else GPU)
        self.table = torch.empty(0, dtype=head.dtype, device=head.device)
        self.limit = budget // (self.sizes.grain * self.table.element_size())
        self.free = [range(self.limit)] if self.limit else []
        self.reach = 0  # grains that the table spans; behind them a window may end
        self.widest = 0  # of the columns, in grains
        self.slots = torch.zeros((0, head.size), dtype=torch.int32, device=head.device)
        self.absent = torch.ones_like(self.slots, dtype=torch.float32)
        self.used = torch.zeros_like(self.slots)
        self.numbers = torch.arange(1, head.size + 1, dtype=torch.int32, device=head.device)
        self.vacant: list[int] = []
        self.step = 0
        self.latest: Any = None

    def open(self, states: Tensor) -> "Columns":
        """Room for a prompt with vision states (M, d).

        They stay where they are: those of another device are copied for each of their products.

        Raises:
            ValueError: there are none, or they are not as wide as the LM head.
        """
        head = self.head
        if states.ndim != 2 or states.shape[1] != head.width:
            raise ValueError(
                f"vision states must have shape (M, {head.width}) to be projected by an LM head "
                f"of {head.size} words, got {tuple(states.shape)}"
            )
        if not states.shape[0]:
            raise ValueError("a prompt without vision states has nothing to be compared with")
        if not self.vacant:
            self._rows_for(max(1, 2 * self.slots.shape[0]))
        row = self.vacant.pop(0)
        self.slots[row] = 0
        self.absent[row] = 1
        columns = Columns(self, row, states.detach().to(head.dtype))
        self.widest = max(self.widest, columns.size)
        self._span(self.limit if self.sizes.at_once else self.reach)
        return columns

    def reserve(self, prompts: int, tokens: int) -> None:
        """Take at once the memory of the whole budget, and of so many prompts.

        Args:
            prompts: how many are open at a time, at most; for more, memory is taken as they come.
            tokens: vision states of a prompt, at most; the same holds.
        """
        self.widest = max(self.widest, math.ceil(tokens / self.sizes.grain))
        self._rows_for(prompts)
        self._span(self.limit)

    def _rows_for(self, prompts: int) -> None:
        count = self.slots.shape[0]
        if prompts > count:
            self.slots, self.absent, self.used = (
                _grown(each, prompts) for each in (self.slots, self.absent, self.used)
            )
            self.vacant += range(count, prompts)

    def close(self, columns: "Columns") -> None:
        """The prompt has ended: its room is free for others."""
        if columns.open:
            columns.open = False
            self.vacant.append(columns.row)
            self.free = merged([*self.free, *columns.runs])
            self.latest = None

    def take(self, size: int, count: int) -> list[range]:
        """Free room for up to `count` columns of `size` grains: where each of them begins."""
        taken, left, seen = [], [], 0
        for run in self.free:
            if not count:
                break
            several = min(count, len(run) // size)
            end = run.start + several * size
            if several:
                taken.append(range(run.start, end, size))
            if end < run.stop:
                left.append(range(end, run.stop))
            count -= several
            seen += 1
        self.free[:seen] = left
        if taken:
            self._span(taken[-1][-1] + size)
        return taken

    def windows(self, start: int, width: int) -> Tensor:
        """(n, width) view: for a column that begins at grain n, its elements from `start` on."""
        return self.table[start:].unfold(0, width, self.sizes.grain)

    def keep(
        self,
        prompts: Sequence["Columns"],
        missing: Tensor,
        coming: Sequence[int],
        in_use: Sequence[int],
    ) -> None:
        """Compute and keep columns that a step needs, as many as fit.

        Args:
            prompts: P of them.
            missing: (P, V) float32, 1 for the words of the step that are absent.
            coming: how many are missing, for each prompt.
            in_use: how many words of the step are not; `used` says already which.
        """
        some = [index for index, count in enumerate(coming) if count]
        if len(some) < len(prompts):
            missing = missing.index_select(0, put(some, missing.device))
        prompts = [prompts[index] for index in some]
        coming = [coming[index] for index in some]
        new, _ = positions(missing.int().cumsum_(1), coming, self.numbers)
        rooms = [
            columns.take(count, in_use[index])
            for columns, count, index in zip(prompts, coming, some, strict=True)
        ]
        kept = [len(fresh) + old for fresh, old in rooms]
        # All bookkeeping goes to the device at once: where a column begins, which of `new` it is,
        # and the row of its prompt.
        plan = put(
            [
                [*chain.from_iterable([*fresh, *[0] * old] for fresh, old in rooms)],
                _heads(kept, new.shape[1]),
                self._bases(prompts, kept),
            ],
            new.device,
        )
        firsts = plan[0]
        words = new.take(plan[1])
        if any(old for _, old in rooms):
            self._replace(prompts, [old for _, old in rooms], kept, firsts)
        places = words + plan[2]
        self.slots.view(-1).index_copy_(0, places, firsts.int())
        self.absent.view(-1).index_fill_(0, places, 0)
        self._fill(prompts, words, firsts, kept)

    @torch.no_grad()
    def _fill(
        self, prompts: Sequence["Columns"], words: Tensor, firsts: Tensor, kept: list[int]
    ) -> None:
        """Compute the columns of words (n,) and write them where they begin, in grains (n,)."""
        each = zip(prompts, torch.split(words, kept), torch.split(firsts, kept), strict=True)
        jobs = [
            Job(columns, *some)
            for columns, own, places in each
            for some in zip(columns.split(own), columns.split(places), strict=True)
        ]
        for group in _products(jobs, self.sizes.product):
            every = _joined([job.words for job in group])
            states = _joined([job.columns.here() for job in group])
            multiple = self.sizes.multiple
            if len(group) > 1:  # sizes that come again: a CPU too prepares for each that is new
                multiple = max(16, multiple)
                states = torch.nn.functional.pad(states, (0, 0, 0, -states.shape[0] % 256))
            if lacking := -every.shape[0] % multiple:
                every = torch.nn.functional.pad(every, (0, lacking))
            logits = self.head.project(every, states)
            row = state = 0
            for columns, some, begins in group:
                own = logits[row : row + some.shape[0], state : state + columns.tokens]
                self.windows(0, columns.tokens).index_copy_(0, begins, own)
                row, state = row + some.shape[0], state + columns.tokens

    def _replace(
        self,
        prompts: Sequence["Columns"],
        olds: Sequence[int],
        kept: Sequence[int],
        firsts: Tensor,
    ) -> None:
        """Write into `firsts` where the columns lie that were not used for longest, now absent.

        They are the last of each prompt's `kept` new ones; none of them is used by this step.
        """
        rows = put([columns.row for columns in prompts], firsts.device)
        age = self.used[rows]
        age.masked_fill_((age == self.step) | self.absent[rows].bool(), _NEVER)
        oldest = age.topk(max(olds), 1, largest=False).indices
        ends = [*accumulate(kept)]
        plan = put(
            [
                _heads(olds, oldest.shape[1]),
                self._bases(prompts, olds),
                [*chain.from_iterable(range(e - n, e) for e, n in zip(ends, olds, strict=True))],
            ],
            firsts.device,
        )
        places = oldest.take(plan[0]) + plan[1]
        firsts.index_copy_(0, plan[2], self.slots.take(places).long())
        self.absent.view(-1).index_fill_(0, places, 1)

    def _bases(self, prompts: Sequence["Columns"], counts: Sequence[int]) -> list[int]:
        """Where the row of a prompt begins in flat `slots`, so many times for each."""
        each = zip(prompts, counts, strict=True)
        return [place for columns, count in each for place in [columns.base] * count]

    def _span(self, reach: int) -> None:
        """Let the table hold so many grains, and a window at any of them."""
        grain = self.sizes.grain
        if reach > self.reach:
            self.reach = min(self.limit, max(reach, self.reach * 5 // 4))
        elements = (self.reach + self.widest) * grain
        if elements > self.table.numel():
            self.table = _grown(self.table, elements)


class Columns:
    """What one prompt holds in a pool: made by `Pool.open`.

    Attributes:
        states: (M, d) vision states, in the LM head's dtype, on any device.
        tokens: M.
        size: of a column, in grains; `bytes` without what fills it up to them.
        row_bytes: of the LM head's row of a word, in float32.
        base: where its row begins in the pool's flat `slots`.
        held: how many columns it holds.
        short: how many words of the latest step found no room, and are absent.
        open: whether the prompt has not ended.
    """

    def __init__(self, pool: Pool, row: int, states: Tensor) -> None:
        self.pool = pool
        self.row = row
        self.base = row * pool.slots.shape[1]
        self.states = states
        self.tokens = states.shape[0]
        self.size = max(1, -(-self.tokens // pool.sizes.grain))
        self.bytes = self.tokens * pool.table.element_size()
        self.row_bytes = 4 * pool.head.width
        self.runs: list[range] = []
        self.held = 0
        self.short = 0
        self.open = True

    def take(self, coming: int, in_use: int) -> tuple[list[int], int]:
        """Room for new columns: where those that are free begin, and how many take an old place."""
        runs = self.pool.take(self.size, coming)
        fresh = [*chain.from_iterable(runs)]
        old = min(coming - len(fresh), self.held - in_use)
        self.runs += runs
        self.held += len(fresh)
        self.short = coming - len(fresh) - old
        return fresh, old

    @torch.no_grad()
    def project(self, words: Tensor, states: slice | Tensor | None = None) -> Tensor:
        """The logits (c, b) of words (c,) at some of the states, all if None."""
        some = self.here(states)
        return _joined([self.pool.head.project(each, some) for each in self.split(words)])

    def here(self, states: slice | Tensor | None = None) -> Tensor:
        """Some of the states, all if None, where the LM head is."""
        if isinstance(states, Tensor):
            states = states.to(self.states.device)
        some = self.states if states is None else self.states[states]
        return some.to(self.pool.head.device)

    def split(self, words: Tensor) -> tuple[Tensor, ...]:
        """As many words at a time as temporaries allow."""
        sizes, count = self.pool.sizes, words.shape[0]
        if count * self.row_bytes <= sizes.gathered and count * self.bytes <= sizes.spilled:
            return (words,)
        most = max(1, min(sizes.gathered // self.row_bytes, sizes.spilled // self.bytes))
        parts: tuple[Tensor, ...] = torch.split(words, most)
        return parts


class Job(NamedTuple):
    """Columns of one prompt that are computed at a time."""

    columns: Columns
    words: Tensor  # (c,) int64
    firsts: Tensor  # (c,) int64: where they begin, in grains


def _products(jobs: Sequence[Job], limit: int) -> Iterator[list[Job]]:
    """Jobs of one product each: of several prompts where that takes less time than their calls."""
    group: list[Job] = []
    words = states = 0
    for job in jobs:
        words, states = words + job.words.shape[0], states + job.columns.tokens
        large = words * states * job.columns.states.shape[1] > limit
        if group and (large or job.columns is group[-1].columns):
            yield group
            group, words, states = [], job.words.shape[0], job.columns.tokens
        group.append(job)
    if group:
        yield group


def _joined(parts: list[Tensor]) -> Tensor:
    """One behind the other."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _heads(counts: Sequence[int], width: int) -> list[int]:
    """Where in a flat (rows, width) the first so many of each row stand."""
    return [*chain.from_iterable(range(i * width, i * width + n) for i, n in enumerate(counts))]


def merged(runs: list[range]) -> list[range]:
    """Runs of grains in order, neighbours as one."""
    merged: list[range] = []
    for run in sorted(runs, key=lambda each: each.start):
        if merged and merged[-1].stop == run.start:
            merged[-1] = range(merged[-1].start, run.stop)
        else:
            merged.append(range(run.start, run.stop))
    return merged


# Tensors that last are ordinary ones, whoever asks for them: one made in inference mode could not
# be written outside of it.
@torch.inference_mode(False)
def _grown(old: Tensor, size: int) -> Tensor:
    """A longer one that begins with the old."""
    grown = old.new_empty((size, *old.shape[1:]))
    grown[: old.shape[0]] = old
    return grown
