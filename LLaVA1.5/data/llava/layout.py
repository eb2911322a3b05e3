"""The positions of a prompt's tokens after each image placeholder becomes its vision tokens."""

from dataclasses import dataclass

import torch

IMAGE_TOKEN_INDEX = -200


@dataclass(frozen=True)
class Layout:
    """The expanded, left-padded sequence of a batch of B prompts.

    `mask`: (B, S) bool, true where there is a token, false on padding. `vision`: (B, S) bool, true
    at vision tokens. `source`: (mask.sum(),) int64, for every token in reading order, its index in
    the flattened (B, T) prompt.
    """

    mask: torch.Tensor
    vision: torch.Tensor
    source: torch.Tensor

    def place(self, values: torch.Tensor, fill: float) -> torch.Tensor:
        """Values (mask.sum(), ...) of the tokens at their positions: (B, S, ...)."""
        placed = values.new_full((*self.mask.shape, *values.shape[1:]), fill)
        placed[self.mask] = values
        return placed

    @property
    def position_ids(self) -> torch.Tensor:
        """(B, S) int64, counted from the first token of each row; 0 on padding."""
        return (self.mask.cumsum(1) - 1).clamp(min=0)


def image_positions(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """(B, T) bool, true at the image placeholders that are attended to.

    Raises ValueError where the mask has another shape than the prompt.
    """
    is_image = input_ids == IMAGE_TOKEN_INDEX
    if attention_mask is None:
        return is_image
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)} and input_ids "
            f"{tuple(input_ids.shape)}; both must be (B, T), with one entry for an image"
        )
    return is_image & attention_mask.to(is_image)


def expand(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, tokens_per_image: int
) -> Layout:
    """Expand the placeholders of a batch of prompts, drop its padding, and left-pad it anew.

    `input_ids`: (B, T) int64 with IMAGE_TOKEN_INDEX for each image. `attention_mask`: (B, T), zero
    on padding, on whichever side. Pure: a row's tokens do not depend on its neighbours.
    """
    is_image = image_positions(input_ids, attention_mask)
    width = torch.where(is_image, tokens_per_image, 1)
    if attention_mask is not None:
        width = width * attention_mask.to(is_image)
    length = width.sum(1, keepdim=True)
    columns = torch.arange(int(length.max()), device=input_ids.device)
    mask = columns >= len(columns) - length
    source = torch.repeat_interleave(width.flatten())
    vision = torch.zeros_like(mask)
    vision[mask] = is_image.flatten()[source]
    return Layout(mask, vision, source)
