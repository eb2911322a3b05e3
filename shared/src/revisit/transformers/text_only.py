"""The prompts of a generation without their images."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# The config's fields for the tokens around an image or video, which say nothing without it.
_MARKS = [
    f"{kind}_{end}_token_id" for kind in ("vision", "image", "video") for end in ("start", "end")
]
_MARKS += ["boi_token_id", "eoi_token_id", "boi_token_index", "eoi_token_index"]


def without_images(
    config: Any, input_ids: Tensor, attention_mask: Tensor, vision: Tensor
) -> tuple[Tensor, Tensor]:
    """The prompts without vision tokens and the marks around them, padded on the left anew.

    All other tokens stay: the chat template's roles and the question. Marks are tokens that the
    config names; others, which only a tokenizer knows, are text here.

    Args:
        config: the model's.
        input_ids, attention_mask: (P, T) the prompts.
        vision: (P, S) bool, true at the vision tokens. Where a model expands a placeholder for an
            image itself, S is not T, and the placeholders are the ids that are no word's (< 0).

    Returns:
        ids (P, L) int64, 0 on padding, and mask (P, L) int64.

    Raises:
        ValueError: nothing is left of a prompt.
    """
    marks = [getattr(config, name, None) for name in _MARKS]
    ids = torch.tensor([mark for mark in marks if type(mark) is int], device=input_ids.device)
    kept = attention_mask.bool() & (input_ids >= 0) & ~torch.isin(input_ids, ids.long())
    if vision.shape == input_ids.shape:
        kept &= ~vision.to(kept.device)
    if empty := (~kept.any(1)).nonzero().flatten().tolist():
        raise ValueError(
            f"prompts {empty} of the batch hold an image and no text: nothing is left to read "
            "without it"
        )
    return pad_left([ids[there] for ids, there in zip(input_ids, kept, strict=True)])


def pad_left(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Token ids (P, L) of texts of different length, 0 on padding, and mask (P, L) int64."""
    length = max(map(len, texts))
    ids = torch.stack([torch.nn.functional.pad(text, (length - len(text), 0)) for text in texts])
    starts = ids.new_tensor([[length - len(text)] for text in texts])
    return ids, (torch.arange(length, device=ids.device) >= starts).long()
