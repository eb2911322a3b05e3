"""LM heads: the plain one with and without arithmetic of its dtype, and others in its place."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revisit.config import ReVisiTConfig
from revisit.core import head as module
from revisit.core.columns import Cache
from revisit.core.head import Head, LMHead, native, without_autocast
from revisit.core.rows import refine
from revisit.core.session import Session
from revisit.core.step import step


class OtherHead:
    """An LM head of the size of a weight."""

    def __init__(self, weight):
        self.weight, self.dtype, self.device = weight, weight.dtype, weight.device
        self.size, self.width = weight.shape


class Quantized(OtherHead):
    """Rows of int8 with a scale each, as a quantized model holds them."""

    def __init__(self, weight):
        super().__init__(weight)
        self.scales = weight.float().abs().amax(1, keepdim=True) / 127
        self.rows = (weight.float() / self.scales).round().to(torch.int8)

    def project(self, tokens, states):
        rows = self.rows[tokens].float() * self.scales[tokens]
        return (rows @ states.float().T).to(self.dtype)


class Sharded(OtherHead):
    """Each rank has the rows of some tokens; what they compute is summed."""

    def project(self, tokens, states):
        logits, start = 0, 0
        for shard in self.weight.chunk(3):
            here = (tokens >= start) & (tokens < start + len(shard))
            local = LMHead(shard).project((tokens - start).where(here, 0), states)
            logits = logits + local.where(here.unsqueeze(1), 0)
            start += len(shard)
        return logits


def decode(head: Head, steps=4, budget=2**30):
    """Some steps of three prompts with an LM head; each row's scores, and its session."""
    generator = torch.Generator().manual_seed(0)
    cache = Cache(head, budget)
    sessions = [
        Session(torch.randn(m, head.width, generator=generator), cache, ReVisiTConfig(alpha=0.01))
        for m in (7, 40, 20)
    ]
    for _ in range(steps):
        logits = torch.randn(3, head.size, generator=generator) * 4
        refined, _ = refine(logits, sessions)
        yield from zip(logits, refined, sessions, strict=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [Quantized, Sharded])
@pytest.mark.parametrize("budget", [2**30, 2000])
@pytest.mark.filterwarnings("ignore:ReVisiT. cache_bytes")
def test_a_head_of_another_kind_is_used_as_it_projects(kind, dtype, budget):
    weight = torch.randn(50, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    head = kind(weight)
    for logits, refined, session in decode(head, budget=budget):
        alone = step(logits, session.columns.states, head, session.config)
        torch.testing.assert_close(refined, alone.scores, rtol=1e-4, atol=1e-4)


def test_a_sharded_head_decodes_as_the_whole_one():
    weight = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    for (_, whole, _), (_, parts, _) in zip(
        decode(LMHead(weight)), decode(Sharded(weight)), strict=True
    ):
        torch.testing.assert_close(whole, parts)


@pytest.fixture(params=[True, False], ids=["native", "in float32"])
def arithmetic(request, monkeypatch):
    """A processor with, and without, arithmetic of half precision."""
    monkeypatch.setattr(module, "native", lambda dtype, device: request.param)


@pytest.mark.parametrize("tokens", [[41], [3, 89, 0, 41], [5, 3, 89, 0, 41]])
@pytest.mark.parametrize("states", [1, 63, 64, 65, 200])
def test_a_product_is_right_within_the_rounding_of_bfloat16(arithmetic, states, tokens):
    generator = torch.Generator().manual_seed(states)
    weight = torch.randn(90, 256, generator=generator).bfloat16()
    hidden = torch.randn(states, 256, generator=generator).bfloat16()
    tokens = torch.tensor(tokens)
    got = LMHead(weight).project(tokens, hidden)
    assert got.dtype == torch.bfloat16
    exact = weight[tokens].double() @ hidden.double().T
    torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=1e-2)


@settings(deadline=None, max_examples=40)
@given(
    tokens=st.one_of(st.integers(1, 8), st.integers(1, 70)),
    states=st.integers(1, 150),
    width=st.sampled_from([8, 100, 1024]),
    seed=st.integers(0, 2**31),
)
def test_equal_states_have_equal_columns(tokens, states, width, seed):
    generator = torch.Generator().manual_seed(seed)
    head = LMHead(torch.randn(tokens, width, generator=generator).bfloat16())
    one = torch.randn(1, width, generator=generator).bfloat16()
    others = torch.randn(states, width, generator=generator).bfloat16()
    at = torch.randint(states, (3,), generator=generator)
    others[at] = one
    logits = head.project(torch.arange(tokens), others)[:, at]
    assert torch.equal(logits, logits[:, :1].expand(-1, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_follows_the_product_is_applied_in_order(arithmetic, dtype):
    if dtype == torch.float16 and module.native(dtype, "cpu"):
        pytest.skip("PyTorch 2.0 multiplies no float16 on a CPU")
    generator = torch.Generator().manual_seed(0)
    weight, bias, states = (
        torch.randn(*size, generator=generator).to(dtype) for size in ((9, 4), (9,), (70, 4))
    )
    tokens = torch.tensor([8, 2, 5])
    got = LMHead(weight, bias, scale=2.0, softcap=1.5).project(tokens, states)
    product = weight[tokens].double() @ states.double().T + bias[tokens].double().unsqueeze(1)
    expected = 1.5 * torch.tanh(2 * product / 1.5)
    torch.testing.assert_close(got.double(), expected, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize(
    ("features", "has"),
    [
        ("fpu sse4_2 avx2 f16c", False),
        ("fpu avx2 avx512f avx512_bf16", True),
        ("fpu amx_bf16 amx_tile", True),
        ("fp asimd sve bf16", True),
        ("", False),
        (None, False),  # a system that does not tell
    ],
)
def test_a_processor_has_bfloat16_or_is_asked_for_float32(monkeypatch, features, has):
    def read_text(path):
        if features is None:
            raise FileNotFoundError(path)
        return features

    monkeypatch.setattr("pathlib.Path.read_text", read_text)
    ask = native.__wrapped__
    assert ask(torch.bfloat16, "cpu") is has
    assert not ask(torch.float16, "cpu")
    assert ask(torch.float32, "cpu") and ask(torch.float64, "cpu")
    assert ask(torch.bfloat16, "cuda") and ask(torch.float16, "cuda")


def test_the_processor_is_asked_about_the_head_s_dtype_and_device(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "native", lambda *about: asked.append(about) or True)
    ones = torch.ones(3, 2, dtype=torch.bfloat16)
    LMHead(ones).project(torch.arange(2), ones[:1])
    assert asked == [(torch.bfloat16, "cpu")]


def test_mixed_precision_is_left_out_on_devices_that_have_it():
    for device in ("cpu", "meta"):
        with torch.autocast("cpu", torch.bfloat16), without_autocast(torch.device(device)):
            dtype = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        assert dtype == (torch.float32 if device == "cpu" else torch.bfloat16)
