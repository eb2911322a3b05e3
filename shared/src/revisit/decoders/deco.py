"""DeCo, dynamic correction decoding by preceding layers (Wang et al., arXiv 2410.11779).

    l + alpha P l_A  on the candidates, -inf elsewhere

The candidates are the `top_k` likeliest tokens, in order and up to the first at which their
probabilities add up to `top_p`. Of the layers, A is the one that gives a candidate the largest
probability, P; l_A are its logits: the LM head's of its hidden state after the final norm.

Readings: alpha 0.6 of the published function (its table and notebook say 0.5). Hidden states 20 to
28 of 32, as published, are scaled to a model's own number of layers.
"""

import math

from torch import Tensor

LAYERS = range(20, 29)
"""The hidden states of a model of 32 layers, as published."""


def combine(logits: Tensor, inner: Tensor, alpha: float, top_p: float, top_k: int) -> Tensor:
    """The scores (rows, V) from the model's logits and those of J layers (rows, J, V)."""
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
