"""DeCo, dynamic correction decoding by preceding layers (Wang et al., arXiv 2410.11779).

    l + alpha P l_A  on the candidates, -inf elsewhere

The candidates are the most probable of the `top_k` likeliest tokens, up to the first at which their
probabilities add up to `top_p`. A is the layer that gives a candidate the largest probability, P.
l_A are the logits of that layer: the LM head on its hidden state after the final norm.

Readings: alpha is 0.6, as in the published function (its table and notebook say 0.5). The published
hidden states 20 to 28 of 32 are scaled to the number of layers of the model.
"""

import math

from torch import Tensor

LAYERS = range(20, 29)
"""The hidden states of a model of 32 layers, as published."""


def combine(logits: Tensor, inner: Tensor, alpha: float, top_p: float, top_k: int) -> Tensor:
    """The scores (rows, V) from the logits of the model (rows, V) and of J layers (rows, J, V)."""
    kept = candidates(logits, top_p, top_k)
    likeliest = inner.softmax(-1).masked_fill(~kept.unsqueeze(1), 0).amax(-1)
    probability, layer = likeliest.max(1, keepdim=True)
    chosen = inner.gather(1, layer.unsqueeze(2).expand(-1, -1, inner.shape[2])).squeeze(1)
    return (logits + alpha * probability * chosen).masked_fill(~kept, -math.inf)


def candidates(logits: Tensor, top_p: float, top_k: int) -> Tensor:
    """Which tokens are candidates, (rows, V) bool: at least the likeliest of each row."""
    best, tokens = logits.softmax(-1).topk(min(top_k, logits.shape[-1]), -1)
    before = best.cumsum(-1) - best
    kept = before < top_p
    kept[:, 0] = True
    return logits.isnan().scatter(-1, tokens, kept) & ~logits.isneginf()
