"""What the forks' decoding method does: read its settings, attach, generate."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from revisit.config import NamedLayers, ReVisiTConfig
from revisit.layers import resolve_layers
from revisit.processor import prepare
from revisit.vision import Model, decoder_layers, is_tied


def decode(
    model: Model,
    inputs: Tensor | None,
    generation_config: Any,
    logits_processor: list[Any] | None = None,
    **arguments: Any,
) -> Any:
    """`model.generate` with ReVisiT as its first logits processor.

    Greedy decoding, sampling and beam search, warpers, penalties, streaming, stopping criteria and
    scores are those of the installed Transformers.

    Args:
        model: of a fork, or of any Transformers whose `generate` moves processors marked
            `is_revisit` to the front.
        inputs: the prompt, as `generate` takes it.
        generation_config: with `early_exit_layers`, `relative_top`, the `revisit_*` settings, and
            `image_tokens`: None where the model tells its vision tokens, else a bool mask (rows,
            prompt length as the decoder reads it) that is true at them.
        logits_processor: the caller's own processors; they read the refined scores.
        **arguments: everything else that `generate` takes.

    Returns:
        What `generate` returns; with `revisit_trace`, the output object's attribute
        `revisit_trace` holds the steps of each row.

    Raises:
        ValueError: a setting is out of range, or asks for a decoding that ReVisiT cannot join.
    """
    settings = generation_config
    if settings.revisit_trace and not settings.return_dict_in_generate:
        raise ValueError("revisit_trace needs return_dict_in_generate=True: the trace is in there")
    others = {
        "penalty_alpha": settings.penalty_alpha and not settings.do_sample,
        "dola_layers": getattr(settings, "dola_layers", None) is not None,
        "num_beam_groups": (getattr(settings, "num_beam_groups", 1) or 1) > 1,
        "prompt_lookup_num_tokens": getattr(settings, "prompt_lookup_num_tokens", None),
        "assistant_model": arguments.get("assistant_model") is not None,
    }
    if named := [name for name, given in others.items() if given]:
        raise ValueError(
            "use_revisit works with greedy decoding, sampling and beam search; "
            f"take out {', '.join(named)}, which asks for another decoding"
        )
    config = ReVisiTConfig(
        layers=published_layers(model, settings.early_exit_layers),
        alpha=settings.relative_top,
        divergence=settings.revisit_divergence,
        selection=settings.revisit_selection,
        no_vision=settings.revisit_no_vision,
        trace=settings.revisit_trace,
    )
    plain = copy.deepcopy(settings)
    plain.use_revisit = False
    mask = settings.image_tokens
    vision_mask = None if mask is None else torch.as_tensor(mask, dtype=torch.bool)
    processor = prepare(model, config, vision_mask, once=True)
    with processor.recorder:
        output = model.generate(
            inputs, plain, logits_processor=[processor, *(logits_processor or [])], **arguments
        )
        if config.trace:
            output.revisit_trace = processor.trace
    return output


def published_layers(
    model: Model, layers: NamedLayers | Sequence[int]
) -> NamedLayers | Sequence[int]:
    """`early_exit_layers` as the published flag reads it: a list without the last hidden state.

    Raises:
        ValueError: a layer is out of the model's range, or none is left.
    """
    count = len(decoder_layers(model))
    resolve_layers(layers, count, is_tied(model))
    if isinstance(layers, str):
        return layers
    kept = [layer for layer in layers if layer != count]
    if not kept:
        raise ValueError(
            f"early_exit_layers={layers} names only the last hidden state ({count}), which the "
            "published flag leaves out of a list: say 'last'"
        )
    return kept
