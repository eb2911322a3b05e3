"""The LM head, as ReVisiT reads it: the logits of some tokens at some hidden states."""

from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

# How Linux names a processor's instructions for products of bfloat16 (x86, x86, ARM).
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}

# Hidden states read as float32 at a time, where a product needs that.
_STATES = 64


class Head(Protocol):
    """What the method needs of an LM head; `LMHead` is the one that holds its weight in memory.

    Another one projects in another way: a sharded head the tokens that this rank holds, summed
    over the ranks; a quantized head from the unpacked rows of the tokens. Equal hidden states must
    have exactly equal logits.

    Attributes:
        size: V, the number of tokens.
        width: d, the size of a hidden state.
        dtype, device: of hidden states and logits.
    """

    @property
    def size(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    def project(self, tokens: Tensor, states: Tensor) -> Tensor:
        """The logits (c, b) of tokens (c,) int64 at hidden states (b, d), in the head's dtype."""


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
        return self.weight.shape[0]

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def project(self, tokens: Tensor, states: Tensor) -> Tensor:
        """The logits (c, b), as `Head` says.

        Where the processor has no arithmetic of that dtype (see `native`), the rows of the weight
        and the states are read as float32 and the logits rounded to it: the same within its
        rounding, and several times faster.
        """
        weight = self.weight.index_select(0, tokens)
        if weight.dtype == torch.float32 or native(self.dtype, self.device.type):
            return self.finish(torch.mm(weight, states.T), tokens)
        weight = weight.float()
        logits = self.weight.new_empty((tokens.shape[0], states.shape[0]))
        each = zip(torch.split(states, _STATES), torch.split(logits, _STATES, 1), strict=True)
        for some, out in each:
            # A product of always the same shape: all its columns are summed in the same way.
            block = pad(some.float(), (0, 0, 0, _STATES - len(some)))
            out.copy_(self.finish(torch.mm(weight, block.T), tokens)[:, : len(some)])
        return logits

    def finish(self, product: Tensor, tokens: Tensor) -> Tensor:
        """Logits (c, b) of the tokens (c,) from the product W[tokens] H^T (c, b), in its dtype."""
        if self.bias is not None:
            product = product + self.bias[tokens].unsqueeze(1)
        if self.scale != 1:
            product = product * self.scale
        if self.softcap is not None:
            product = torch.tanh(product / self.softcap) * self.softcap
        return product


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Operators keep the dtypes of their tensors inside, whatever mixed precision is set."""
    try:
        return torch.autocast(device.type, enabled=False)
    except RuntimeError:  # a device without mixed precision
        return nullcontext()


@cache
def native(dtype: torch.dtype, device: str) -> bool:
    """Whether the device has arithmetic of this dtype for its matrix products.

    Without it (a CPU with AVX2 alone) a product of bfloat16 takes about seven times as long as one
    of float32, conversion included. Products of float16 are new to PyTorch on a CPU, and are always
    taken in float32 there; bfloat16 too where the system does not tell what the processor has.
    """
    if device != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return True
    with suppress(OSError):
        features = Path("/proc/cpuinfo").read_text().split()
        return dtype == torch.bfloat16 and not _BFLOAT16.isdisjoint(features)
    return False
