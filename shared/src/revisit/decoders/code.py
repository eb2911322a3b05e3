"""CODE, contrasting self-generated description (Kim et al., arXiv 2406.01920).

    (2 - D) l - (1 - D) m,  -inf where p < D max p
    D = sum over the vocabulary of (p + q) / 2 log2(1 + |p - q|^k),  in [0, 1]

l are the model's logits. m are its logits for a prompt in which its description of the image
replaces the image. p and q are the softmax of l and m. The larger their divergence D, the more
tokens are left out, and the smaller is the weight of m.

Readings: there is one D for each row, as published. The published code never uses its `cd_beta`, so
it is not a setting here.
"""

import math

import torch
from torch import Tensor

QUESTION = (
    "Provide a detailed description of the image, covering all visible elements and their "
    "interactions, so as to thoroughly answer any potential questions about the image."
)
"""The published question that the model answers with its description."""

LONGEST = 512
"""The most tokens of a description, as published."""


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
