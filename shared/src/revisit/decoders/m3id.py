"""M3ID, multi-modal mutual-information decoding (Favero et al., CVPR 2024, arXiv 2403.14003).

    l + (l - l') (1 - g) / g,   g = exp(-gamma t),   -inf where l < max l + ln beta

l are the model's logits, l' are its logits for the prompt without the image, and t counts the
generated tokens from 0. The longer the text, the larger is the weight of the image.

Reading: the paper corrects a step only if the model is uncertain (its largest probability is below
a threshold). Here every step is corrected, and implausible tokens are masked as in VCD.
"""

import math

from torch import Tensor

from revisit.decoders.plausible import keep_plausible

# e^60 times a difference of logits leaves nothing of l in float32, and is no infinity.
_FARTHEST = 60.0


def combine(logits: Tensor, blind: Tensor, step: int, gamma: float, beta: float) -> Tensor:
    """The scores (..., V) of step `step` from the logits with the image and without it."""
    weight = math.expm1(min(gamma * step, _FARTHEST))  # (1 - g) / g
    return keep_plausible(logits + weight * (logits - blind), logits, beta)
