"""The logits of a generation whose plausible tokens drift, as those of a real one do."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Work(NamedTuple):
    """How much of it: candidates in V_cons, steps, and the share of new tokens a step."""

    candidates: Sequence[int]
    steps: int = 64
    share: float = 0.05


def drift(vocabulary: int, candidates: int, work: Work, seed: int = 0) -> Iterator[Tensor]:
    """Logits (V,) float32 of each step of a generation; their V_cons has `candidates` tokens."""
    generator = torch.Generator().manual_seed(seed)
    # Words of neighbouring ranks do not stand side by side in a vocabulary.
    ranked = torch.randperm(vocabulary, generator=generator)
    log_frequency = -torch.arange(1, vocabulary + 1).log()

    def draw(count: int, without: Tensor) -> Tensor:
        # The largest of log-probability plus Gumbel noise: a sample without replacement.
        noise = torch.rand(vocabulary, generator=generator).log().neg().log().neg()
        return (log_frequency + noise).index_fill(0, without, -math.inf).topk(count).indices

    current = draw(candidates, torch.empty(0, dtype=torch.int64))
    new = max(1, round(work.share * candidates))
    for _ in range(work.steps):
        logits = torch.rand(vocabulary, generator=generator) - 40
        likely = torch.randn(candidates, generator=generator) * 2
        logits[ranked[current]] = likely.clamp(max=5).clamp(min=likely.max().clamp(max=5) - 11)
        yield logits
        stay = torch.randperm(candidates, generator=generator)[new:]
        current = torch.cat([current[stay], draw(new, current)])
