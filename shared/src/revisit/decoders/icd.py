"""ICD, instruction contrastive decoding (Wang et al., arXiv 2403.18715).

    (1 + alpha) l - alpha m,  -inf where l < max l + ln beta

l are the model's logits. m are its logits for a prompt in which a disturbing instruction replaces
the system message. The image and the question are the same.

Readings: alpha 1 and beta 0.1, as in the published scripts (the published function has alpha 0.5).
In models with a Q-Former the published code gives the instruction only to the Q-Former; here the
language model reads it, in every model.
"""

from torch import Tensor

from revisit.decoders.plausible import keep_plausible

PREFIXES = (
    "You are an object detector to recognize every different objects.",
    "You are an object detector to recognize every different objects by focusing the shapes, "
    "colors and relationships of objects.",
    "I want you avoid any specific identification or categorization of the objects depicted.",
    "You are a confused objects detector to provide a fuzzy overview or impression of the image.",
    "You are an object detector to provide a general overview or impression of the image.",
)
"""The published instructions."""


def combine(logits: Tensor, disturbed: Tensor, alpha: float, beta: float) -> Tensor:
    """The scores (..., V) from the logits without and with the disturbing instruction."""
    return keep_plausible((1 + alpha) * logits - alpha * disturbed, logits, beta)
