"""ReVisiT for `model.generate(custom_generate=...)`, in the format of the Hugging Face Hub."""

from typing import Any

try:
    import revisit
    from revisit.transformers.enable import decode
except ImportError as error:
    raise ImportError(
        "ReVisiT's decoding is in its own package, `pip install revisit-decoding`; or clone its "
        "repository and run `pip install ./shared` there"
    ) from error


def generate(model: Any, revisit_config: Any = None, **arguments: Any) -> Any:
    """Generate with ReVisiT (Cho & Kim, arXiv 2506.09522).

    Args:
        model: a vision-language model whose prompt holds its vision tokens.
        revisit_config: a `revisit.ReVisiTConfig` or a dict of its settings.
        **arguments: everything else that `model.generate` takes, and `vision_mask`, `lm_head` and
            `decoder` as `revisit.enable` describes them.
    """
    if revisit_config is None or isinstance(revisit_config, dict):
        revisit_config = revisit.ReVisiTConfig(**(revisit_config or {}))
    return decode(model, revisit_config, **arguments)
