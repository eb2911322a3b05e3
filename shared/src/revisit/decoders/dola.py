"""DoLa, decoding by contrasting layers (Chuang et al., arXiv 2309.03883).

    log_softmax(l) - log_softmax(premature),  -inf where l < max l + ln relative_top

The premature logits are the LM head on a hidden state inside the decoder, without the final norm.
The candidate layer is chosen whose distribution diverges most from the model's.

Readings: the divergence is the Jensen-Shannon divergence that the paper's text names,
(KL(p||m) + KL(q||m)) / 2; the published code computes (KL(m||p) + KL(m||q)) / 2. Each row chooses a
layer; in the published code the rows of a batch choose one together. Masked tokens are -inf; in the
published code they are a large negative number.
"""

import torch
from torch import Tensor

from revisit.core.step import divergence, select
from revisit.decoders.plausible import keep_plausible


def combine(logits: Tensor, premature: Tensor, relative_top: float) -> Tensor:
    """The scores (rows, V) from the model's logits and J candidate layers' (rows, J, V)."""
    log_p, log_q = logits.log_softmax(-1), premature.log_softmax(-1)
    chosen = select(divergence(log_p, log_q.transpose(1, 2), "js"), "max")
    rows = torch.arange(len(chosen), device=chosen.device)
    return keep_plausible(log_p - log_q[rows, chosen], logits, relative_top)
