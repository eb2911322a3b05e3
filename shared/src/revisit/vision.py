"""Where a prompt's vision tokens stand, and the decoder that reads them."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from revisit.columns import LMHead

# A causal language model of Transformers: an nn.Module with attributes of its family's own.
Model = Any

# (frames, rows, columns) of the vision tokens of one image or video.
Grid = tuple[int, int, int]

_TOKEN_ID_FIELDS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


class VisionPositions(NamedTuple):
    """The vision tokens of a prefill."""

    mask: Tensor  # (B, S) bool, S the length that the decoder layers see
    # For each row, one grid per image in order; None if unknown. Called where a trace needs them.
    grids: Callable[[], list[list[Grid]] | None]


def locate(model: Model, inputs: Mapping[str, Any]) -> VisionPositions:
    """The vision tokens of the prompts that a prefill's `forward` was called with.

    A model whose prompt holds placeholders that it expands itself says where the vision tokens went
    by a method `vision_tokens(**inputs)`. Otherwise they are the tokens whose id the model's config
    names (`image_token_id`, `video_token_id`, ...).

    Args:
        model: the model whose `generate` runs.
        inputs: the keyword arguments of its `forward`.

    Raises:
        ValueError: the vision tokens cannot be found; the message says what to pass.
    """
    if hasattr(model, "vision_tokens"):
        mask, grids = model.vision_tokens(**inputs)
        return VisionPositions(mask, lambda: grids)
    ids = [
        value
        for field in _TOKEN_ID_FIELDS
        if isinstance(value := getattr(model.config, field, None), int)
    ]
    input_ids = inputs.get("input_ids")
    if not ids or input_ids is None:
        missing = "its config names no image token id" if not ids else "it was given no input_ids"
        raise ValueError(
            f"cannot tell the vision tokens of {type(model).__name__}: {missing}. "
            "Pass vision_mask, a bool tensor (rows, prompt length) that is true at them"
        )
    mask = torch.isin(input_ids, torch.tensor(ids, device=input_ids.device))
    # Not all inputs: the grids are read later, and pixels need not live until then.
    told = {name: inputs.get(name) for name in ("image_grid_thw", "video_grid_thw")}
    return VisionPositions(mask, partial(_grids, model.config, input_ids, mask, told))


def _grids(
    config: Any, input_ids: Tensor, mask: Tensor, told: Mapping[str, Tensor | None]
) -> list[list[Grid]] | None:
    """The grids of images and videos in the order of the prompts; None where unknown.

    Models whose images differ in size are told the patches of each (`image_grid_thw`,
    `video_grid_thw`), of which the vision tower merges squares into one vision token.
    """
    vision_config = getattr(config, "vision_config", None)
    merge = getattr(vision_config, "spatial_merge_size", None)
    video_id = getattr(config, "video_token_id", None)
    if merge is None or all(grids is None for grids in told.values()):
        return None
    queues = {
        name: [
            (frames, rows // merge, columns // merge) for frames, rows, columns in grids.tolist()
        ]
        for name, grids in told.items()
        if grids is not None
    }
    ordered: list[list[Grid]] = []
    for ids, there in zip(input_ids, mask, strict=True):
        tokens = ids[there].tolist()
        row: list[Grid] = []
        while tokens:
            name = "video_grid_thw" if tokens[0] == video_id else "image_grid_thw"
            grid = queues[name].pop(0)
            row.append(grid)
            del tokens[: math.prod(grid)]
        ordered.append(row)
    return ordered


def decoder(model: Model) -> nn.Module:
    """The text decoder: the module that holds the decoder layers (`layers`).

    Raises:
        ValueError: the model has none.
    """
    start = model.get_decoder() if hasattr(model, "get_decoder") else model
    queue: list[nn.Module] = [start if start is not None else model]
    while queue:
        module = queue.pop(0)
        if isinstance(getattr(module, "layers", None), nn.ModuleList):
            return module
        queue.extend(module.children())
    raise ValueError(f"{type(model).__name__} has no decoder with a list of layers")


def decoder_layers(model: Model) -> nn.ModuleList:
    """The layers of the text decoder, in order."""
    layers = decoder(model).layers
    assert isinstance(layers, nn.ModuleList)
    return layers


def lm_head(model: Model) -> LMHead:
    """The LM head's weight (V, d) and bias.

    Raises:
        ValueError: the model has none, or its weights are not in memory as floating point.
    """
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if weight is None or not weight.is_floating_point() or weight.is_meta:
        raise ValueError(
            f"{type(model).__name__} has no LM head with floating-point weights in memory "
            "(offloaded or quantized heads cannot project the vision tokens)"
        )
    bias = getattr(head, "bias", None)
    return LMHead(weight.detach(), None if bias is None else bias.detach())


def is_tied(model: Model) -> bool:
    """Whether LM head and embedding share their weights, whatever the config says."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return embedding is head or (embedding.data_ptr() == head.data_ptr() and not head.is_meta)
