"""How much memory the prompts of an engine take, and how it is kept out of vLLM's KV cache.

Vision states, and the columns that are computed from them, lie in the `cache_bytes` of the engine.
A worker takes them, and on a GPU the kernels' tables, when its model is loaded. vLLM gives its KV
cache what its profiling then finds free (the worker's `determine_available_memory`).
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from revisit.config import ReVisiTConfig
from revisit.core.layers import resolve_layers

_GRAIN = 64  # the vision states of a prompt are rounded up to a multiple of this


def state_bytes(vllm_config: Any) -> int:
    """Bytes of one vision state and of what is computed from it.

    A column is as long as a prompt has vision states, and a state as wide as the LM head: about as
    many tokens ever become plausible. So columns get as much as vision states.
    """
    model = vllm_config.model_config
    size: int = 2 * model.hf_text_config.hidden_size * model.dtype.itemsize
    return size


def longest_prompt(vllm_config: Any, settings: ReVisiTConfig) -> int:
    """The most vision states that a prompt can have in an engine."""
    return settings.cache_bytes // state_bytes(vllm_config) // _GRAIN * _GRAIN


def prompt_bytes(tokens: int, vllm_config: Any, settings: ReVisiTConfig) -> int:
    """The most bytes that a prompt with so many vision tokens takes."""
    count = vllm_config.model_config.hf_text_config.num_hidden_layers
    # Whether LM head and embedding are tied is known once the weights are there.
    layers = max(len(resolve_layers(settings.layers, count, tied)) for tied in (False, True))
    return -(-tokens * layers // _GRAIN) * _GRAIN * state_bytes(vllm_config)


def leave_room(worker: Any, size: int) -> None:
    """Let a worker on a CPU give its KV cache `size` bytes less.

    On a CPU vLLM does not count memory that was not written yet.
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
