"""What a prompt draws from."""

import torch

from revisit.config import ReVisiTConfig
from revisit.core.columns import Cache
from revisit.core.head import LMHead
from revisit.core.session import Session, seeded


def test_a_generator_follows_from_the_seed_and_the_number_of_the_prompt():
    cache = Cache(LMHead(torch.randn(4, 2)), 0)

    def draw(seed, *number):
        one = Session(torch.ones(1, 2), cache, ReVisiTConfig(seed=seed), *number)
        return float(torch.rand(1, generator=one.generator))

    draws = [draw(*of) for of in ((0, 0), (0, 1), (1, 0), (1, 1), (-3, 2), (2**40, 5), (0,))]
    assert draws[0] == draws[-1]
    assert len(set(draws)) == 6
    # The same draws in every release of ours, and seeds that a generator takes.
    assert seeded(ReVisiTConfig(seed=5), 7).initial_seed() == 5 * 1_000_003 + 7
    assert seeded(ReVisiTConfig(seed=2**31), 9).initial_seed() == (2**31 * 1_000_003 + 9) % 2**32
