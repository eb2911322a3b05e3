"""The logits of a prompt's vision tokens, token by token of the vocabulary, computed when needed.

A column H W[w], the logit of word w at every vision token, does not change during a generation,
and the plausible words of neighbouring steps overlap. So each column is computed once and kept,
within a budget; the projection onto the whole vocabulary is never formed.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from revisit.core.head import LMHead

# Temporaries stay within a CPU's cache, and are large enough to fill a GPU.
_BLOCK_BYTES = {"cpu": 5 * 2**18}
_GPU_BLOCK_BYTES = 64 * 2**20

# Logits projected at once and not kept: enough that a weight is not read for a few states only.
_PROJECTED_BYTES = 32 * 2**20


class Columns:
    """Vision-token logits of one prompt.

    Args:
        states: (M, d) vision states, floating point.
        head: the LM head; the product is taken in its dtype.
        budget: bytes that kept columns may take. Columns beyond it take the place of those not used
            for longest; what does not fit at all is computed in blocks, and not kept.
        block_bytes: how large a temporary tensor should be at most; what suits the device if None.

    Attributes:
        tokens: M.
        table: (rows, M) one kept column a row, so that a step gathers contiguous memory.
        slots: (V,) int64, the row of the table that holds a word; any where it is absent.
        absent: (V,) bool, the words that the table does not hold.
        complete: whether the table holds all words that `keep` was last asked for.
    """

    def __init__(
        self, states: Tensor, head: LMHead, budget: int, block_bytes: int | None = None
    ) -> None:
        if states.ndim != 2 or states.shape[1] != head.weight.shape[1]:
            raise ValueError(
                f"vision states must have shape (M, {head.weight.shape[1]}) to be projected by an "
                f"LM head of shape {tuple(head.weight.shape)}, got {tuple(states.shape)}"
            )
        vocabulary = head.weight.shape[0]
        self.states = states.to(head.weight)
        self.head = head
        self.tokens = states.shape[0]
        self.most = min(vocabulary, budget // max(1, self.tokens * head.weight.element_size()))
        own = _BLOCK_BYTES.get(head.weight.device.type, _GPU_BLOCK_BYTES)
        self.block_bytes = own if block_bytes is None else block_bytes
        self.kept = 0
        self.complete = True
        self.table = self.states.new_empty((0, self.tokens))
        self.slots = torch.zeros(vocabulary, dtype=torch.int64, device=head.weight.device)
        self.absent = torch.ones_like(self.slots, dtype=torch.bool)
        # For each row of the table: its word, and the step that used it last.
        self.words = self.slots.new_empty(0)
        self.used = torch.empty_like(self.words)
        self.steps = 0

    def begin(self) -> None:
        """A step begins: until `keep` says otherwise, all that it needs is there."""
        self.steps += 1
        self.complete = True

    def keep(self, missing: Tensor, wanted: Tensor, in_use: int) -> None:
        """Compute and keep columns that a step needs, as many as fit.

        Args:
            missing: (n,) int64 distinct words, all of them absent.
            wanted: (V,) bool, all words of the step.
            in_use: how many of `wanted` the table holds.
        """
        coming = min(missing.shape[0], self.most - in_use)
        self.complete = coming == missing.shape[0]
        if not coming:
            return
        missing = missing[:coming]
        free = min(coming, self.most - self.kept)
        end = self.kept + free
        if end > self.table.shape[0]:
            self._grow(min(self.most, max(end, self.kept * 5 // 4)))
        rows = torch.arange(self.kept, end, device=missing.device)
        if coming > free:
            rows = torch.cat([rows, self._oldest(coming - free, wanted)])
        self.kept = end
        self._fill(rows, missing)

    @property
    def bounded(self) -> bool:
        """Whether columns may have to go: the budget is smaller than the vocabulary."""
        return self.most < self.slots.shape[0]

    def mark(self, words: Tensor) -> None:
        """Note that the step uses `words` (c,), which tells a bounded table what is old."""
        if self.complete:
            self.used.index_fill_(0, self.slots[words], self.steps)
        else:  # the step needs more than fits, so every word of the table is one of its words
            self.used.fill_(self.steps)

    def _oldest(self, count: int, wanted: Tensor) -> Tensor:
        """The rows not used for longest, none of them wanted; their words become absent."""
        words = self.words[: self.kept]
        age = self.used[: self.kept].masked_fill(wanted[words], self.steps)
        rows = age.topk(count, largest=False).indices
        self.absent.index_fill_(0, words[rows], True)
        return rows

    def _grow(self, rows: int) -> None:
        for name in ("table", "words", "used"):
            old = getattr(self, name)
            grown = old.new_empty((rows, *old.shape[1:]))
            grown[: self.kept] = old[: self.kept]
            setattr(self, name, grown)

    def _fill(self, rows: Tensor, words: Tensor) -> None:
        size = max(1, _PROJECTED_BYTES // max(1, self.tokens * self.table.element_size()))
        each = zip(torch.split(rows, size), torch.split(words, size), strict=True)
        for some_rows, some_words in each:
            self.table.index_copy_(0, some_rows, self.project(some_words))
        self.words[rows] = words
        self.used.index_fill_(0, rows, self.steps)
        self.slots[words] = rows
        self.absent.index_fill_(0, words, False)

    def project(self, words: Tensor, tokens: slice | Tensor = slice(None)) -> Tensor:
        """The logits (c, b) of words (c,) at some of the states, in the LM head's dtype."""
        return self.head.project(words, self.states[tokens])


class Found:
    """The columns of the words of a step, for rows with equally many vision states.

    Args:
        visions: the columns of each row; a single row where they are not complete.
        words: (rows, c) int64 token ids.
    """

    def __init__(self, visions: Sequence[Columns], words: Tensor) -> None:
        first = visions[0]
        # Rows of one prompt are looked up together.
        alone = all(vision is first for vision in visions)
        self.visions = [first] if alone else visions
        self.tokens, self.shape = first.tokens, words.shape
        self.words = [words] if alone else torch.split(words, 1)
        self.slots = [v.slots.take(w) for v, w in zip(self.visions, self.words, strict=True)]
        # Where the words that did not fit stand in `words`. A GPU is waited for here, but the
        # projection that they need every step takes far longer.
        self.absent = None if first.complete else first.absent[words[0]].nonzero().squeeze(1)

    def blocks(self, width: int) -> Iterator[Tensor]:
        """Logits (rows, c, b) of b <= `width` vision states at a time, for the caller to change."""
        if self.absent is None:
            for start in range(0, self.tokens, width):
                yield self._kept(slice(start, start + width))
            return
        size = self.words[0].numel() * self.visions[0].table.element_size()
        wide = width * max(1, _PROJECTED_BYTES // (size * width))
        for start in range(0, self.tokens, wide):
            piece = self._partly_kept(slice(start, start + wide)).unsqueeze(0)
            yield from torch.split(piece, width, 2)

    def at(self, choice: Tensor) -> Tensor:
        """Logits (rows, c) at one vision state of each row, `choice` (rows,)."""
        if self.absent is not None:
            return self._partly_kept(choice).T
        if len(self.visions) == 1:
            return self.visions[0].table[self.slots[0], choice.unsqueeze(1)]
        # Kept as (1,), since an index without dimensions is read to the host.
        each = zip(self.visions, self.slots, torch.split(choice, 1), strict=True)
        return torch.cat([vision.table[slots, state] for vision, slots, state in each])

    def _kept(self, states: slice) -> Tensor:
        each = [
            vision.table[:, states].index_select(0, slots.flatten())
            for vision, slots in zip(self.visions, self.slots, strict=True)
        ]
        together = each[0] if len(each) == 1 else torch.cat(each)
        return together.view(*self.shape, -1)

    def _partly_kept(self, states: slice | Tensor) -> Tensor:
        """Logits (c, b) of the only row, some of them projected now."""
        assert self.absent is not None
        (vision,), words = self.visions, self.words[0][0]
        if self.absent.shape == words.shape:
            return vision.project(words, states)
        logits = vision.table[:, states].index_select(0, self.slots[0][0])
        return logits.index_copy_(0, self.absent, vision.project(words[self.absent], states))
