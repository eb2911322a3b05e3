"""The LM head, as ReVisiT reads it: the logits of some words at some hidden states."""

import platform
from functools import cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

# Where a product needs float32: hidden states that are read so at a time, and as many words as are
# faster without.
_STATES = 64
_FEW = 4


class Head(Protocol):
    """What the method needs of an LM head; `LMHead` is the one that holds its weight in memory.

    Another one projects in its own way: a sharded head the words that this rank holds, summed over
    the ranks; a quantized head from the unpacked rows of those words. It must be exact about
    equality: equal hidden states have equal logits.
    """

    @property
    def size(self) -> int:
        """V, the number of words."""

    @property
    def width(self) -> int:
        """d, the size of a hidden state."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of hidden states and logits."""

    @property
    def device(self) -> torch.device:
        """Where hidden states and logits are."""

    def project(self, words: Tensor, states: Tensor) -> Tensor:
        """The logits (c, b) of words (c,) int64 at hidden states (b, d), in the head's dtype."""


class LMHead(NamedTuple):
    """The output projection, and what the model does to its logits afterwards.

    Logits are softcap * tanh(x / softcap), or x where `softcap` is None, with
    x = scale * (H W^T + bias).
    """

    weight: Tensor  # (V, d)
    bias: Tensor | None = None  # (V,)
    scale: float = 1.0
    softcap: float | None = None

    @property
    def size(self) -> int:
        """V, the number of words."""
        return self.weight.shape[0]

    @property
    def width(self) -> int:
        """d, the size of a hidden state."""
        return self.weight.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of hidden states and logits."""
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return self.weight.device

    def project(self, words: Tensor, states: Tensor) -> Tensor:
        """The logits (c, b) of words (c,) int64 at hidden states (b, d), in the head's dtype.

        Where the processor has no arithmetic of that dtype (see `native`), the rows of the weight
        and the states are read as float32 and the logits rounded to it: the same within its
        rounding, and several times faster but for a few words.
        """
        weight = self.weight.index_select(0, words)
        few = words.shape[0] <= _FEW and self.dtype != torch.float16
        if few or native(self.dtype, self.device.type):
            return self.finish(torch.mm(weight, states.T), words)
        weight = weight.float()
        logits = self.weight.new_empty((words.shape[0], states.shape[0]))
        each = zip(torch.split(states, _STATES), torch.split(logits, _STATES, 1), strict=True)
        for some, out in each:
            # A product of always the same shape: all its columns are summed in the same way.
            block = weight.new_zeros((_STATES, self.width))
            block[: some.shape[0]] = some
            out.copy_(self.finish(torch.mm(weight, block.T), words)[:, : some.shape[0]])
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


@cache
def native(dtype: torch.dtype, device: str) -> bool:
    """Whether the device multiplies matrices of this dtype by instructions of its own.

    Of bfloat16 PyTorch does on x86 processors from AVX-512 on; on others (AVX2) a product takes
    about seven times as long as in float32. Products of float16 are new to PyTorch on a CPU, and
    are always taken in float32 there.
    """
    if device != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return True
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    fast = not x86 or "CPU capability usage: AVX512" in torch.__config__.show()
    return dtype == torch.bfloat16 and fast
