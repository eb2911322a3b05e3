"""ReVisiT (Cho & Kim, arXiv 2506.09522): decoding that makes large vision-language models
say what they see, without training and without a second forward pass."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from revisit.config import CODEConfig as CODEConfig
    from revisit.config import DeCoConfig as DeCoConfig
    from revisit.config import DoLaConfig as DoLaConfig
    from revisit.config import ICDConfig as ICDConfig
    from revisit.config import M3IDConfig as M3IDConfig
    from revisit.config import PAIConfig as PAIConfig
    from revisit.config import ReVisiTConfig as ReVisiTConfig
    from revisit.config import RITUALConfig as RITUALConfig
    from revisit.config import SIDConfig as SIDConfig
    from revisit.config import VCDConfig as VCDConfig
    from revisit.config import VISTAConfig as VISTAConfig
    from revisit.core.head import LMHead as LMHead
    from revisit.transformers.enable import attach as attach
    from revisit.transformers.enable import disable as disable
    from revisit.transformers.enable import enable as enable
    from revisit.transformers.processor import ReVisiTLogitsProcessor as ReVisiTLogitsProcessor

__version__ = "0.2.0"
__all__ = [
    "CODEConfig",
    "DeCoConfig",
    "DoLaConfig",
    "ICDConfig",
    "LMHead",
    "M3IDConfig",
    "PAIConfig",
    "RITUALConfig",
    "ReVisiTConfig",
    "ReVisiTLogitsProcessor",
    "SIDConfig",
    "VCDConfig",
    "VISTAConfig",
    "attach",
    "disable",
    "enable",
]

# Loaded on first use: the scorer and the fork maker start without PyTorch.
_MODULE_OF = dict.fromkeys(__all__, "revisit.config") | {
    "LMHead": "revisit.core.head",
    "ReVisiTLogitsProcessor": "revisit.transformers.processor",
    "attach": "revisit.transformers.enable",
    "disable": "revisit.transformers.enable",
    "enable": "revisit.transformers.enable",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'revisit' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)
