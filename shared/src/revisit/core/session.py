"""What one prompt keeps while it is decoded, whatever engine runs the model."""

from functools import cached_property

import torch
from torch import Tensor

from revisit.config import ReVisiTConfig
from revisit.core.columns import Columns
from revisit.core.head import LMHead


class Session:
    """The vision states of one prompt, what is computed from them, and how it is decoded.

    Rows of one prompt (beams, several sequences) share a session; prompts never do.

    Args:
        states: (M, d) vision states, layer by layer: M = layers x vision tokens.
        head: the LM head that projects them.
        config: how the prompt is decoded; its `layers` are those of `states` already.
        number: how many prompts were decoded before this one: its random draws follow from it and
            from `config.seed`, and not from its neighbours in a batch.
        budget: bytes that kept columns may take; `config.cache_bytes` if None.

    Raises:
        ValueError: the states are not as wide as the LM head.
    """

    def __init__(
        self,
        states: Tensor,
        head: LMHead,
        config: ReVisiTConfig,
        number: int = 0,
        budget: int | None = None,
    ) -> None:
        self.config = config
        self.number = number
        self.columns = Columns(states, head, config.cache_bytes if budget is None else budget)

    @cached_property
    def generator(self) -> torch.Generator:
        """What `selection="random"` draws from, on the CPU."""
        # The CPU's generator takes 32 bits of a seed.
        return torch.Generator().manual_seed((self.config.seed * 1_000_003 + self.number) % 2**32)
