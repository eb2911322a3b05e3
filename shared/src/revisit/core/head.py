"""The LM head, as ReVisiT reads it: the logits of some words at some hidden states."""

from typing import NamedTuple

import torch
from torch import Tensor

# Rows of the LM head gathered at a time: enough that all hidden states are not read for a few.
_GATHERED_BYTES = {"cpu": 4 * 2**20}
_GPU_GATHERED_BYTES = 64 * 2**20


class LMHead(NamedTuple):
    """The output projection, and what the model does to its logits afterwards.

    Logits are softcap * tanh(x / softcap), or x where `softcap` is None, with
    x = scale * (H W^T + bias).
    """

    weight: Tensor  # (V, d)
    bias: Tensor | None = None  # (V,)
    scale: float = 1.0
    softcap: float | None = None

    def project(self, words: Tensor, states: Tensor) -> Tensor:
        """The logits (c, b) of words (c,) int64 at hidden states (b, d), in the head's dtype."""
        # PyTorch 2.0 has no float16 product on the CPU; the result is rounded all the same.
        upcast = states.dtype == torch.float16 and states.device.type == "cpu"
        if upcast:
            states = states.float()
        logits = self.weight.new_empty((words.shape[0], states.shape[0]))
        size = self._words_a_block()
        for some, out in zip(torch.split(words, size), torch.split(logits, size), strict=True):
            weight = self.weight.index_select(0, some)
            product = torch.mm(weight.float() if upcast else weight, states.T)
            out.copy_(self.finish(product, some))
        return logits

    def finish(self, product: Tensor, words: Tensor) -> Tensor:
        """Logits (c, b) of the words (c,) from the product W[words] H^T (c, b), in its dtype."""
        if self.bias is not None:
            product = product + self.bias[words].unsqueeze(1)
        if self.scale != 1:
            product = product * self.scale
        if self.softcap is not None:
            product = torch.tanh(product / self.softcap) * self.softcap
        return product

    def _words_a_block(self) -> int:
        size = _GATHERED_BYTES.get(self.weight.device.type, _GPU_GATHERED_BYTES)
        return max(1, size // (self.weight.shape[1] * self.weight.element_size()))
