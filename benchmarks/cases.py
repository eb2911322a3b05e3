"""What is measured: the sizes of two models, and generations of random numbers in these sizes."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from revisit import LMHead, ReVisiTConfig
from revisit.config import NamedLayers

# The tokens of V_cons lie so far below the likeliest one, in nats.
DEPTH = -math.log(ReVisiTConfig().alpha)

SIZES = {
    "LLaVA-1.5-7B": dict(vocab_size=32_000, hidden_size=4096, intermediate_size=11_008,
        num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32),
    "Qwen2.5-VL-7B": dict(vocab_size=152_064, hidden_size=3584, intermediate_size=18_944,
        num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4),
    "tiny": dict(vocab_size=900, hidden_size=32, intermediate_size=64,
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2),
}  # fmt: skip


class Case(NamedTuple):
    """A model and the layers whose hidden states are compared."""

    model: str
    vision_tokens: int
    layers: NamedLayers
    states: int  # vision tokens times layers

    def __str__(self) -> str:
        return f"{self.model}, {self.layers}"

    @property
    def vocabulary(self) -> int:
        return SIZES[self.model]["vocab_size"]

    @property
    def width(self) -> int:
        return SIZES[self.model]["hidden_size"]


CASES = [
    Case("LLaVA-1.5-7B", 576, "last", 576),
    Case("Qwen2.5-VL-7B", 1_200, "last", 1_200),
    Case("Qwen2.5-VL-7B", 1_200, "all", 15 * 1_200),
]
TINY = [Case("tiny", 20, "last", 20), Case("tiny", 20, "all", 60)]


def decoder(model: str, device: str, dtype: torch.dtype, **sizes: Any) -> Any:
    """The text decoder of a model, with random weights."""
    made, config = LlamaForCausalLM, LlamaConfig
    if "Qwen" in model:
        made, config = Qwen2ForCausalLM, Qwen2Config
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return made(config(**{**SIZES[model], **sizes}, max_position_embeddings=4096)).eval()
    finally:
        torch.set_default_dtype(default)


def lm_head(vocabulary: int, width: int, dtype: torch.dtype, device: str = "cpu") -> LMHead:
    """A random LM head."""
    torch.manual_seed(0)
    return LMHead(torch.empty((vocabulary, width), dtype=dtype, device=device).normal_(0, 0.02))


def vision_states(count: int, head: LMHead) -> Tensor:
    """Random vision states (count, d)."""
    return torch.empty((count, head.width), dtype=head.dtype, device=head.device).normal_(0, 2)


def drift(
    vocabulary: int, candidates: int, steps: int, share: float = 0.05, seed: int = 0
) -> Iterator[Tensor]:
    """Logits (V,) float32 of each step of a generation; their V_cons has `candidates` tokens.

    `share` of them are new in each step, and drawn by Zipf's law, as in a real generation.
    """
    generator = torch.Generator().manual_seed(seed)
    # Tokens of neighbouring ranks do not stand side by side in a vocabulary.
    ranked = torch.randperm(vocabulary, generator=generator)
    log_frequency = -torch.arange(1, vocabulary + 1).log()

    def draw(count: int, without: Tensor) -> Tensor:
        # The largest of log-probability plus Gumbel noise: a sample without replacement.
        noise = torch.rand(vocabulary, generator=generator).log().neg().log().neg()
        return (log_frequency + noise).index_fill(0, without, -math.inf).topk(count).indices

    current = draw(candidates, torch.empty(0, dtype=torch.int64))
    new = max(1, round(share * candidates))
    for _ in range(steps):
        logits = torch.rand(vocabulary, generator=generator) - 40
        likely = torch.randn(candidates, generator=generator) * 2
        logits[ranked[current]] = likely.clamp(max=5).clamp(min=likely.max().clamp(max=5) - 11)
        yield logits
        stay = torch.randperm(candidates, generator=generator)[new:]
        current = torch.cat([current[stay], draw(new, current)])
