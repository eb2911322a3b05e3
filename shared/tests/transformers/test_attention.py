"""Attention that PAI and SID change: hidden keys, other precisions, what is refused."""

import copy
import math

import pytest
import torch

import families
import revisit
from decoding import ASKED, CONFIGS, decode, made, refused, together
from families import FAMILIES
from revisit import PAIConfig, SIDConfig
from revisit.transformers.attention import AttentionCall

ROWS, HEADS, KEYS, WIDTH = 2, 4, 6, 8
CAUSAL = torch.ones(KEYS, KEYS, dtype=torch.bool).tril()


def attend(module, query, key, value, mask, scaling, is_causal):
    assert not is_causal
    key, value = (each.repeat_interleave(2, 1).float() for each in (key, value))
    scores = scaling * query.float() @ key.transpose(2, 3)
    masked = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return (masked.softmax(-1) @ value).transpose(1, 2).to(query.dtype), None


def call(queries, mask, dtype=torch.float32):
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(ROWS, *shape, WIDTH).to(dtype)
        for shape in ((HEADS, queries), (HEADS // 2, KEYS), (HEADS // 2, KEYS))
    )
    return AttentionCall(attend, torch.nn.Identity(), query, key, value, mask, {"scaling": 0.3})


def dense(call, seen):
    """The output where positions see the keys at `seen` (rows, Q, keys)."""
    key, value = (each.double().repeat_interleave(2, 1) for each in (call.key, call.value))
    scores = 0.3 * call.query.double() @ key.transpose(2, 3)
    weights = scores.masked_fill(~seen.unsqueeze(1), -math.inf).softmax(-1)
    return (weights @ value).transpose(1, 2)


@pytest.mark.parametrize("queries", [1, KEYS])
@pytest.mark.parametrize("form", ["none", "bool", "added"])
def test_hidden_keys_are_not_seen(queries, form):
    hidden = torch.zeros(ROWS, queries, KEYS, dtype=torch.bool)
    hidden[0, :, 2] = hidden[1, :, 3:5] = True
    seen = CAUSAL[-queries:].repeat(ROWS, 1, 1)
    if form != "none":
        seen[1, -1, 1] = False
    room = torch.nn.functional.pad(seen, (0, 3)).unsqueeze(1)  # of a static cache
    least = torch.finfo(torch.float32).min
    added = torch.zeros(room.shape).masked_fill(~room, least)
    changed = call(queries, {"none": None, "bool": room, "added": added}[form])
    output, _ = changed.hiding(hidden).run()
    torch.testing.assert_close(output.double(), dense(changed, seen & ~hidden), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_position_that_would_see_nothing_sees_what_it_saw(dtype):
    hidden = torch.zeros(ROWS, KEYS, KEYS, dtype=torch.bool)
    hidden[:, :, :3] = True  # a prompt that begins with its image
    changed = call(KEYS, None, dtype)
    output, _ = changed.hiding(hidden).run()
    seen = (CAUSAL & ~hidden) | (CAUSAL & (torch.arange(KEYS) < 3).unsqueeze(1))
    expected = dense(changed, seen)
    torch.testing.assert_close(output.double(), expected, atol=2e-2, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 0.1), (torch.bfloat16, 0.5), (torch.float64, 1e-4)]
)
@pytest.mark.parametrize("name", ["PAI", "SID"])
def test_changed_attention_is_about_the_same_in_another_precision(name, dtype, tolerance):
    model, _, rows = made("gemma3")
    scores = []
    for each in (model, copy.deepcopy(model).to(dtype)):
        inputs = {
            key: value.to(each.dtype) if value.is_floating_point() else value
            for key, value in together(rows).items()
        }
        with revisit.attach(each, CONFIGS[name]):
            output = each.generate(
                **inputs,
                **ASKED,
                do_sample=False,
                output_scores=True,
                return_dict_in_generate=True,
            )
        assert all(not step.isnan().any() for step in output.scores)
        scores.append(output.scores[0].double())
    kept = (torch.stack(scores) > -1e4).all(0)  # others are left out
    torch.testing.assert_close(scores[1][kept], scores[0][kept], atol=tolerance, rtol=0)


@pytest.mark.parametrize("kind", [PAIConfig, SIDConfig])
def test_attention_that_cannot_be_changed_is_refused_with_what_can(kind):
    model = families.make("llava")
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="attn_implementation='sdpa', or pass alpha=0"):
        revisit.enable(model, kind())
    with revisit.attach(model, kind(alpha=0)):
        pass
    if "lfm2_vl" in FAMILIES:  # some of its layers have a convolution in place of attention
        with pytest.raises(ValueError, match="of Lfm2DecoderLayer does not go through"):
            revisit.enable(families.make("lfm2_vl"), kind())


@pytest.mark.parametrize("kind", [PAIConfig, SIDConfig])
def test_attention_that_is_no_longer_intercepted_is_noticed(kind):
    model = families.make("llava")
    model.register_forward_pre_hook(lambda *_: model.set_attn_implementation("eager"))
    refused(model, kind(), made("llava")[2][0], "saw 0 layers attend in a step, not")


def test_sid_s_second_stream_has_no_other_inputs():
    model, _, rows = made("llava")
    other = {"second_inputs": {"pixel_values": rows[0]["pixel_values"]}}
    refused(model, SIDConfig(), rows[0], "reads the same inputs: leave out second_inputs", **other)


@pytest.mark.parametrize("name", ["PAI", "SID"])
def test_the_attention_interface_is_as_it_was(name):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model, _, rows = made("llava")
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    decode(model, name, rows[0])
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
