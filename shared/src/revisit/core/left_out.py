"""What an engine hands on beyond V_cons: finite scores of probability 0, in the model's order.

In the formulas these tokens have -inf. In an engine other processors follow, which ban, add,
multiply and normalize: where they ban all of V_cons, -inf would leave a choice among nothing.
"""

import math

import torch
from torch import Tensor

# Scores left out are at least so many times as far below 0 as the least kept one: a penalty that
# multiplies by up to 5 does not bring one over the other. The least distance is 32 * 512 = 2^14:
# exp(-2^14 / T) is 0 in float32 for temperatures T to 150.
_FACTOR, _LEAST = 32, 512


def fill_left_out(decided: Tensor, scores: Tensor) -> Tensor:
    """`decided` with a finite score in place of each -inf, unless the model's score is -inf too.

    It is a large multiple of the token's log-probability, less one nat, in the model's scores:
    exactly 0 as a probability beside what is kept, and as precise as that log-probability, so that
    the order is the model's. Where all that was kept is banned, the likeliest token of the rest is
    certain, and beams compare by the model's log-probabilities.

    Args:
        decided: (rows, V) float32, -inf at the tokens that a decoder leaves out.
        scores: (rows, V) of the model, any floating dtype: logits or log-probabilities.

    Returns:
        (rows, V) float32. What was not -inf is as it was.
    """
    left_out = decided == -math.inf
    least = decided.masked_fill(left_out, math.inf).amin(-1, keepdim=True)
    scale = _FACTOR * least.abs().clamp(min=_LEAST)
    scores = scores.float()
    # A certain token (+inf) would leave no difference between the others; there may be no others.
    log_p = scores.masked_fill(scores == math.inf, -math.inf).log_softmax(-1)
    log_p.masked_fill_(scores == -math.inf, -math.inf)
    return torch.where(left_out, (log_p - 1) * scale, decided)
