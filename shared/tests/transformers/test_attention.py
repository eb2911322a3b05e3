"""What an intercepted attention hides, against a dense float64 computation."""

import math

import pytest
import torch

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
