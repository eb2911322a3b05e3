"""What ReVisiT wraps in vLLM, once in a process."""

from collections.abc import Callable
from functools import wraps
from typing import Any

_MARK = "_revisit"


def wrap(cls: type, name: str, wrapper: Callable[[Any], Any]) -> None:
    """Replace a method of a class by `wrapper(method)`; again is a no-op."""
    original = getattr(cls, name)
    if not hasattr(original, _MARK):
        wrapped = wraps(original)(wrapper(original))
        setattr(wrapped, _MARK, True)
        setattr(cls, name, wrapped)


def installed() -> bool:
    """Whether this process has loaded the plugin."""
    from vllm.v1.worker.gpu_worker import Worker

    return hasattr(Worker.load_model, _MARK)
