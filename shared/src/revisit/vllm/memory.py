"""The memory of a worker's requests: taken whole when it starts, so that vLLM counts it.

vLLM gives its KV cache what its profiling finds free. What is there before that, or is asked for
meanwhile, is counted as the model's (`determine_available_memory`, of the worker).
"""

import logging
import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from revisit.config import ReVisiTConfig
from revisit.core.columns import Cache
from revisit.core.head import LMHead
from revisit.core.rows import refine
from revisit.core.session import Session

log = logging.getLogger("vllm.revisit")

# Vision states that a step is rehearsed with: more are taken in parts.
_STATES = 128


def put(values: list[int], device: torch.device) -> Tensor:
    """Integers of the host as int64 on a device, without waiting for it."""
    pinned = device.type == "cuda"
    tensor = torch.tensor(values, dtype=torch.int64, device="cpu", pin_memory=pinned)
    return tensor.to(device, non_blocking=True)


def reserve(size: int, device: torch.device) -> Tensor | None:
    """So many bytes of a GPU: while they are held, vLLM leaves them out of its KV cache.

    Given back, they stay PyTorch's, for what is asked for in parts later. A CPU's are counted by
    `leave_room`.
    """
    return None if device.type == "cpu" else torch.empty(size, dtype=torch.uint8, device=device)


class Arena:
    """Room for vision states, one request's behind the other's.

    What finds none lies in the memory of the host: decoding is slower then, and the same.

    Args:
        size: bytes.

    Attributes:
        table: flat, all of it.
        free: runs of it that nobody has, ascending.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.table = torch.empty(size // dtype.itemsize, dtype=dtype, device=device)
        self.free = [range(self.table.numel())]
        self._told = False

    def take(self, *shape: int) -> Tensor:
        """A tensor of this shape, for the caller to fill and to `give` back."""
        count = math.prod(shape)
        for index, run in enumerate(self.free):
            if len(run) >= count:
                self.free[index : index + 1] = [run[count:]] if len(run) > count else []
                return self.table[run.start : run.start + count].view(shape)
        if not self._told:
            self._told = True
            log.warning(
                "ReVisiT: the vision states of all requests find no room in %d MiB, and go to the "
                "host's memory, which is slower: raise cache_bytes, or lower max_num_seqs",
                self.table.nbytes >> 20,
            )
        pinned = self.table.device.type == "cuda"
        return torch.empty(shape, dtype=self.table.dtype, pin_memory=pinned)

    def give(self, taken: Tensor) -> None:
        """Nobody reads it any more."""
        if taken.untyped_storage().data_ptr() == self.table.untyped_storage().data_ptr():
            start = taken.storage_offset()
            self.free = _merged([*self.free, range(start, start + taken.numel())])


def _merged(runs: list[range]) -> list[range]:
    """Runs in order, neighbours as one."""
    merged: list[range] = []
    for run in sorted(runs, key=lambda each: each.start):
        if merged and merged[-1].stop == run.start:
            merged[-1] = range(merged[-1].start, run.stop)
        else:
            merged.append(run)
    return merged


@torch.inference_mode()
def rehearse(head: LMHead, config: ReVisiTConfig, rows: int) -> None:
    """A step as large as one may be, for vLLM to profile: every token is plausible.

    Rows are taken one after another, so that one of them stands for all.
    """
    states = torch.zeros((_STATES, head.width), dtype=head.dtype, device=head.device)
    session = Session(states, Cache(head, head.size * _STATES * head.dtype.itemsize), config)
    logits = torch.zeros((rows, head.size), device=head.device)
    refine(logits, [session] + [None] * (rows - 1))


def leave_room(worker: Any, size: int) -> None:
    """Let a worker on a CPU give its KV cache so many bytes less.

    There memory that was not written yet is nowhere counted.
    """
    original: Callable[..., int] = worker.determine_available_memory

    @wraps(original)
    def determine_available_memory(*args: Any, **kwargs: Any) -> int:
        left = original(*args, **kwargs)
        if worker.cache_config.kv_cache_memory_bytes is not None:
            return left  # as somebody has chosen it
        if left <= size:
            raise ValueError(
                f"ReVisiT needs {size / 2**30:.2f} GiB, and of what gpu_memory_utilization allows "
                f"{left / 2**30:.2f} GiB are left: raise it, or lower cache_bytes or max_num_seqs"
            )
        return left - size

    worker.determine_available_memory = determine_available_memory
