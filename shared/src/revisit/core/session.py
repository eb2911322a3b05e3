"""What one prompt keeps while it is decoded, whatever engine runs the model."""

from functools import cached_property

import torch
from torch import Tensor

from revisit.config import ReVisiTConfig
from revisit.core.columns import Cache, Columns


class Session:
    """The vision states of one prompt, what is computed from them, and how it is decoded.

    Rows of one prompt (beams, several sequences) share a session; prompts never do.

    Args:
        states: (M, d) vision states, layer by layer: M = layers x vision tokens.
        cache: the LM head, and how much of its projections is kept; prompts may share it.
        config: how the prompt is decoded: alpha, divergence, selection and seed are used here.
        number: how many prompts were decoded before this one: its random draws follow from it and
            from `config.seed`, and not from its neighbours in a batch.

    Raises:
        ValueError: there are no states, or they are not as wide as the LM head.
    """

    def __init__(
        self, states: Tensor, cache: Cache, config: ReVisiTConfig, number: int = 0
    ) -> None:
        self.config, self.number, self.columns = config, number, Columns(states, cache)

    def close(self) -> None:
        """The prompt has ended: what it kept is free for others."""
        self.columns.close()

    @cached_property
    def generator(self) -> torch.Generator:
        """What `selection="random"` draws from, on the CPU."""
        return seeded(self.config, self.number)


def seeded(config: ReVisiTConfig, number: int) -> torch.Generator:
    """A generator on the CPU, which takes 32 bits of a seed, for the prompt of this number."""
    return torch.Generator("cpu").manual_seed((config.seed * 1_000_003 + number) % 2**32)
