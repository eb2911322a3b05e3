"""ReVisiT for `model.generate(custom_generate=...)`, in the format of the Hugging Face Hub."""

from importlib.util import find_spec
from typing import Any

try:
    from revisit.config import ReVisiTConfig
    from revisit.transformers.enable import decode
except ImportError as error:
    found = find_spec("revisit")
    raise ImportError(
        "ReVisiT's decoding is in its own package: run `pip install ./shared` in a clone of its "
        f"repository. `revisit` here is {found.origin if found else 'not installed'}, and PyPI's "
        "`revisit` is another project"
    ) from error


def generate(model: Any, revisit_config: Any = None, **arguments: Any) -> Any:
    """Generate with ReVisiT (Cho & Kim, arXiv 2506.09522).

    Args:
        model: a vision-language model whose prompt holds its vision tokens.
        revisit_config: a `revisit.ReVisiTConfig` or a dict of its settings.
        **arguments: everything else that `model.generate` takes, and `vision_mask`, `lm_head` and
            `decoder` as `revisit.enable` describes them.

    Raises:
        ValueError: `revisit_config` is something else, or as `revisit.attach`.
    """
    if revisit_config is None or isinstance(revisit_config, dict):
        revisit_config = ReVisiTConfig(**(revisit_config or {}))
    if not isinstance(revisit_config, ReVisiTConfig):  # maybe that of an installed package
        raise ValueError(f"pass revisit_config as a dict of settings, not as {revisit_config!r}")
    return decode(model, revisit_config, **arguments)
