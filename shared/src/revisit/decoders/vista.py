"""VISTA, visual information steering and self-logits augmentation (Li et al., arXiv 2502.03628).

    (1 - weight) l + weight mean(l_j)

The l_j are the logits of inner layers: the LM head on their hidden states, without the final norm.
In addition, each layer's MLP output x is turned towards the image, at every position:

    |x| unit(unit(x) + steering (1 + max(0, cos(x, -v))) unit(v))

v is the layer's output at the last position of the prompt, minus its output for the prompt without
the image.

Readings: the published code takes the principal component of one sample, which is v, plus 1 on
coordinate 0 of layer 0; so does this code. The published blocks 25 to 30 of 32 (hidden states 26 to
31) are scaled to the number of layers of the model. A prompt without an image is not steered.
"""

import math

from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

LAYERS = range(26, 32)
"""The hidden states of a model of 32 layers, as published."""


def combine(logits: Tensor, inner: Tensor, weight: float) -> Tensor:
    """The scores (rows, V) from the logits of the model (rows, V) and of J layers (rows, J, V)."""
    augmented = (1 - weight) * logits + weight * inner.mean(1)
    return augmented.masked_fill(logits.isneginf(), -math.inf)


def directions(seeing: Tensor, blind: Tensor) -> Tensor:
    """v for each layer, (rows, layers, d) float32, from the layers' outputs (rows, layers, d) at
    the prompt's last position, with the image and without it. Zero where these are equal."""
    added = seeing.float() - blind.float()
    added[:, 0, 0] += added.flatten(1).any(1)
    return added


def steer(output: Tensor, direction: Tensor, steering: float) -> Tensor:
    """An MLP's output (rows, positions, d), turned towards v (rows, d) and as long as it was.

    Computed in float32, returned in the dtype of the output. A row whose v is zero stays as it is.
    """
    x, v = output.float(), direction.float().unsqueeze(1)
    pull = steering * (1 + cosine_similarity(x, -v, -1).clamp(min=0)).unsqueeze(-1)
    turned = normalize(normalize(x, dim=-1) + pull * normalize(v, dim=-1), dim=-1)
    steered: Tensor = (x.norm(dim=-1, keepdim=True) * turned).to(output.dtype)
    return steered.where(v.any(-1, keepdim=True), output)
