"""The adaptive plausibility that these decoders share (Li et al., arXiv 2210.15097)."""

import math

from torch import Tensor


def keep_plausible(combined: Tensor, logits: Tensor, beta: float) -> Tensor:
    """`combined` (..., V) where the model's `logits` >= their maximum + ln beta, -inf elsewhere.

    A token that the model rules out (-inf) stays out, also with beta 0, which keeps all others.
    """
    bound = logits.amax(-1, keepdim=True) + (math.log(beta) if beta else -math.inf)
    return combined.masked_fill((logits < bound) | logits.isneginf(), -math.inf)
