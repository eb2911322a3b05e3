"""The region of an image that each vision token shows, measured through its preprocessing.

A processor scales, crops, pads or tiles an image, and each family names the settings for it in
another way. So they are not read. Instead, ramps of the image's size are preprocessed, from black
on the left to white on the right, and from top to bottom: each value that comes out says which
position of the image it shows. Padding is the same for a black and a white image.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from revisit.transformers.vision_positions import patch_grid

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as fractions of the image; outside 0 to 1 where padding was added."""

Prepare = Callable[[Image.Image], Mapping[str, Any]]
"""An RGB image's preprocessing to the model's inputs: `pixel_values`, perhaps `image_grid_thw`."""

PatchGrid = Callable[[int, int], tuple[int, int] | None]
"""Height and width of a tensor of pixels to rows and columns of its vision tokens."""


def prompt_boxes(
    prepare: Prepare, images: Sequence[Image.Image], count: int, config: Any
) -> list[tuple[int, Box | None]]:
    """For each vision token of a prompt, which of its images it shows and which part of it.

    Args:
        prepare: the preprocessing of one image, of any size.
        images: the prompt's images in order; only their sizes count.
        count: how many vision tokens the prompt has.
        config: the model's.

    Returns:
        `count` pairs; the box is None for a vision token that shows no part of the image.

    Raises:
        ValueError: the regions are not known; the message says why.
    """
    boxes: list[tuple[int, Box | None]] = []
    grid = partial(patch_grid, config)
    merge = getattr(getattr(config, "vision_config", None), "spatial_merge_size", 1)
    for number, image in enumerate(images):
        boxes += [(number, box) for box in image_boxes(prepare, image.size, grid, merge)]
    if len(boxes) != count:
        raise ValueError(
            f"the prompt has {count} vision tokens, but patch by patch its images make "
            f"{len(boxes)}: this model lays its vision tokens out in a way that is not known here"
        )
    return boxes


def image_boxes(
    prepare: Prepare, size: tuple[int, int], grid: PatchGrid, merge: int = 1
) -> list[Box | None]:
    """The part of an image of `size` (width, height) that each of its vision tokens shows.

    Args:
        merge: how many patches, along rows and along columns, make a vision token, where the
            preprocessing gives patches and their number (`image_grid_thw`).

    Raises:
        ValueError: the regions are not known; the message says why.
    """
    if min(size) < 2:
        raise ValueError(f"of {size[0]} x {size[1]} pixels no part can be told from another")
    prepared = [prepare(probe) for probe in _probes(size)]
    if "pixel_values" not in prepared[0]:
        raise ValueError(f"no pixel_values among the model's inputs: {sorted(prepared[0])}")
    pixels = [torch.as_tensor(each["pixel_values"]).double() for each in prepared]
    if len({each.shape for each in pixels}) != 1:
        raise ValueError("the preprocessing gives images of one size tensors of different shapes")
    if (grid_thw := prepared[0].get("image_grid_thw")) is not None:
        frames, rows, columns = torch.as_tensor(grid_thw).reshape(-1, 3)[0].tolist()
        return _of_patches(pixels, (frames, rows // merge, columns // merge))
    if pixels[0].ndim not in (4, 5) or pixels[0].shape[-3] != 3:
        raise ValueError(
            f"pixel_values of shape {tuple(pixels[0].shape)} are neither images (n, 3, H, W) nor "
            "patches with an image_grid_thw"
        )
    return _of_tiles([each.flatten(0, -4) for each in pixels], grid)


def _probes(size: tuple[int, int]) -> list[Image.Image]:
    """Black, white, and the ramps from left to right and from top to bottom."""
    width, height = size
    across = Image.frombytes("L", (width, 1), _ramp(width))
    down = Image.frombytes("L", (1, height), _ramp(height))
    plain = [Image.new("RGB", size, colour) for colour in ("black", "white")]
    ramps = [ramp.resize(size, Image.Resampling.NEAREST) for ramp in (across, down)]
    return plain + [ramp.convert("RGB") for ramp in ramps]


def _ramp(pixels: int) -> bytes:
    return bytes(round((pixel + 0.5) / pixels * 255) for pixel in range(pixels))


def _shown(black: Tensor, white: Tensor, across: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The position that each value of a prepared image shows, from the four prepared probes.

    Returns:
        x and y as fractions of the image, NaN where it is padding.
    """
    span = white - black
    if not (largest := span.max()) > 0:
        raise ValueError("a white and a black image look the same to the model")
    image = span > 0.99 * largest
    x, y = (((ramp - black) / span).where(image, math.nan) for ramp in (across, down))
    return x, y


def _of_patches(pixels: Sequence[Tensor], grid: tuple[int, int, int]) -> list[Box | None]:
    """The boxes where the values come patch by patch, all of a vision token one after another."""
    frames, rows, columns = grid
    if frames != 1 or pixels[0].numel() % (rows * columns):
        raise ValueError(f"an image of {frames} frames of {rows} x {columns} vision tokens")
    return _boxes(*_shown(*(each.reshape(rows, columns, -1).mean(2) for each in pixels)), grid[1:])


def _of_tiles(pixels: Sequence[Tensor], grid: PatchGrid) -> list[Box | None]:
    """The boxes where the values are tensors (3, H, W): the image, or tiles of it."""
    shown = _shown(*(each.mean(1) for each in pixels))
    height, width = shown[0].shape[1:]
    cells = grid(height, width)
    if cells is None:
        raise ValueError(
            f"the model's config does not name the rows and columns of the vision tokens of "
            f"{height} x {width} pixels"
        )
    return [box for x, y in zip(*shown, strict=True) for box in _boxes(x, y, cells)]


def _boxes(x: Tensor, y: Tensor, cells: tuple[int, int]) -> list[Box | None]:
    """The boxes of a tensor's cells, row by row; its values show the positions x, y (H, W)."""
    height, width = x.shape
    rows, columns = cells
    if x.isnan().all():
        return [None] * (rows * columns)
    down = (torch.arange(height).to(y) + 0.5)[:, None].expand(height, width)
    across = (torch.arange(width).to(x) + 0.5).expand(height, width)
    x_at = _line(across / width, x, width)
    y_at = _line(down / height, y, height)
    lefts = [x_at(column / columns) for column in range(columns + 1)]
    tops = [y_at(row / rows) for row in range(rows + 1)]
    return [
        (lefts[column], tops[row], lefts[column + 1], tops[row + 1])
        for row in range(rows)
        for column in range(columns)
    ]


def _line(at: Tensor, shown: Tensor, pixels: int) -> Callable[[float], float]:
    """The straight line from positions in the tensor to positions in the image, as fractions.

    Args:
        pixels: how many the tensor has along the line.

    Raises:
        ValueError: there is none: the image is turned, mirrored, or in another order than row by
            row; or too little of it is shown to fit a line.
    """
    known = ~shown.isnan()
    at, shown = at[known], shown[known]
    mean, middle = at.mean(), shown.mean()
    spread = ((at - mean) ** 2).mean()
    if not spread > 0 and pixels > 1:
        raise ValueError("the model sees no more than a line of the image: too thin to locate")
    # A single row or column of vision tokens shows all of the image.
    slope = ((at - mean) * (shown - middle)).mean() / spread if spread > 0 else mean.new_ones(())
    off = float((middle + slope * (at - mean) - shown).abs().max())
    if not slope > 0 or off > 0.01 + float(slope) * 0.6 / pixels:  # of rounding, and at the edges
        raise ValueError(
            "the vision tokens do not show the image row by row "
            f"(off by {off:.3f} of its size): turned, mirrored or in another order"
        )
    return lambda position: float(middle + slope * (position - mean))
