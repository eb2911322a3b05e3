"""The generations of the published implementation (design C5)."""

from pathlib import Path

import pytest
import torch

from published_cases import assert_published, generate, read_cases


@pytest.mark.parametrize("case", read_cases(Path(__file__).parent))
def test_published_tokens_and_scores(golden_model, golden_pixels, case):
    ids = torch.tensor([case["input_ids"]])
    output = generate(
        golden_model,
        case,
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=golden_pixels[case["pixel_values"]],
        image_grid_thw=torch.tensor(case["image_grid_thw"]),
    )
    assert_published(output, case)
