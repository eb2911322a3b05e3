"""CODE, contrasting self-generated description (Kim et al., arXiv 2406.01920).

    (2 - D) l - (1 - D) m,  -inf where p < D max p
    D = sum over the vocabulary of (p + q) / 2 log2(1 + |p - q|^k),  in [0, 1]

l are the model's logits, m those that it gives where it reads its own description of the image in
place of the image, p and q their softmax. The further apart they are, the more tokens are left out
and the less the description is held against the image.

Readings: D is a number for each row, as published. The published `cd_beta` is used nowhere, and is
no setting here.
"""

import math

import torch
from torch import Tensor

QUESTION = (
    "Provide a detailed description of the image, covering all visible elements and their "
    "interactions, so as to thoroughly answer any potential questions about the image."
)
"""What the model is asked for its description, as published."""

LONGEST = 512
"""How many tokens a description has at most, as published."""


def combine(logits: Tensor, described: Tensor, k: float) -> Tensor:
    """The scores (..., V) from the logits for the image and for its description."""
    distance = bounded_divergence(logits.softmax(-1), described.softmax(-1), k)
    bound = logits.amax(-1, keepdim=True) + distance.log()
    combined = (2 - distance) * logits - (1 - distance) * described
    return combined.masked_fill((logits < bound) | logits.isneginf(), -math.inf)


def bounded_divergence(p: Tensor, q: Tensor, k: float) -> Tensor:
    """D (..., 1) of probabilities (..., V): 0 where they are equal, and 1 for every pair at k 0."""
    if k == 0:  # not a rounding less, which would tell ties apart
        return torch.ones_like(p[..., :1])
    bits = torch.log2(1 + (p - q).abs() ** k)
    return ((p + q) / 2 * bits).sum(-1, keepdim=True).clamp(max=1)
