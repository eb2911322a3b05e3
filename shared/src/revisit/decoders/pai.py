"""PAI, paying more attention to the image (Liu et al., arXiv 2407.21771).

    gamma log p - (gamma - 1) log q,  -inf where p < beta max p

p is the model's distribution, and q is its distribution for the prompt without the image. In every
head of every layer except the first two, the last position's attention weight w of each vision
token is raised before the softmax:

    w + alpha |w|

Readings: the stream without the image is not boosted, as published. Every pass of the other stream
is boosted. In the published code the first pass is not boosted if gamma is above 1, and no pass is
if gamma is 1.
"""

from torch import Tensor

from revisit.decoders.plausible import keep_plausible

FIRST_LAYER = 2
"""The first layer, from 0, whose attention is boosted, as published."""


def combine(logits: Tensor, blind: Tensor, gamma: float, beta: float) -> Tensor:
    """The scores (..., V) from the logits with the image and without it."""
    log_p, log_q = logits.log_softmax(-1), blind.log_softmax(-1)
    return keep_plausible(gamma * log_p - (gamma - 1) * log_q, logits, beta)


def boost(weights: Tensor, vision: Tensor, alpha: float) -> Tensor:
    """Attention weights (rows, heads, keys) before the softmax, raised at `vision` (rows, keys).

    What is masked (-inf, or a dtype's least number) stays masked.
    """
    raised = weights + alpha * weights.abs()
    seen = vision.unsqueeze(1) & (weights > -1e30)
    return raised.where(seen, weights)
