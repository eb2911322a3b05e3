"""The logits of a prompt's vision tokens, token by token of the vocabulary, computed when needed.

A column H W[w], the logit of word w at every vision token, does not change during a generation,
and the plausible words of neighbouring steps overlap. So each column is computed once and kept,
within a budget; the projection onto the whole vocabulary is never formed.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Rows of the LM head gathered at a time.
_GATHER_BYTES = 32 * 2**20


class LMHead(NamedTuple):
    """The output projection, and what the model does to its logits afterwards.

    Logits are softcap * tanh(x / softcap), or x where `softcap` is None, with
    x = scale * (H W^T + bias).
    """

    weight: Tensor  # (V, d)
    bias: Tensor | None = None  # (V,)
    scale: float = 1.0
    softcap: float | None = None

    def finish(self, product: Tensor, words: Tensor | None = None) -> Tensor:
        """Logits (c, b) from the product W[words] H^T (c, b), in its dtype.

        Args:
            words: (c,) token ids of the rows; the whole vocabulary if left out.
        """
        if self.bias is not None:
            bias = self.bias if words is None else self.bias[words]
            product = product + bias.unsqueeze(1)
        if self.scale != 1:
            product = product * self.scale
        if self.softcap is not None:
            product = torch.tanh(product / self.softcap) * self.softcap
        return product


class Columns:
    """Vision-token logits of one prompt.

    Args:
        states: (M, d) vision states, floating point.
        head: the LM head; the product is taken in its dtype.
        budget: bytes that kept columns may take. Columns beyond it take the place of those not used
            for longest; a vocabulary that does not fit at all is computed in blocks, not kept.
    """

    def __init__(self, states: Tensor, head: LMHead, budget: int) -> None:
        if states.ndim != 2 or states.shape[1] != head.weight.shape[1]:
            raise ValueError(
                f"vision states must have shape (M, {head.weight.shape[1]}) to be projected by an "
                f"LM head of shape {tuple(head.weight.shape)}, got {tuple(states.shape)}"
            )
        self.states = states.to(head.weight)
        self.head = head
        self.tokens = states.shape[0]
        self.most = budget // max(1, self.tokens * head.weight.element_size())
        self.kept = 0
        # One row a word, so that a step gathers contiguous memory.
        self.table = self.states.new_empty((0, self.tokens))
        # For each row: its word, and the step that used it last.
        self.words = torch.empty(0, dtype=torch.int64, device=head.weight.device)
        self.used = torch.empty_like(self.words)
        self.steps = 0
        self.slots = self.words.new_full(head.weight.shape[:1], -1)

    def keep(self, vocabulary: Tensor) -> Tensor | None:
        """Compute and keep the columns of `vocabulary` (c,) that are not there yet.

        Returns:
            (c,) rows of the table that hold them, or None where they do not fit the budget.
        """
        if vocabulary.shape[0] > self.most:
            return None
        self.steps += 1
        slots = self.slots[vocabulary]
        if slots.min() < 0:
            slots = self._add(vocabulary, slots)
        self.used[slots] = self.steps
        return slots

    def _add(self, vocabulary: Tensor, slots: Tensor) -> Tensor:
        there = slots >= 0
        self.used[slots[there]] = self.steps
        missing = vocabulary[~there]
        coming = missing.shape[0]
        if self.kept + coming > self.most:
            self._drop_oldest(vocabulary.shape[0] - coming, coming)
        end = self.kept + coming
        if end > self.table.shape[0]:
            self._grow(min(self.most, max(end, self.kept * 3 // 2)))
        self._project(missing, slice(None), self.table[self.kept : end])
        self.words[self.kept : end] = missing
        self.slots[missing] = torch.arange(self.kept, end, device=missing.device)
        self.kept = end
        return self.slots[vocabulary]

    def _grow(self, rows: int) -> None:
        for name in ("table", "words", "used"):
            old = getattr(self, name)
            grown = old.new_empty((rows, *old.shape[1:]))
            grown[: self.kept] = old[: self.kept]
            setattr(self, name, grown)

    def _drop_oldest(self, in_use: int, coming: int) -> None:
        """Make room for `coming` rows, and more, so that not every step has to."""
        left = max(in_use, (self.most - coming) // 2)
        rows = self.used[: self.kept].topk(left).indices
        self.slots.fill_(-1)
        self.slots[self.words[rows]] = torch.arange(left, device=rows.device)
        for values in (self.table, self.words, self.used):
            values[:left] = values[rows]
        self.kept = left

    def __call__(self, vocabulary: Tensor, slots: Tensor | None, tokens: slice | Tensor) -> Tensor:
        """Logits (c, b) of the words `vocabulary` (c,) at the vision states `tokens`.

        Args:
            slots: what `keep` returned for them.
        """
        if slots is None:
            return self._project(vocabulary, tokens)
        if isinstance(tokens, slice):
            return self.table[:, tokens][slots]
        return self.table[slots.unsqueeze(1), tokens]

    def _project(
        self, vocabulary: Tensor, tokens: slice | Tensor, out: Tensor | None = None
    ) -> Tensor:
        """(H W^T)^T on the given words and states, (c, b), in the LM head's dtype."""
        states = self.states[tokens]
        if out is None:
            out = states.new_empty((vocabulary.shape[0], states.shape[0]))
        # PyTorch 2.0 has no float16 product on the CPU; the result is rounded all the same.
        upcast = states.dtype == torch.float16 and states.device.type == "cpu"
        rows = max(1, _GATHER_BYTES // (states.shape[1] * states.element_size()))
        for start in range(0, vocabulary.shape[0], rows):
            words = vocabulary[start : start + rows]
            weight = self.head.weight[words]
            product = weight.float() @ states.float().T if upcast else weight @ states.T
            out[start : start + rows] = self.head.finish(product, words)
        return out
