"""Joins vLLM: `--logits-processors revisit.vllm:ReVisiT` (docs/vllm.md).

vLLM gives a logits processor neither the model nor its hidden states. So three things meet here:

    plugin.py      what vLLM loads in each of its processes, and what that wraps (wrapping.py)
    admission.py   the settings of engine and request, and what is refused, with HTTP 400
    room.py        in the scheduler: requests wait for room in the engine's memory (memory.py)
    join.py        in a worker: its model runner calls `Serving` around each pass
    processor.py   the logits processor that vLLM is given
    serving.py     a worker's requests, from the first chunk of a prompt to their end
    plain.py, kernels.py         their steps, in plain PyTorch or in the kernels of a GPU
    runner_v1.py, runner_v2.py   what is read of a pass of vLLM's two model runners (span.py)
    head.py        the LM head as vLLM holds it
    failure.py     how a request ends of which a step went wrong
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from revisit.vllm.processor import ReVisiT as ReVisiT

__all__ = ["ReVisiT"]


def __getattr__(name: str) -> Any:
    """`ReVisiT` is loaded where it is asked for: the plugin is loaded by every vLLM."""
    if name != "ReVisiT":
        raise AttributeError(f"module 'revisit.vllm' has no attribute {name!r}")
    from revisit.vllm.admission import check_release

    check_release()
    from revisit.vllm.processor import ReVisiT

    return ReVisiT
