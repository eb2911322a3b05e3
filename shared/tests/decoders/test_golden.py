"""The formulas against numbers that the published functions gave (`golden.json` names them)."""

import json
import math
from pathlib import Path

import pytest
import torch

from revisit.decoders import code, deco, icd, pai, sid, vista

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
FORMULAS = {  # and the published names of their settings
    "CODE": (code.combine, ["cd_alpha"]),
    "PAI": (pai.combine, ["gamma", "cutoff"]),
    "ICD": (icd.combine, ["alpha", "beta"]),
    "SID": (sid.combine, ["alpha", "beta"]),
    "DeCo": (deco.combine, ["alpha", "top_p", "top_k"]),
    "VISTA_SLA": (vista.combine, ["alpha"]),
}
CASES = [(name, number) for name in FORMULAS for number in range(len(GOLDEN[name]["cases"]))]


def tensor(rows):
    return torch.tensor([[-math.inf if each is None else each for each in row] for row in rows])


@pytest.mark.parametrize(("name", "number"), CASES)
def test_scores_are_those_of_the_published_function(name, number):
    case = GOLDEN[name]["cases"][number]
    if "l2" in case:
        second = tensor(case["l2"])
    else:
        second = torch.stack([tensor(rows) for rows in case["layers"].values()], 1)
    combine, names = FORMULAS[name]
    settings = [GOLDEN[name]["settings"][each] for each in names]
    scores = combine(tensor(case["l"]), second, *settings)
    torch.testing.assert_close(scores, tensor(case["expected"]), atol=1e-5, rtol=1e-5)
    assert scores.isneginf().any() == (name != "VISTA_SLA")


def test_deco_chooses_the_published_layer():
    for case in GOLDEN["DeCo"]["cases"]:
        layers = list(case["layers"])
        inner = torch.stack([tensor(rows) for rows in case["layers"].values()], 1)
        logits = tensor(case["l"])
        kept = deco.candidates(logits, 0.9, 20)
        for row, layer in enumerate(case["layer"]):
            likeliest = inner[row].softmax(-1)[:, kept[row]].amax(-1)
            assert int(layers[int(likeliest.argmax())]) == layer


def test_published_prompts_are_there():
    assert len(icd.PREFIXES) == 5
    assert code.QUESTION.startswith("Provide a detailed description of the image, covering")
