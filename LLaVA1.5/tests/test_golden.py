"""What the published implementation generated (design C5)."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

CASES = json.loads((Path(__file__).parent / "golden" / "cases.json").read_text())


def name(case: dict[str, Any]) -> str:
    settings = [f"{key}={value}" for key, value in case["generate"].items()]
    return " ".join([case["images"], *settings])


@pytest.mark.parametrize("case", CASES, ids=name)
def test_published_tokens_and_scores(golden_model, golden_images, case):
    if "torch" in case and not torch.__version__.startswith(case["torch"]):
        pytest.skip(f"multinomial draws are those of torch {case['torch']}")
    torch.manual_seed(case["seed"])
    output = golden_model.generate(
        torch.tensor([case["input_ids"]]),
        images=golden_images[case["images"]],
        max_new_tokens=case["max_new_tokens"],
        output_scores=True,
        return_dict_in_generate=True,
        revisit_trace=case["generate"].get("use_revisit", False),
        **case["generate"],
    )
    assert output.sequences[0].tolist() == case["input_ids"] + case["tokens"]
    for scores, expected in zip(output.scores, case["top_scores"], strict=False):
        tokens, values = zip(*expected, strict=True)
        # -inf there, as in the formula, is finite here: not in V_cons.
        scores = scores.masked_fill(scores < -1e4, -math.inf)
        top = scores[0].topk(len(tokens))
        assert top.values.tolist() == pytest.approx(values, abs=1e-4)
        assert scores[0, list(tokens)].tolist() == pytest.approx(values, abs=1e-4)
    # Warpers and penalties leave fewer candidates than V_cons.
    if set(case["generate"]) == {"do_sample", "use_revisit", "early_exit_layers", "relative_top"}:
        assert [step.candidates for step in output.revisit_trace[0]] == case["candidates"]
