"""The step against the published cases and against the textbook in float64."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dense
from revisit.columns import Columns, LMHead
from revisit.config import ReVisiTConfig
from revisit.step import constrain, divergence, step

GOLDEN = json.loads((Path(__file__).parent / "golden" / "step.json").read_text())
BIG = 2**30


def make(logits, states, head, budget=BIG, bias=None):
    head = LMHead(torch.as_tensor(head), bias)
    return torch.as_tensor(logits), Columns(torch.as_tensor(states), head, budget)


@pytest.mark.parametrize("case", range(len(GOLDEN)))
@pytest.mark.parametrize("kind", ["ag", "js"])
def test_published_steps_are_reproduced(case, kind):
    golden = GOLDEN[case]
    logits, columns = make(golden["logits"], golden["vision_states"], golden["lm_head"])
    result = step(logits, columns, ReVisiTConfig(alpha=golden["alpha"], divergence=kind))
    assert result.vocabulary.tolist() == golden["vocabulary"]
    assert int(result.choice) == golden[f"selected_{kind}"]
    expected = golden[kind][golden[f"selected_{kind}"]]
    assert float(result.divergence) == pytest.approx(expected, abs=1e-5)
    if kind == "ag":
        refined = result.scores[result.vocabulary].tolist()
        assert refined == pytest.approx(golden["refined_on_vocabulary_ag"], abs=1e-4)
    outside = torch.ones_like(logits, dtype=torch.bool)
    outside[result.vocabulary] = False
    assert result.scores[outside].isneginf().all()


@st.composite
def problems(draw, dtype=torch.float32):
    """Logits, states and head of any shape and scale."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    vocabulary, width = draw(st.integers(1, 60)), draw(st.integers(1, 24))
    tokens = draw(st.integers(1, 40))
    scale = draw(st.sampled_from([0.1, 1.0, 6.0, 40.0]))
    logits = torch.randn(vocabulary, generator=generator) * scale
    states = torch.randn(tokens, width, generator=generator) * draw(st.sampled_from([0.3, 2.0]))
    head = torch.randn(vocabulary, width, generator=generator)
    return logits.to(dtype), states.to(dtype), head.to(dtype)


ALPHAS = st.sampled_from([0.0, 1e-5, 1e-3, 0.1, 0.5, 1.0])
KINDS = st.sampled_from(["ag", "js"])


def agrees(result, logits, states, head, alpha, kind, tolerance):
    """The step chose a minimum of the textbook's divergences and refined with it."""
    as64 = [tensor.double().numpy() for tensor in (logits, states, head)]
    vocabulary, distances, refined = dense.step(*as64, alpha, kind)
    assert result.vocabulary.tolist() == vocabulary.tolist()
    choice = int(result.choice)
    scale = max(1.0, float(np.abs(distances).max()))
    assert distances[choice] <= distances.min() + tolerance * scale
    got = result.scores[result.vocabulary].double().numpy()
    np.testing.assert_allclose(got, refined[:, choice], rtol=tolerance, atol=20 * tolerance)


@settings(deadline=None, max_examples=150)
@given(problems(), ALPHAS, KINDS)
def test_step_equals_the_textbook_in_float64(problem, alpha, kind):
    logits, states, head = problem
    _, columns = make(*problem)
    result = step(logits, columns, ReVisiTConfig(alpha=alpha, divergence=kind))
    agrees(result, logits, states, head, alpha, kind, 1e-4)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([torch.float16, torch.bfloat16]), st.data(), ALPHAS, KINDS)
def test_half_precision_inputs_give_the_textbook_within_their_rounding(dtype, data, alpha, kind):
    logits, states, head = data.draw(problems(dtype))
    _, columns = make(logits, states, head)
    result = step(logits, columns, ReVisiTConfig(alpha=alpha, divergence=kind))
    # The product is rounded to the model's dtype; the textbook takes over from the rounded product.
    product = (head.float() @ states.float().T).to(dtype)
    one_hot = torch.eye(states.shape[0])
    agrees(result, logits, one_hot, product, alpha, kind, 2e-2 if dtype == torch.bfloat16 else 3e-3)


@settings(deadline=None, max_examples=60)
@given(problems(), ALPHAS, KINDS, st.integers(0, 4000))
def test_a_cache_of_any_budget_filled_by_other_steps_gives_the_same_result(
    problem, alpha, kind, budget
):
    logits, states, head = problem
    config = ReVisiTConfig(alpha=alpha, divergence=kind)
    _, fresh = make(*problem)
    expected = step(logits, fresh, config)
    _, used = make(*problem, budget=budget)
    for shift in range(3):
        step(logits.roll(shift + 1), used, config)
    result = step(logits, used, config)
    assert used.table.numel() * used.table.element_size() <= budget
    assert result.vocabulary.tolist() == expected.vocabulary.tolist()
    assert float(result.divergence) == pytest.approx(float(expected.divergence), rel=1e-4, abs=1e-5)
    agrees(result, logits, states, head, alpha, kind, 1e-4)


def test_blocks_over_vision_tokens_give_the_same_result_as_one(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    logits, states = torch.randn(50, generator=generator), torch.randn(33, 8, generator=generator)
    head = torch.randn(50, 8, generator=generator)
    config = ReVisiTConfig(alpha=0)
    whole = step(logits, make(logits, states, head)[1], config)
    monkeypatch.setitem(step.__globals__["_BLOCK_BYTES"], "cpu", 1000)
    blocked = step(logits, make(logits, states, head)[1], config)
    assert int(blocked.choice) == int(whole.choice)
    torch.testing.assert_close(blocked.scores, whole.scores)


def test_no_column_is_computed_twice_below_the_budget(monkeypatch):
    computed = []
    project = Columns._project

    def record(self, vocabulary, tokens, out=None):
        computed.extend(vocabulary.tolist())
        return project(self, vocabulary, tokens, out)

    monkeypatch.setattr(Columns, "_project", record)
    generator = torch.Generator().manual_seed(0)
    states, head = torch.randn(5, 8, generator=generator), torch.randn(40, 8, generator=generator)
    _, columns = make(torch.zeros(40), states, head)
    for _ in range(20):
        step(torch.randn(40, generator=generator) * 3, columns, ReVisiTConfig(alpha=0.01))
    assert sorted(computed) == sorted(set(computed))


def test_a_full_cache_drops_what_was_not_used_for_longest(monkeypatch):
    computed = []
    project = Columns._project

    def record(self, vocabulary, tokens, out=None):
        computed.append(vocabulary.tolist())
        return project(self, vocabulary, tokens, out)

    monkeypatch.setattr(Columns, "_project", record)
    head = LMHead(torch.randn(30, 2))
    columns = Columns(torch.randn(3, 2), head, budget=10 * 3 * 4)
    for vocabulary in ([0, 1, 2, 3], [4, 5, 6], [0, 1, 7], [0, 1, 8, 9, 10], [0, 1, 7, 9]):
        columns.keep(torch.tensor(vocabulary))
    assert computed == [[0, 1, 2, 3], [4, 5, 6], [7], [8, 9, 10]]
    words = torch.tensor([0, 1, 7, 9])
    expected = head.weight[words] @ columns.states.T
    for slots in (columns.keep(words), None):
        torch.testing.assert_close(columns(words, slots, slice(None)), expected)
        torch.testing.assert_close(columns(words, slots, torch.tensor([2, 0])), expected[:, [2, 0]])
    assert columns.keep(torch.arange(11)) is None


@settings(deadline=None, max_examples=100)
@given(problems(), ALPHAS, KINDS, st.integers(2, 5))
def test_the_first_of_equal_vision_tokens_is_chosen(problem, alpha, kind, copies):
    logits, states, head = problem
    repeated = states.repeat(copies, 1)
    config = ReVisiTConfig(alpha=alpha, divergence=kind)
    result = step(logits, make(logits, repeated, head)[1], config)
    assert int(result.choice) < states.shape[0]


def test_one_candidate_chooses_the_first_vision_token_and_keeps_the_token():
    logits = torch.tensor([0.0, 9.0, 0.0])
    result = step(
        logits, make(logits, torch.randn(4, 2), torch.randn(3, 2))[1], ReVisiTConfig(alpha=1)
    )
    assert result.vocabulary.tolist() == [1]
    assert int(result.choice) == 0
    assert result.scores.tolist() == [-math.inf, 0.0, -math.inf]


def test_alpha_one_keeps_every_token_tied_with_the_likeliest():
    assert constrain(torch.tensor([2.0, 3.0, 3.0, 1.0]), 1.0).tolist() == [1, 2]


@given(problems(), ALPHAS, st.floats(-50, 50))
def test_the_vocabulary_does_not_depend_on_a_constant_in_the_logits(problem, alpha, constant):
    logits = problem[0].double()
    assert constrain(logits, alpha).tolist() == constrain(logits + round(constant), alpha).tolist()


def test_impossible_tokens_are_left_out_and_cause_no_nan():
    logits = torch.tensor([1.0, -math.inf, 0.5, -math.inf])
    states, head = torch.randn(6, 3), torch.randn(4, 3)
    below = step(logits, make(logits, states, head)[1], ReVisiTConfig(alpha=1e-5))
    assert below.vocabulary.tolist() == [0, 2]
    for kind in ("ag", "js"):
        whole = step(logits, make(logits, states, head)[1], ReVisiTConfig(alpha=0, divergence=kind))
        assert whole.vocabulary.tolist() == [0, 1, 2, 3]
        assert not whole.scores.isnan().any()
        assert whole.scores.isneginf().tolist() == [False, True, False, True]


@pytest.mark.parametrize("kind", ["ag", "js"])
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_very_large_logits_stay_finite_where_they_are_possible(kind, size):
    logits = torch.tensor([size, 0.0, -size, size])
    states, head = torch.randn(6, 3), torch.randn(4, 3)
    for alpha in (0.0, 1e-5):
        config = ReVisiTConfig(alpha=alpha, divergence=kind)
        result = step(logits, make(logits, states, head)[1], config)
        assert not result.scores.isnan().any()
        assert int(result.scores.argmax()) in (0, 3)


def test_nan_logits_are_refused():
    logits = torch.full((4,), math.nan)
    with pytest.raises(ValueError, match="NaN"):
        step(logits, make(logits, torch.randn(2, 3), torch.randn(4, 3))[1], ReVisiTConfig())


def test_states_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"shape \(M, 3\)"):
        make(torch.zeros(4), torch.randn(2, 5), torch.randn(4, 3))


def test_a_bias_of_the_head_is_part_of_the_projection():
    logits, states, head = torch.randn(5), torch.randn(3, 2), torch.randn(5, 2)
    bias = torch.randn(5)
    with_bias = step(logits, make(logits, states, head, bias=bias)[1], ReVisiTConfig(alpha=0))
    ones = torch.cat([states, torch.ones(3, 1)], 1)
    folded = make(logits, ones, torch.cat([head, bias.unsqueeze(1)], 1))[1]
    torch.testing.assert_close(
        with_bias.scores, step(logits, folded, ReVisiTConfig(alpha=0)).scores
    )


def test_max_takes_the_farthest_and_random_repeats_with_its_seed():
    generator = torch.Generator().manual_seed(5)
    logits, states = torch.randn(30, generator=generator), torch.randn(20, 4, generator=generator)
    problem = (logits, states, torch.randn(30, 4, generator=generator))
    nearest = step(logits, make(*problem)[1], ReVisiTConfig(alpha=0.01))
    farthest = step(logits, make(*problem)[1], ReVisiTConfig(alpha=0.01, selection="max"))
    assert float(farthest.divergence) > float(nearest.divergence)
    config = ReVisiTConfig(alpha=0.01, selection="random")
    draws = [
        [int(step(logits, make(*problem)[1], config, own).choice) for _ in range(8)]
        for own in (torch.Generator().manual_seed(7), torch.Generator().manual_seed(7))
    ]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) > 1


@given(problems(), KINDS)
def test_divergences_are_zero_at_equality_and_never_negative(problem, kind):
    logits, states, head = problem
    log_q = (states @ head.T).T.log_softmax(0)
    assert float(divergence(log_q[:, 0], log_q, kind)[0]) == pytest.approx(0, abs=1e-5)
    assert (divergence(logits.log_softmax(0), log_q, kind) >= -1e-5).all()
