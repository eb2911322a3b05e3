"""What ReVisiT wraps in vLLM, once in a process."""

from collections.abc import Callable
from functools import wraps
from typing import Any

_MARK = "_revisit"


def wrap(cls: type, name: str, replacement: Callable[..., Any]) -> None:
    """Replace a method of a class by `replacement(original, self, ...)`; again is a no-op."""
    original = getattr(cls, name)
    if hasattr(original, _MARK):
        return

    @wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        return replacement(original, *args, **kwargs)

    setattr(method, _MARK, True)
    setattr(cls, name, method)


def installed() -> bool:
    """Whether this process has loaded the plugin."""
    from vllm.v1.worker.gpu_worker import Worker

    return hasattr(Worker.load_model, _MARK)
