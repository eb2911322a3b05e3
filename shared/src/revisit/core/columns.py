"""What a prompt keeps of its projections: the logits of tokens at its vision states.

A column H W[t], the logit of token t at every vision state, does not change during a generation,
and the plausible tokens of neighbouring steps overlap. So each column is computed once and kept, as
a row of the prompt's table, within a budget that prompts share. What finds no room is computed in
every step, block by block: that costs time and never memory.
"""

import warnings
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from revisit.core.head import Head

# Vision states in a block: at least so many, and whole vector registers of them.
_NARROWEST, _GRAIN = 128, 32


class Cache:
    """The budget that the prompts of a generation, or of an engine, share.

    Args:
        head: the LM head that projects their vision states.
        size: bytes of columns. To know where they are, a prompt takes another 8 for each token of
            the vocabulary, in the host's memory.

    Attributes:
        left: bytes that no prompt has taken.
        block: bytes of logits, in float32, whose divergence is taken at a time.
        gathered: bytes of the LM head's rows, in float32, in a product.
    """

    def __init__(self, head: Head, size: int) -> None:
        self.head = head
        self.size = self.left = size
        self.on_cpu = head.device.type == "cpu"
        # These fit a CPU's cache, and are enough work for a GPU.
        self.block, self.gathered = (5 * 2**18, 2**22) if self.on_cpu else (2**26, 2**26)


class Kept(NamedTuple):
    """Where the columns of a step's tokens are; tensors on the device of the table."""

    tokens: Tensor  # (c,) int64
    rows: Tensor  # (c,) int64, of the table; any row for those that are absent
    absent: Tensor | None = None  # int64, which of the tokens have no column; None if all have


class Columns:
    """The columns of one prompt.

    Args:
        states: (M, d) vision states. They stay on their device; products copy what they need.
        cache: the budget and the LM head.

    Attributes:
        table: (n, M) on the LM head's device, in its dtype; `held` rows are columns, and `room` of
            them are taken of the budget.
        places: (V,) int32 on the host, the row of each token, -1 where it has none.
        used: (V,) int32 on the host, the step that needed a token last.

    Raises:
        ValueError: there are no states, or they are not as wide as the LM head.
    """

    @torch.inference_mode(False)  # tensors made in inference mode cannot be written outside of it
    def __init__(self, states: Tensor, cache: Cache) -> None:
        head = cache.head
        if states.ndim != 2 or states.shape[1] != head.width:
            raise ValueError(
                f"vision states must have shape (M, {head.width}) to be projected by an LM head "
                f"of {head.size} tokens, got {tuple(states.shape)}"
            )
        if not states.shape[0]:
            raise ValueError("a prompt without vision states has nothing to be compared with")
        self.cache = cache
        self.states = states.detach().to(head.dtype)
        self.table = torch.empty((1, len(states)), dtype=head.dtype, device=head.device)
        self.bytes = len(states) * self.table.element_size()
        self.places = torch.full((head.size,), -1, dtype=torch.int32, device="cpu")
        self.used = torch.zeros_like(self.places)
        self.held = self.room = self.step = 0
        self.dense = self.closed = False

    def close(self) -> None:
        """The prompt has ended: what it took of the budget is free for others."""
        self.cache.left += self.room * self.bytes
        self.room, self.table, self.closed = 0, self.table[:0].clone(), True

    def keep(self, tokens: Tensor) -> Kept:
        """Compute and keep the columns of tokens (c,) int64 that are new, as many as fit."""
        if self.closed:
            raise ValueError("the session of this prompt is closed")
        vocabulary, cache = len(self.places), self.cache
        if not cache.on_cpu and not self.held and vocabulary * self.bytes <= cache.left:
            self._add(torch.arange(vocabulary, device="cpu"), 0)
            self.dense = True
        if self.dense:  # nobody has to ask which tokens are new
            return Kept(tokens, tokens)
        device, here = self.table.device, tokens.cpu()
        self.step += 1
        self.used.index_fill_(0, here, self.step)
        rows = self.places.index_select(0, here).long()
        new = (rows < 0).nonzero().squeeze(1)
        if len(new):
            added = self._add(here.index_select(0, new), len(here) - len(new))
            rows.index_copy_(0, new[: len(added)], added)
            new = new[len(added) :]
        if not len(new):
            return Kept(tokens, rows.to(device))
        _warn(cache.size)
        return Kept(tokens, rows.clamp_(min=0).to(device), new.to(device))

    def blocks(self, kept: Kept) -> Iterator[Tensor]:
        """Logits (c, b) of the tokens at some vision states at a time, for the caller to change."""
        most = self.cache.block // (4 * len(kept.tokens))
        width = max(_NARROWEST, most // _GRAIN * _GRAIN)
        for start in range(0, len(self.states), width):
            block = self.table[:, start : start + width].index_select(0, kept.rows)
            yield self._complete(block, kept, slice(start, start + width))

    def at(self, kept: Kept, choice: Tensor) -> Tensor:
        """Logits (c,) of the tokens at the vision state `choice`, () int64."""
        logits = self.table[kept.rows, choice].unsqueeze(1)
        return self._complete(logits, kept, choice.view(1).to(self.states.device)).squeeze(1)

    def _complete(self, logits: Tensor, kept: Kept, some: slice | Tensor) -> Tensor:
        """Logits (c, b) at some vision states, those of absent tokens computed."""
        if kept.absent is not None:
            tokens = kept.tokens.index_select(0, kept.absent)
            self._project(tokens, self.states[some], logits, kept.absent)
        return logits

    def _add(self, tokens: Tensor, in_use: int) -> Tensor:
        """Compute the columns of tokens (c,), on the host, and keep them as far as there is room.

        Args:
            in_use: how many of the columns that are held this step needs; `used` says which.

        Returns:
            The rows of the first tokens: free ones, then those not used for longest.
        """
        held = self.held
        self._make_room(held + len(tokens))
        self.held = min(self.room, held + len(tokens))
        rows = torch.arange(held, self.held, device="cpu")
        if old := min(len(tokens) - len(rows), held - in_use):
            never = torch.iinfo(torch.int32).max
            oldest = self.used.masked_fill(self.places < 0, never).topk(old, largest=False).indices
            rows = torch.cat((rows, self.places.index_select(0, oldest)))
            self.places.index_fill_(0, oldest, -1)
        if len(rows):
            tokens = tokens[: len(rows)]
            self.places.index_copy_(0, tokens, rows.int())
            self._project(tokens, self.states, self.table, rows)
        return rows

    @torch.inference_mode(False)
    def _make_room(self, rows: int) -> None:
        """Take as much of the budget as so many rows need, or as it has."""
        cache, vocabulary = self.cache, len(self.places)
        if rows <= self.room:
            return
        if not cache.on_cpu:
            rows = max(rows, 2 * self.room)  # a table that grows is copied
        rows = min(rows, vocabulary, self.room + cache.left // self.bytes)
        cache.left -= (rows - self.room) * self.bytes
        self.room = rows
        if cache.on_cpu:  # where memory is taken as it is written: all that may come
            rows = min(vocabulary, cache.size // self.bytes)
        if rows > len(self.table):
            # With deterministic algorithms `torch.empty` would write all of it.
            size, old = rows * self.bytes, self.table
            memory = torch.UntypedStorage(size, device=old.device)  # type: ignore[no-untyped-call]
            self.table = old.new_empty(0).set_(memory).view(rows, -1)
            self.table[: self.held] = old[: self.held]

    def _project(self, tokens: Tensor, states: Tensor, out: Tensor, rows: Tensor) -> None:
        """Write the logits of tokens (c,) at states (b, d) to their rows (c,) of `out` (n, b)."""
        head, states = self.cache.head, states.to(out.device)
        most = max(1, self.cache.gathered // (4 * head.width))
        parts = (torch.split(each.to(out.device), most) for each in (tokens, rows))
        for some, places in zip(*parts, strict=True):
            out.index_copy_(0, places, head.project(some, states))


@cache
def _warn(size: int) -> None:
    """Say once that a step has more plausible tokens than columns fit."""
    warnings.warn(
        f"ReVisiT: cache_bytes={size} does not hold the vision logits of all plausible tokens of a "
        "step, so the rest is computed in every step, which is slow: raise cache_bytes or alpha, "
        "or choose fewer layers",
        stacklevel=2,
    )
