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
    """The output projection: weight (V, d) and bias (V,) or None."""

    weight: Tensor
    bias: Tensor | None = None


class Columns:
    """Vision-token logits of one prompt.

    Args:
        states: (M, d) vision states, floating point.
        head: the LM head; the product is taken in its dtype.
        budget: bytes that kept columns may take; past it columns are computed and not kept.
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
        self.slots = torch.full(
            head.weight.shape[:1], -1, dtype=torch.int64, device=head.weight.device
        )

    def keep(self, vocabulary: Tensor) -> None:
        """Compute and keep the columns of `vocabulary` (c,) that are not there yet.

        Does nothing where they would not fit the budget.
        """
        missing = vocabulary[self.slots[vocabulary] < 0]
        end = self.kept + missing.shape[0]
        if end == self.kept or end > self.most:
            return
        if end > self.table.shape[0]:
            grown = self.states.new_empty((min(self.most, max(end, 2 * self.kept)), self.tokens))
            grown[: self.kept] = self.table[: self.kept]
            self.table = grown
        self._project(missing, slice(None), self.table[self.kept : end])
        self.slots[missing] = torch.arange(self.kept, end, device=missing.device)
        self.kept = end

    def __call__(self, vocabulary: Tensor, tokens: slice | Tensor) -> Tensor:
        """Logits (c, b) of the words `vocabulary` (c,) at the vision states `tokens`."""
        slots = self.slots[vocabulary]
        there = slots >= 0
        if there.all():
            return self.table[:, tokens][slots]
        block = self.states.new_empty((vocabulary.shape[0], self.states[tokens].shape[0]))
        block[there] = self.table[:, tokens][slots[there]]
        missing = ~there
        block[missing] = self._project(vocabulary[missing], tokens)
        return block

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
            weight, bias = self.head.weight[words], self.head.bias
            product = weight.float() @ states.float().T if upcast else weight @ states.T
            out[start : start + rows] = product if bias is None else product + bias[words, None]
        return out
