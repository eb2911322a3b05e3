"""The golden checkpoint, and small models made on the spot."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava import LlavaConfig, LlavaLlamaForCausalLM

GOLDEN = Path(__file__).parent / "golden"

# A little of everything that the prompts of the tests say.
CORPUS = """A chat between a curious human and an artificial intelligence assistant.
The assistant gives helpful, detailed, and polite answers to the human's questions.
USER: Please describe this image in detail. ASSISTANT: There is a dog on the grass.
USER: What is this? ASSISTANT: A cat sits beside two chairs and a table.
USER: What is the colour of the car? ASSISTANT: The car is red, the bus is yellow."""


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def golden_model() -> LlavaLlamaForCausalLM:
    return LlavaLlamaForCausalLM.from_pretrained(GOLDEN)


@pytest.fixture(scope="session")
def golden_images() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "images.safetensors")


def build_model(side: int = 56, **settings: Any) -> LlavaLlamaForCausalLM:
    """A small LLaVA with random weights and vision tokens of 14 pixels."""
    config = LlavaConfig(
        **{
            "vocab_size": 320,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "initializer_range": 0.3,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "mm_hidden_size": 24,
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_tower": "tower",
            "image_aspect_ratio": "pad",
            **settings,
        }
    )
    clip = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side,
        patch_size=14,
        initializer_factor=3.0,
    )
    torch.manual_seed(11)
    model = LlavaLlamaForCausalLM(config)
    model.attach_vision_tower(CLIPVisionModel(clip))
    return model.eval()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., LlavaLlamaForCausalLM]:
    return build_model


@pytest.fixture(scope="session")
def small_model() -> LlavaLlamaForCausalLM:
    return build_model()


@pytest.fixture(scope="session")
def pixels() -> torch.Tensor:
    """Six images (6, 3, 56, 56)."""
    return torch.randn(6, 3, 56, 56, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="session")
def saved_model(
    small_model: LlavaLlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    small_model.save_pretrained(folder)
    (folder / "corpus.txt").write_text(CORPUS)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=320,
        byte_fallback=True,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder


@pytest.fixture
def checkpoint(saved_model: Path, tmp_path: Path) -> Path:
    """A checkpoint of `small_model`, with tokenizer and tower, to spoil as the test likes."""
    return shutil.copytree(saved_model, tmp_path / "checkpoint")
