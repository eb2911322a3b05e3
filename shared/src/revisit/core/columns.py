"""What a prompt keeps of its projections: the logits of tokens at its vision states.

A column H W[t], the logit of token t at every vision state, does not change during a generation,
and V_cons of neighbouring steps overlap. So it is computed once and kept, as a row of the prompt's
table, within a budget that prompts share. A full table drops all columns that the current step does
not need. What has no room even then is computed in every step, block by block: that costs time and
never memory.
"""

import warnings
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from revisit.core.head import Head

# Vision states in a block: at least so many, and in whole vector registers.
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
        self.head, self.size, self.left = head, size, size
        self.on_cpu = head.device.type == "cpu"
        # These fit a CPU's cache, and are enough work for a GPU.
        self.block, self.gathered = (5 * 2**18, 2**22) if self.on_cpu else (2**26, 2**26)


class TableRows(NamedTuple):
    """The rows of the table that hold a step's tokens; tensors on the device of the table."""

    tokens: Tensor  # (c,) int64
    rows: Tensor  # (c,) int64; any row for tokens that are absent
    absent: Tensor | None = None  # int64, which of the tokens have no column; None if all have


class Columns:
    """The columns of one prompt.

    Args:
        states: (M, d) vision states. They stay on their device; products copy what they need.
        cache: the budget and the LM head.

    Raises:
        ValueError: there are no states, or they are not as wide as the LM head.
    """

    @torch.inference_mode(False)  # tensors made in inference mode cannot be written outside of it
    def __init__(self, states: Tensor, cache: Cache) -> None:
        head = cache.head
        if states.ndim != 2 or states.shape[1] != head.width or not len(states):
            raise ValueError(
                f"vision states must have shape (M, {head.width}), M at least 1, to be projected "
                f"by an LM head of {head.size} tokens, got {tuple(states.shape)}"
            )
        self.cache, self.states = cache, states.detach().to(head.dtype)
        self.table = torch.empty((1, len(states)), dtype=head.dtype, device=head.device)
        self.bytes = len(states) * self.table.element_size()  # of a column
        self.taken = 0  # rows of the table that are taken of the budget
        # On the host: the row of each token, -1 where it has none, and rows without a token.
        self.row_of = torch.full((head.size,), -1, dtype=torch.int32, device="cpu")
        self.free = torch.empty(0, dtype=torch.int64, device="cpu")
        self.dense = self.closed = False

    @property
    def held(self) -> int:  # how many columns are kept
        return self.taken - len(self.free)

    def close(self) -> None:
        """The prompt has ended: what it took of the budget is free for others."""
        self.cache.left += self.taken * self.bytes
        self.taken, self.table, self.closed = 0, self.table[:0].clone(), True

    def keep(self, tokens: Tensor) -> TableRows:
        """Compute and keep the columns of tokens (c,) int64 that are new, as many as fit."""
        if self.closed:
            raise ValueError("the session of this prompt is closed")
        cache, vocabulary = self.cache, len(self.row_of)
        if not cache.on_cpu and not self.taken and vocabulary * self.bytes <= cache.left:
            # All tokens, in the rows of their numbers: no later step has to look for new ones.
            self._add(torch.arange(vocabulary, device="cpu"), self.row_of.long())
            self.dense = True
        if self.dense:
            return TableRows(tokens, tokens)
        on_host = tokens.cpu()
        rows = self.row_of.index_select(0, on_host).long()
        if not len(absent := self._add(on_host, rows)):
            return TableRows(tokens, rows.to(tokens.device))
        _warn(cache.size)
        return TableRows(tokens, rows.clamp_(min=0).to(tokens.device), absent.to(tokens.device))

    def blocks(self, kept: TableRows) -> Iterator[Tensor]:
        """Logits (c, b) of the tokens at some vision states at a time, for the caller to change."""
        most = self.cache.block // (4 * len(kept.tokens))
        width = max(_NARROWEST, most // _GRAIN * _GRAIN)
        for start in range(0, len(self.states), width):
            block = self.table[:, start : start + width].index_select(0, kept.rows)
            yield self._complete(block, kept, slice(start, start + width))

    def at(self, kept: TableRows, choice: Tensor) -> Tensor:
        """Logits (c,) of the tokens at the vision state `choice`, () int64."""
        logits = self.table[kept.rows, choice].unsqueeze(1)
        return self._complete(logits, kept, choice.view(1).to(self.states.device)).squeeze(1)

    def _complete(self, logits: Tensor, kept: TableRows, states: slice | Tensor) -> Tensor:
        """Logits (c, b) at some vision states, with absent tokens computed."""
        if kept.absent is not None:
            tokens = kept.tokens.index_select(0, kept.absent)
            self._project(tokens, self.states[states], logits, kept.absent)
        return logits

    def _add(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """Keep columns of the tokens (c,) in row -1, and write their rows; returns the rest."""
        new = (rows < 0).nonzero().squeeze(1)
        if not len(new):
            return new
        self._grow(self.held + len(new))
        if len(new) > len(self.free):  # drop the columns of all other tokens
            self.row_of.fill_(-1).index_copy_(0, tokens, rows.int())
            unused = torch.ones(self.taken + 1, dtype=torch.bool, device="cpu")
            self.free = unused.index_fill_(0, rows + 1, False)[1:].nonzero().squeeze(1)
        if not (count := min(len(new), len(self.free))):
            return new
        added, into, self.free = new[:count], self.free[:count], self.free[count:].clone()
        rows.index_copy_(0, added, into)
        added = tokens.index_select(0, added)
        self.row_of.index_copy_(0, added, into.int())
        self._project(added, self.states, self.table, into)
        return new[count:]

    @torch.inference_mode(False)
    def _grow(self, rows: int) -> None:
        """Take as much of the budget as so many rows need, or as it has."""
        cache, vocabulary = self.cache, len(self.row_of)
        if rows <= self.taken:
            return
        if not cache.on_cpu:
            rows = max(rows, 2 * self.taken)  # a table that grows is copied
        rows = min(rows, vocabulary, self.taken + cache.left // self.bytes)
        cache.left -= (rows - self.taken) * self.bytes
        self.free = torch.cat((self.free, torch.arange(self.taken, rows, device="cpu")))
        self.taken = rows
        if cache.on_cpu:  # where memory is taken as it is written: all that may come
            rows = min(vocabulary, cache.size // self.bytes)
        if rows > len(self.table):
            # With deterministic algorithms `torch.empty` would write all of it.
            memory = torch.UntypedStorage(rows * self.bytes, device=self.table.device)  # type: ignore[no-untyped-call]
            old = self.table
            self.table = old.new_empty(0).set_(memory).view(rows, -1)
            self.table[: len(old)] = old

    def _project(self, tokens: Tensor, states: Tensor, out: Tensor, rows: Tensor) -> None:
        """Write the logits of tokens (c,) at states (b, d) to their rows (c,) of `out` (n, b)."""
        head, states = self.cache.head, states.to(out.device)
        most = max(1, self.cache.gathered // (4 * head.width))
        parts = (torch.split(each.to(out.device), most) for each in (tokens, rows))
        for some, into in zip(*parts, strict=True):
            out.index_copy_(0, into, head.project(some, states))


@cache
def _warn(size: int) -> None:
    """Say once that a step has more plausible tokens than columns fit."""
    warnings.warn(
        f"ReVisiT: cache_bytes={size} does not hold the vision logits of all plausible tokens of a "
        "step, so the rest is computed in every step, which is slow: raise cache_bytes or alpha, "
        "or choose fewer layers",
        stacklevel=2,
    )
