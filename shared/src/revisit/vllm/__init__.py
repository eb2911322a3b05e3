"""Joins vLLM: `--logits-processors revisit.vllm:ReVisiT` (docs/vllm.md).

vLLM gives a logits processor neither the model nor its hidden states, so other parts of vLLM are
wrapped too. A request meets, in this order:

    plugin.py       what vLLM loads in each of its processes, and what that wraps (wrapping.py)
    admission.py    settings of engine and request; what is refused, and why, with HTTP 400
    scheduling.py   requests wait until the engine's memory has room for them (memory.py)
    join.py         in a worker: its model runner calls `Serving` around each pass
    serving.py      records vision states chunk by chunk, then refines logits
    runners.py      what is read of vLLM's two model runners; head.py: of its LM head
    processor.py    the logits processor that vLLM calls
    kernel_steps.py, pytorch_steps.py   the steps, in the kernels of a GPU or in plain PyTorch
    failure.py      how a request ends of which a step went wrong
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from revisit.vllm.processor import ReVisiT as ReVisiT

__all__ = ["ReVisiT"]


def __getattr__(name: str) -> Any:
    """Load `ReVisiT` when it is asked for: every vLLM loads the plugin, and thus this package."""
    if name != "ReVisiT":
        raise AttributeError(f"module 'revisit.vllm' has no attribute {name!r}")
    from revisit.vllm.admission import check_release

    check_release()
    from revisit.vllm.processor import ReVisiT

    return ReVisiT
