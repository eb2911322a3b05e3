"""The positions of a prompt's vision tokens."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from revisit.core.trace import Grid
from revisit.transformers.generation import prompt_count
from revisit.transformers.model_parts import Model

# The config's fields for the id of an image's or video's tokens, not of the marks around them.
_TOKEN_IDS = (
    "image_token_id",
    "image_token_index",
    "image_patch_id",
    "img_context_token_id",
    "video_token_id",
    "video_token_index",
)


class VisionPositions(NamedTuple):
    """The vision tokens of the prompts of a generation."""

    mask: Tensor  # (P, S) bool, S the length that the decoder layers see
    # For each prompt, one grid per image in order; None if unknown. Read where a trace needs them.
    grids: Callable[[], list[list[Grid]] | None]


def locate(model: Model, inputs: Mapping[str, Any], vision_mask: Tensor | None) -> VisionPositions:
    """The vision tokens of the prompts that `generate` was called with.

    A model that expands the placeholders of its prompt itself has a method
    `vision_tokens(**inputs)`, which gives their positions. Otherwise they are the tokens whose id
    the model's config names (`image_token_id`, `video_token_id`, ...).

    Args:
        model: the model whose `generate` runs.
        inputs: the model's inputs among its arguments, `input_ids` (P, S) among them.
        vision_mask: (P, S) bool, true at the vision tokens; the model is not consulted then.

    Raises:
        ValueError: the vision tokens cannot be found; the message says what to pass.
    """
    if vision_mask is not None:
        return VisionPositions(_checked(vision_mask, inputs), lambda: None)
    if hasattr(model, "vision_tokens"):
        mask, grids = model.vision_tokens(**inputs)
        return VisionPositions(mask, lambda: grids)
    ids = vision_token_ids(model.config)
    input_ids = inputs.get("input_ids")
    if not ids or input_ids is None:
        missing = "its config names no image token id" if not ids else "there are no input_ids"
        raise ValueError(
            f"cannot find the vision tokens of {type(model).__name__}: {missing}. "
            "Pass vision_mask, a bool tensor (rows, prompt length) that is true at them"
        )
    mask = torch.isin(input_ids, torch.tensor(ids, device=input_ids.device))
    # Not all inputs: the grids are read later, and pixels need not live until then.
    patches = {name: inputs.get(name) for name in ("image_grid_thw", "video_grid_thw")}
    pixels = None if "image_sizes" in inputs else getattr(inputs.get("pixel_values"), "shape", None)
    return VisionPositions(mask, partial(_grids, model.config, input_ids, mask, patches, pixels))


def vision_token_ids(config: Any) -> list[int]:
    """The ids of the tokens of images and videos in a prompt, as the config names them."""
    return list(vision_token_fields(config).values())


def vision_token_fields(config: Any) -> dict[str, int]:
    """The fields of a config that name the id of an image's or video's tokens, and the ids."""
    values = {name: getattr(config, name, None) for name in _TOKEN_IDS}
    return {name: value for name, value in values.items() if type(value) is int}


def patch_grid(config: Any, height: int, width: int) -> tuple[int, int] | None:
    """Rows and columns of the vision tokens of pixels (3, height, width), row by row.

    The config names the size of the vision tower's patches, and how many are merged into one vision
    token; None where it does not, or they do not divide the pixels. A model may have more or fewer
    vision tokens (a class token, queries of a resampler): compare their number with the product.
    """
    vision = getattr(config, "vision_config", None)
    patch = getattr(vision, "patch_size", None)
    if isinstance(patch, list | tuple) and len(set(patch)) == 1:
        patch = patch[0]
    merge = _merge(config, vision)
    if not isinstance(patch, int) or merge is None or height % patch or width % patch:
        return None
    rows, columns = height // patch, width // patch
    if count := getattr(config, "mm_tokens_per_image", None):  # averaged down to as many
        side = math.isqrt(count)
        even = side * side == count and not rows % side and not columns % side
        return (side, side) if even and merge == 1 else None
    if rows % merge or columns % merge:
        return None
    return rows // merge, columns // merge


def _merge(config: Any, vision: Any) -> int | None:
    """How many patches, along rows and along columns, the config says make one vision token."""
    merges = [getattr(part, "spatial_merge_size", None) for part in (config, vision)]
    merges += [getattr(config, name, None) for name in ("scale_factor", "downsample_factor")]
    for part, name in ((config, "downsample_ratio"), (vision, "pixel_shuffle_ratio")):
        if ratio := getattr(part, name, None):
            merges.append(1 / ratio)
    known = {each for each in merges if each is not None}
    if len(known) > 1 or any(each != int(each) or each < 1 for each in known):
        return None
    return int(known.pop()) if known else 1


def _checked(mask: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    rows = prompt_count(inputs)
    if mask.ndim != 2 or mask.dtype != torch.bool or (rows is not None and rows % len(mask)):
        raise ValueError(
            f"vision_mask must be bool of shape (rows, prompt length)"
            f"{'' if rows is None else f' with {rows} rows'}, "
            f"got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    return mask


def _grids(
    config: Any,
    input_ids: Tensor,
    mask: Tensor,
    patches: Mapping[str, Tensor | None],
    pixels: Sequence[int] | None,
) -> list[list[Grid]] | None:
    """The grids of images and videos in the order of the prompts; None where unknown.

    Models whose images differ in size take the number of patches of each (`image_grid_thw`,
    `video_grid_thw`), of which the vision tower merges squares into one vision token. Where these
    do not add up to the prompt's vision tokens, the grids are unknown.

    Args:
        patches: these numbers, by name.
        pixels: the shape of `pixel_values`, for models whose images all have one size.
    """
    if all(grids is None for grids in patches.values()):
        return _plain_grids(config, mask, pixels)
    merge = getattr(getattr(config, "vision_config", None), "spatial_merge_size", None)
    video_id = getattr(config, "video_token_id", None)
    if merge is None:
        return None
    queues = {}
    for name, grids in patches.items():
        if grids is not None:
            queues[name] = [
                (t, height // merge, width // merge) for t, height, width in grids.tolist()
            ]
    ordered: list[list[Grid]] = []
    for ids, vision in zip(input_ids, mask, strict=True):
        tokens = ids[vision].tolist()
        row: list[Grid] = []
        while tokens:
            queue = queues.get("video_grid_thw" if tokens[0] == video_id else "image_grid_thw")
            if not queue or math.prod(queue[0]) > len(tokens):
                return None
            row.append(grid := queue.pop(0))
            del tokens[: math.prod(grid)]
        ordered.append(row)
    return ordered


def _plain_grids(
    config: Any, mask: Tensor, pixels: Sequence[int] | None
) -> list[list[Grid]] | None:
    """The grids where each prompt has one image, and each image is one tensor of pixels.

    Several tensors in a prompt may be images, or tiles of an image: then they are unknown.
    """
    if pixels is None or len(pixels) != 4 or pixels[0] != len(mask):
        return None
    grid = patch_grid(config, pixels[2], pixels[3])
    if grid is None or any(count != math.prod(grid) for count in mask.sum(1).tolist()):
        return None
    return [[(1, *grid)] for _ in mask]
