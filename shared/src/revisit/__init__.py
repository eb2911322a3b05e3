"""ReVisiT (Cho & Kim, arXiv 2506.09522): decoding that makes large vision-language models
say what they see, without training and without a second forward pass."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from revisit.config import ReVisiTConfig as ReVisiTConfig
    from revisit.core.head import LMHead as LMHead
    from revisit.transformers.enable import attach as attach
    from revisit.transformers.enable import disable as disable
    from revisit.transformers.enable import enable as enable
    from revisit.transformers.processor import ReVisiTLogitsProcessor as ReVisiTLogitsProcessor

__version__ = "0.1.0"
__all__ = ["LMHead", "ReVisiTConfig", "ReVisiTLogitsProcessor", "attach", "disable", "enable"]

# Loaded on first use: the scorer and the fork maker start without PyTorch.
_HOME = {
    "LMHead": "revisit.core.head",
    "ReVisiTConfig": "revisit.config",
    "ReVisiTLogitsProcessor": "revisit.transformers.processor",
    "attach": "revisit.transformers.enable",
    "disable": "revisit.transformers.enable",
    "enable": "revisit.transformers.enable",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'revisit' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
