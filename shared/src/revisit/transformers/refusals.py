"""Decodings that cannot be joined, refused before the model runs."""

import threading
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import torch

from revisit.transformers.generation import holds, setting
from revisit.transformers.model_parts import Model


def refuse_other_decodings(model: Model, arguments: Mapping[str, Any], name: str) -> None:
    """Refuse decodings that take more forward passes a step, draft tokens that may be dropped, or
    call no logits processor: a ValueError names the argument of `generate`.
    """
    value = partial(setting, model, arguments)
    others = {
        "penalty_alpha": value("penalty_alpha") and not value("do_sample"),
        "dola_layers": value("dola_layers") is not None,
        "num_beam_groups": (value("num_beam_groups") or 1) > 1,
        "prompt_lookup_num_tokens": value("prompt_lookup_num_tokens"),
        "assistant_early_exit": value("assistant_early_exit"),
        "assistant_model": value("assistant_model") is not None,
        "guidance_scale": (value("guidance_scale") or 1) != 1,
        "custom_generate": isinstance(value("custom_generate"), str),
        "use_revisit": value("use_revisit"),
        "cache_implementation='paged'": value("cache_implementation") == "paged",
    }
    if named := [other for other, chosen in others.items() if chosen]:
        raise ValueError(
            f"{name} works with greedy decoding, sampling and beam search; "
            f"take out {', '.join(named)}, which selects another decoding"
        )
    if (value("num_beams") or 1) > 1 and value("early_stopping") is True:
        # Transformers takes any such token among the best 2 * num_beams, also of probability 0.
        raise ValueError(
            f"with early_stopping=True a beam may end by a token that {name} left out: use "
            "early_stopping=False or 'never'"
        )


def refuse_dropped_cache(model: Model, arguments: Mapping[str, Any]) -> None:
    """Refuse to generate in training mode where layers with gradient checkpointing get no cache."""
    training = model.training and getattr(model, "is_gradient_checkpointing", False)
    if training and setting(model, arguments, "use_cache") is not False and _drops_cache():
        raise ValueError(
            f"this Transformers drops the KV cache of a {type(model).__name__} that trains with "
            "gradient checkpointing, so that it generates without what came before, whatever the "
            "decoder: call model.eval() first, or pass use_cache=False"
        )


@cache
def _drops_cache() -> bool:
    """Whether a layer with gradient checkpointing gets no cache: one is called to see it."""
    try:
        from transformers.modeling_layers import GradientCheckpointingLayer
    except ImportError:  # in older releases each model has another class, and keeps the cache
        return False

    class Layer(GradientCheckpointingLayer):  # type: ignore[misc]
        gradient_checkpointing = True

        def forward(self, **arguments: Any) -> bool:
            return arguments["past_key_values"] is None

    layer = Layer()
    layer._gradient_checkpointing_func = lambda forward: forward()
    with torch.no_grad():
        return bool(layer(past_key_values=()))


def refuse_open_batching(model: Model) -> None:
    """Refuse a model that a continuous batching manager of this process decodes already."""
    for thread in threading.enumerate():
        manager = getattr(getattr(thread, "_target", None), "__self__", None)
        batching = type(manager).__name__ == "ContinuousBatchingManager"
        if batching and holds(model, getattr(manager, "model", None)):
            raise ValueError(
                f"a continuous batching manager of this {type(model).__name__} is open, and would "
                "go on decoding plainly: stop it first"
            )
