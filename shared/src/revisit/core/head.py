"""The LM head, as ReVisiT reads it: the logits of some words at some hidden states."""

import time
from functools import cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

# Hidden states read as float32 at a time, where a product needs that.
_STATES = 64


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
        rounding, and several times faster.
        """
        weight = self.weight.index_select(0, words)
        if native(self.dtype, self.device.type):
            return self.finish(torch.mm(weight, states.T), words)
        weight = weight.float()
        logits = self.weight.new_empty((words.shape[0], states.shape[0]))
        each = zip(torch.split(states, _STATES), torch.split(logits, _STATES, 1), strict=True)
        for some, out in each:
            out.copy_(self.finish(torch.mm(weight, some.float().T), words))
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
    """Whether the device multiplies matrices of this dtype about as fast as float32, or faster.

    A CPU is asked for bfloat16 by a product that takes some tenths of a millisecond: without
    instructions of its own (AVX2) it is about seven times slower than in float32, conversion
    included; with them (AVX-512, AMX, ARM) it is not slower. Products of float16 are new to
    PyTorch on a CPU, and are always taken in float32 there.
    """
    if device != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return True
    return dtype == torch.bfloat16 and _seconds(dtype) < 2 * _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    """The time of a small product of bfloat16 matrices, taken in this dtype; the best of some."""
    weight = torch.ones(64, 1024, dtype=torch.bfloat16)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(weight.to(dtype), weight.to(dtype).T)
        times.append(time.perf_counter() - started)
    return min(times)
