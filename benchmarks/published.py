"""What the published implementation keeps and does, to compare with.

It projects every recorded vision state onto the whole vocabulary during prefill and stores that,
(M, V) in the model's dtype; each step takes a softmax, a log-softmax and two Kullback-Leibler
divergences over what it stored. Here a step reads V_cons alone of it, which is kind to it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def prefill(states: Tensor, head: Tensor) -> Tensor:
    """The stored projection (M, V) of states (M, d) by an LM head (V, d)."""
    return states @ head.T


def step(logits: Tensor, projected: Tensor, log_alpha: float) -> Tensor:
    """Refined scores (V,) float32 of one row's logits (V,) float32."""
    log_p = logits.log_softmax(-1)
    kept = log_p >= log_p.max() + log_alpha
    base, vision = logits[kept], projected[:, kept].float()
    p, log_p = base.softmax(-1), base.log_softmax(-1)
    q, log_q = vision.softmax(-1), vision.log_softmax(-1)
    mean = (p + q) / 2
    from_p = F.kl_div(log_p.expand_as(mean), mean, reduction="none").sum(-1)
    from_q = F.kl_div(log_q, mean, reduction="none").sum(-1)
    choice = ((from_p + from_q) / 2).argmin()
    refined = torch.full_like(logits, -torch.inf)
    refined[kept] = log_p + log_q[choice]
    return refined
