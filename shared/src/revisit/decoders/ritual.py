"""RITUAL, random image transformations as a complement (Woo et al., arXiv 2405.17821).

    l + alpha l',  -inf where l < max l + ln beta

l are the model's logits, and l' are its logits for the transformed image
(`revisit.decoders.transformations.second_image`).
"""

from torch import Tensor

from revisit.decoders.plausible import keep_plausible


def combine(logits: Tensor, transformed: Tensor, alpha: float, beta: float) -> Tensor:
    """The scores (..., V) from the logits for the image and for the transformed image."""
    return keep_plausible(logits + alpha * transformed, logits, beta)
