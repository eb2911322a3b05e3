"""Joins vLLM: `--logits-processors revisit.vllm:ReVisiT` (docs/vllm.md).

vLLM gives a logits processor neither the model nor its hidden states. So three things meet here:

    plugin.py      what vLLM loads in each of its processes: it lets in requests, and joins a worker
    admission.py   the settings of engine and request, and what is refused, with HTTP 400
    processor.py   the logits processor that vLLM is given
    serving.py     the sessions of a worker's requests, from the first chunk of a prompt to its end
    memory.py      where they are kept, as vLLM's profiling sees it
    failure.py     how a request ends of which a step went wrong
    runner_v1.py, runner_v2.py   what vLLM's two model runners tell of a pass, behind one face
    head.py        the LM head as vLLM holds it
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
