"""What the forks' decoding method does: read the settings from `generate`'s own, attach, generate."""

import copy
from typing import Any

import torch
from torch import Tensor

from revisit.config import ReVisiTConfig
from revisit.processor import attach
from revisit.vision import decoder


def decode(
    model: Any,
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
        generation_config: with `early_exit_layers`, `relative_top`, `image_tokens` and the
            `revisit_*` settings.
        logits_processor: the caller's own processors; they read the refined scores.
        **arguments: everything else that `generate` takes.

    Returns:
        What `generate` returns; with `revisit_trace`, the output object's attribute
        `revisit_trace` holds the steps of each row.

    Raises:
        ValueError: a setting is out of range, or asks for a decoding that ReVisiT has no meaning for.
    """
    settings = generation_config
    if settings.revisit_trace and not settings.return_dict_in_generate:
        raise ValueError("revisit_trace needs return_dict_in_generate=True: the trace is in there")
    contrastive = (settings.penalty_alpha or 0) > 0 and not settings.do_sample
    if contrastive or arguments.get("assistant_model") is not None:
        raise ValueError(
            "use_revisit works with greedy decoding, sampling and beam search; "
            "take out penalty_alpha (contrastive search) or assistant_model"
        )
    config = ReVisiTConfig(
        layers=_published_layers(settings.early_exit_layers, len(decoder(model).layers)),
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
    with attach(model, config, vision_mask=vision_mask) as processor:
        output = model.generate(
            inputs, plain, logits_processor=[processor, *(logits_processor or [])], **arguments
        )
        if config.trace:
            output.revisit_trace = processor.trace
    return output


def _published_layers(layers: Any, count: int) -> Any:
    """A list as the published flag reads it: the output of the last layer is not among them."""
    if isinstance(layers, str):
        return layers
    kept = [layer for layer in layers if layer != count]
    if not kept:
        raise ValueError(
            f"early_exit_layers={layers} names only the last hidden state ({count}), which the "
            "published flag leaves out of a list: say 'last'"
        )
    return kept
