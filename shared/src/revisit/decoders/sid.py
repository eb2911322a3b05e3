"""SID, self-introspective decoding (Huo et al., arXiv 2408.02032).

    (1 + alpha) l - alpha m,  -inf where l < max l + ln beta

l are the model's logits, and m are the logits of a second stream with the same inputs. There, the
layers from `layer` on see only the `rank` vision tokens with the least attention in the layer
before them: the attention of the last position, averaged over heads. The choice is made again at
each step.

Readings: in the published code row 0 chooses for the whole batch; here each row chooses. Published
greedy decoding takes the argmax before the mask; here the mask applies in every mode. If a position
would see no token at all, such as a vision token at the beginning of a prompt, it is not changed.
"""

import torch
from torch import Tensor

from revisit.decoders.plausible import keep_plausible


def combine(logits: Tensor, second: Tensor, alpha: float, beta: float) -> Tensor:
    """The scores (..., V) from the logits with all and with the least attended vision tokens."""
    return keep_plausible((1 + alpha) * logits - alpha * second, logits, beta)


def hidden_tokens(weights: Tensor, vision: Tensor, rank: int) -> Tensor:
    """Which vision tokens positions do not see in the later layers: (rows, positions, keys) bool.

    Args:
        weights: (rows, heads, positions, keys) attention after the softmax.
        vision: (rows, keys) bool, true at the vision tokens.
        rank: how many vision tokens each position sees: those of least attention, the first ones of
            equals. Where there are no more, it sees all.
    """
    vision = vision.unsqueeze(1)
    attention = weights.mean(1).masked_fill(~vision, torch.inf)
    least_first = attention.sort(dim=-1, stable=True).indices
    hidden: Tensor = vision & (least_first.argsort(-1) >= rank)
    return hidden
