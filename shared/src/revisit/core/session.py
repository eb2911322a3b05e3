"""What one prompt keeps while it is decoded, whatever engine runs the model."""

from functools import cached_property

import torch
from torch import Tensor

from revisit.config import ReVisiTConfig
from revisit.core.columns import Pool


class Session:
    """The vision states of one prompt, what is computed from them, and how it is decoded.

    Rows of one prompt (beams, several sequences) share a session; prompts never do.

    Args:
        states: (M, d) vision states, layer by layer: M = layers x vision tokens.
        pool: where its columns are kept, and the LM head that projects them; sessions whose rows
            are in one batch share it.
        config: how the prompt is decoded; its `layers` are those of `states` already, and its
            `cache_bytes` is for who makes the pool.
        number: how many prompts were decoded before this one: its random draws follow from it and
            from `config.seed`, and not from its neighbours in a batch.

    Raises:
        ValueError: there are no states, or they are not as wide as the LM head.
    """

    def __init__(self, states: Tensor, pool: Pool, config: ReVisiTConfig, number: int = 0) -> None:
        self.config = config
        self.number = number
        self.columns = pool.open(states)

    def close(self) -> None:
        """The prompt has ended: what it held in the pool is free for others."""
        self.columns.pool.close(self.columns)

    @cached_property
    def generator(self) -> torch.Generator:
        """What `selection="random"` draws from, on the CPU."""
        # The CPU's generator takes 32 bits of a seed.
        seed = (self.config.seed * 1_000_003 + self.number) % 2**32
        return torch.Generator("cpu").manual_seed(seed)
