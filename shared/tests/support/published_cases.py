"""Generations of the published implementation (design C5), and how an output compares with them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch


def read_cases(folder: Path) -> list[Any]:
    """The cases of a family, each a parameter with a name."""
    cases = json.loads((folder / "golden" / "cases.json").read_text())
    return [pytest.param(case, id=_name(case)) for case in cases]


def _name(case: dict[str, Any]) -> str:
    settings = [f"{key}={value}" for key, value in case["generate"].items()]
    return " ".join([case.get("images") or case["pixel_values"], *settings])


def generate(model, case, **inputs):
    """Generate with the settings and the seed of a case."""
    if "torch" in case and not torch.__version__.startswith(case["torch"]):
        pytest.skip(f"multinomial draws are those of torch {case['torch']}")
    torch.manual_seed(case["seed"])
    return model.generate(
        **inputs,
        max_new_tokens=case["max_new_tokens"],
        output_scores=True,
        return_dict_in_generate=True,
        revisit_trace=case["generate"].get("use_revisit", False),
        **case["generate"],
    )


def assert_published(output, case):
    assert output.sequences[0].tolist() == case["input_ids"] + case["tokens"]
    for scores, expected in zip(output.scores, case["top_scores"], strict=False):
        tokens, values = zip(*expected, strict=True)
        # The published code has -inf for a token outside V_cons, this one a large negative number.
        scores = scores.masked_fill(scores < -1e4, -math.inf)
        assert scores[0].topk(len(tokens)).values.tolist() == pytest.approx(values, abs=1e-4)
        assert scores[0, list(tokens)].tolist() == pytest.approx(values, abs=1e-4)
    # Warpers and penalties leave fewer candidates than V_cons.
    if set(case["generate"]) == {"do_sample", "use_revisit", "early_exit_layers", "relative_top"}:
        assert [step.candidates for step in output.revisit_trace[0]] == case["candidates"]
