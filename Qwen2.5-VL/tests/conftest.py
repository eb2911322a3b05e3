"""The golden checkpoint, and prompts with images and videos of any size for it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden_model():
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(GOLDEN, torch_dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="session")
def golden_pixels():
    return load_file(GOLDEN / "pixel_values.safetensors")
