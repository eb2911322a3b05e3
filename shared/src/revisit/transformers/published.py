"""`use_revisit=True`, the decoding method of the forks."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from revisit.config import PUBLISHED, NamedLayers, from_published
from revisit.core.layers import resolve_layers
from revisit.transformers.enable import decode
from revisit.transformers.model_parts import Model, text_decoder


def published_decoding(
    model: Model, inputs: Tensor | None, generation_config: Any, **arguments: Any
) -> Any:
    """`model.generate` with ReVisiT as its first processor, by the published settings.

    Args:
        model: of a fork.
        inputs: the prompt, as `generate` takes it.
        generation_config: with `early_exit_layers`, `relative_top`, the `revisit_*` settings, and
            `image_tokens`: None where the model finds its vision tokens, else a bool mask (rows,
            prompt length as the decoder reads it) that is true at them.
        **arguments: everything else that `generate` takes.

    Returns:
        The output of `generate`; with the setting `revisit_trace`, its attribute `revisit_trace`
        holds the steps of each sequence.

    Raises:
        ValueError: a setting is out of range, or asks for a decoding that ReVisiT cannot join.
    """
    config = from_published(**{name: getattr(generation_config, name) for name in PUBLISHED})
    config = replace(config, layers=published_layers(config.layers, text_decoder(model).depth))
    plain = copy.deepcopy(generation_config)
    plain.use_revisit = False
    mask = generation_config.image_tokens
    vision_mask = None if mask is None else torch.as_tensor(mask, dtype=torch.bool)
    return decode(model, config, inputs, plain, vision_mask=vision_mask, **arguments)


def published_layers(layers: NamedLayers | Sequence[int], last: int) -> NamedLayers | Sequence[int]:
    """`early_exit_layers` as the published flag reads it: a list without the last hidden state.

    Args:
        last: the index of the last hidden state.

    Raises:
        ValueError: a layer is out of the model's range, or none is left.
    """
    if isinstance(layers, str):
        return layers
    resolve_layers(layers, last, tied=False)  # which matters to named layers alone
    kept = [layer for layer in layers if layer != last]
    if not kept:
        raise ValueError(
            f"early_exit_layers={layers} names only the last hidden state ({last}), which the "
            "published flag leaves out of a list: say 'last'"
        )
    return kept
