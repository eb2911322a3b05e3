"""SID, self-introspective decoding (Huo et al., arXiv 2408.02032).

    (1 + alpha) l - alpha m,  -inf where l < max l + ln beta

l are the model's logits, m those of a second stream of the same inputs, whose layers from `layer`
on see only the `rank` vision tokens that the layer before them attends to least. They are chosen
again at each step, by the attention of the last position, averaged over heads.

Readings: the mask counts in greedy decoding too; the published code takes the argmax before it.
Each row chooses its own vision tokens, there row 0 chooses for the batch.
"""

import torch
from torch import Tensor

from revisit.decoders.plausible import keep_plausible


def combine(logits: Tensor, unseen: Tensor, alpha: float, beta: float) -> Tensor:
    """The scores (..., V) from the logits with all and with the least attended vision tokens."""
    return keep_plausible((1 + alpha) * logits - alpha * unseen, logits, beta)


def hidden_keys(weights: Tensor, vision: Tensor, rank: int) -> Tensor:
    """The vision tokens that the later layers do not see, (rows, keys) bool.

    Args:
        weights: (rows, heads, keys) attention of the last position, after the softmax.
        vision: (rows, keys) bool, true at the vision tokens.
        rank: how many of each row's vision tokens stay, those of least attention; the first ones
            on ties. A row that has no more keeps all.
    """
    attention = weights.float().mean(1).masked_fill(~vision, torch.inf)
    ordered = attention.sort(dim=1, stable=True).indices
    hidden: Tensor = vision & (ordered.argsort(1) >= rank)
    return hidden
