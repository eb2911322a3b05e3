"""The logits of inner layers: their precision, and the layers that there are."""

import pytest
import torch

import revisit
from decoding import made
from revisit import DeCoConfig, VISTAConfig
from revisit.core.head import LMHead
from revisit.transformers.layer_logits import _layer_logits


def test_dola_projects_in_the_head_s_dtype_under_mixed_precision():
    torch.manual_seed(0)
    head = LMHead(torch.randn(50, 16))
    states = torch.randn(2, 2, 16)
    expected = _layer_logits(head, states)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(_layer_logits(head, states), expected)


def test_a_layer_above_the_last_one_below_is_refused():
    model, _, _ = made("llava")
    for kind in (DeCoConfig, VISTAConfig):
        with pytest.raises(ValueError, match=r"layers \[4\] are out of range"):
            revisit.enable(model, kind(layers=[4]))
