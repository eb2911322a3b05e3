"""The generations of the published implementation (design C5)."""

from pathlib import Path

import pytest
import torch

from published_cases import assert_published, generate, read_cases


@pytest.mark.parametrize("case", read_cases(Path(__file__).parent))
def test_published_tokens_and_scores(golden_model, golden_images, case):
    ids = torch.tensor([case["input_ids"]])
    output = generate(golden_model, case, inputs=ids, images=golden_images[case["images"]])
    assert_published(output, case)
