"""ReVisiT for `model.generate(custom_generate=...)`, in the format of the Hugging Face Hub."""

from typing import Any

try:
    import revisit
except ImportError as error:
    raise ImportError(
        "ReVisiT's decoding is in its own package `revisit`, which is not on PyPI: clone its "
        "repository and run `pip install ./shared` there"
    ) from error


def generate(model: Any, revisit_config: Any = None, **arguments: Any) -> Any:
    """Generate with ReVisiT (Cho & Kim, arXiv 2506.09522).

    Args:
        model: a vision-language model whose prompt holds its vision tokens.
        revisit_config: a `revisit.ReVisiTConfig` or a dict of its settings.
        **arguments: everything else that `model.generate` takes, and what `revisit.generate` does.
    """
    if isinstance(revisit_config, dict):
        revisit_config = revisit.ReVisiTConfig(**revisit_config)
    # A checkpoint may name this folder as its own `generate`: the class's is meant.
    return type(model).generate(
        model, custom_generate=revisit.generate, revisit_config=revisit_config, **arguments
    )
