"""Qwen2.5-VL of an unpatched Transformers gives the published tokens through `attach`."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import revisit
from revisit import ReVisiTConfig

if not hasattr(transformers, "Qwen2_5_VLForConditionalGeneration"):
    pytest.skip("this Transformers has no Qwen2.5-VL", allow_module_level=True)

GOLDEN = Path(__file__).parents[2] / "Qwen2.5-VL" / "tests" / "golden"
# Stock Transformers runs its own processors first, so the cases with others are the forks'.
SETTINGS = {"do_sample", "use_revisit", "early_exit_layers", "relative_top"}
CASES = [
    case
    for case in json.loads((GOLDEN / "cases.json").read_text())
    if set(case["generate"]) == SETTINGS and not case["generate"]["do_sample"]
]


@pytest.fixture(scope="module")
def model() -> Any:
    return transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(GOLDEN).float().eval()


@pytest.fixture(scope="module")
def pixels() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "pixel_values.safetensors")


def name(case: dict[str, Any]) -> str:
    given = case["generate"]
    return f"{case['pixel_values']} {given['early_exit_layers']} {given['relative_top']}"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_published_tokens_and_scores(model, pixels, case):
    input_ids = torch.tensor([case["input_ids"]])
    inputs = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": pixels[case["pixel_values"]],
        "image_grid_thw": torch.tensor(case["image_grid_thw"]),
    }
    # Newer releases want what their processor tells them: which tokens are of an image.
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        inputs["mm_token_type_ids"] = (input_ids == model.config.image_token_id).long()
    config = ReVisiTConfig(
        layers=case["generate"]["early_exit_layers"],
        alpha=case["generate"]["relative_top"],
        trace=True,
    )
    with revisit.attach(model, config) as processor:
        output = model.generate(
            **inputs,
            logits_processor=[processor],
            max_new_tokens=case["max_new_tokens"],
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
    assert output.sequences[0, input_ids.shape[1] :].tolist() == case["tokens"]
    assert [step.candidates for step in processor.trace[0]] == case["candidates"]
    for scores, expected in zip(output.scores, case["top_scores"], strict=False):
        tokens, values = zip(*expected, strict=True)
        assert scores[0, list(tokens)].tolist() == pytest.approx(values, abs=1e-4)
