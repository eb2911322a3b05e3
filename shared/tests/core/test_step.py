"""The step against the published cases and against the textbook in float64."""

import json
import math
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import dense
from revisit.config import ReVisiTConfig
from revisit.core import columns
from revisit.core.columns import Cache
from revisit.core.head import LMHead
from revisit.core.rows import refine
from revisit.core.session import Session
from revisit.core.step import constrain, divergence, select, step

GOLDEN = json.loads((Path(__file__).parent / "golden" / "step.json").read_text())
pytestmark = pytest.mark.filterwarnings("ignore:ReVisiT. cache_bytes")


def plain(logits, session):
    """The step as its formulas say it."""
    columns = session.columns
    return step(logits, columns.states, columns.cache.head, session.config, session.generator)


def fast(logits, session):
    """The step as a batch of one row."""
    refined, (decided,) = refine(logits.unsqueeze(0), [session])
    assert torch.equal(refined[0], decided.scores)
    return decided


def dense_table(logits, session):
    """The step with a table of the whole vocabulary, as on a GPU where it is small."""
    session.columns.cache.on_cpu = False
    return fast(logits, session)


def in_small_blocks(logits, session, narrowest=3):
    """The step with temporaries of a kilobyte."""
    session.columns.cache.block, session.columns.cache.gathered = 1000, 300
    with patch.object(columns, "_NARROWEST", narrowest):
        return fast(logits, session)


def in_registers(logits, session):
    """The step in blocks of 32 vision states: products of equal states are rounded alike."""
    return in_small_blocks(logits, session, narrowest=32)


PATHS = [plain, fast, dense_table, in_small_blocks]
ON_EVERY_PATH = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)


def make(states, head, **config):
    """A prompt's session; no other shares its budget."""
    cache = Cache(LMHead(torch.as_tensor(head)), 2**30)
    return Session(torch.as_tensor(states), cache, ReVisiTConfig(**config))


@pytest.mark.parametrize("case", range(len(GOLDEN)))
@pytest.mark.parametrize("kind", ["ag", "js"])
@ON_EVERY_PATH
def test_published_steps_are_reproduced(path, case, kind):
    golden = GOLDEN[case]
    logits, setting = torch.tensor(golden["logits"]), {"alpha": golden["alpha"], "divergence": kind}
    result = path(logits, make(golden["vision_states"], golden["lm_head"], **setting))
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


@ON_EVERY_PATH
@settings(deadline=None, max_examples=150)
@given(problem=problems(), alpha=ALPHAS, kind=KINDS)
def test_step_equals_the_textbook_in_float64(path, problem, alpha, kind):
    logits, states, head = problem
    result = path(logits, make(states, head, alpha=alpha, divergence=kind))
    agrees(result, logits, states, head, alpha, kind, 1e-4)


@ON_EVERY_PATH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@settings(deadline=None, max_examples=60)
@given(data=st.data(), alpha=ALPHAS, kind=KINDS)
def test_half_precision_inputs_give_the_textbook_within_their_rounding(
    path, dtype, data, alpha, kind
):
    logits, states, head = data.draw(problems(dtype))
    result = path(logits, make(states, head, alpha=alpha, divergence=kind))
    # The product is rounded to the model's dtype; the textbook takes over from the rounded product.
    product = (head.float() @ states.float().T).to(dtype)
    one_hot = torch.eye(states.shape[0])
    agrees(result, logits, one_hot, product, alpha, kind, 2e-2 if dtype == torch.bfloat16 else 3e-3)


@pytest.mark.parametrize("path", [plain, fast, dense_table, in_registers])
@settings(deadline=None, max_examples=100)
@given(problem=problems(), alpha=ALPHAS, kind=KINDS, copies=st.integers(2, 12))
def test_the_first_of_equal_vision_tokens_is_chosen(path, problem, alpha, kind, copies):
    logits, states, head = problem
    assume(logits.abs().max() < 30)  # beyond, float32 rounds a divergence by more than a tie
    repeated = states.repeat(copies, 1)
    result = path(logits, make(repeated, head, alpha=alpha, divergence=kind))
    assert int(result.choice) < states.shape[0]


@ON_EVERY_PATH
def test_one_candidate_chooses_the_first_vision_token_and_keeps_the_token(path):
    logits = torch.tensor([0.0, 9.0, 0.0])
    result = path(logits, make(torch.randn(4, 2), torch.randn(3, 2), alpha=1))
    assert result.vocabulary.tolist() == [1]
    assert int(result.choice) == 0
    assert result.scores.tolist() == [-math.inf, 0.0, -math.inf]


def test_alpha_one_keeps_every_token_tied_with_the_likeliest():
    assert constrain(torch.tensor([2.0, 3.0, 3.0, 1.0]), 1.0).tolist() == [1, 2]


@given(problems(), ALPHAS, st.floats(-50, 50))
def test_the_vocabulary_does_not_depend_on_a_constant_in_the_logits(problem, alpha, constant):
    logits = problem[0].double()
    assert constrain(logits, alpha).tolist() == constrain(logits + round(constant), alpha).tolist()


@ON_EVERY_PATH
def test_impossible_tokens_are_left_out_and_cause_no_nan(path):
    logits = torch.tensor([1.0, -math.inf, 0.5, -math.inf])
    states, head = torch.randn(6, 3), torch.randn(4, 3)
    below = path(logits, make(states, head, alpha=1e-5))
    assert below.vocabulary.tolist() == [0, 2]
    for kind in ("ag", "js"):
        whole = path(logits, make(states, head, alpha=0, divergence=kind))
        assert whole.vocabulary.tolist() == [0, 1, 2, 3]
        assert not whole.scores.isnan().any()
        assert whole.scores.isneginf().tolist() == [False, True, False, True]


@pytest.mark.parametrize("kind", ["ag", "js"])
@pytest.mark.parametrize("size", [1e4, 1e30])
@ON_EVERY_PATH
def test_very_large_logits_stay_finite_where_they_are_possible(path, kind, size):
    logits = torch.tensor([size, 0.0, -size, size])
    states, head = torch.randn(6, 3), torch.randn(4, 3)
    for alpha in (0.0, 1e-5):
        result = path(logits, make(states, head, alpha=alpha, divergence=kind))
        assert not result.scores.isnan().any()
        assert int(result.scores.argmax()) in (0, 3)


@pytest.mark.parametrize("kind", ["ag", "js"])
@pytest.mark.parametrize("alpha", [0.0, 1e-5, 1.0])
@pytest.mark.parametrize("certain", [[3], [3, 8]])
@ON_EVERY_PATH
def test_tokens_with_an_infinite_logit_share_the_certainty(path, certain, alpha, kind):
    logits = torch.randn(12)
    logits[certain] = math.inf
    setting = {"alpha": alpha, "divergence": kind}
    scores = path(logits, make(torch.randn(7, 5), torch.randn(12, 5), **setting)).scores
    assert not scores.isnan().any()
    assert sorted(scores.topk(len(certain)).indices.tolist()) == certain
    assert float(scores.softmax(0)[certain].sum()) == pytest.approx(1)


@pytest.mark.parametrize("alpha", [0, 1e-5, 1])
@pytest.mark.parametrize(
    ("logits", "message"),
    [
        ([math.nan] * 4, "^the model.s logits hold NaN"),
        ([0.0, math.nan, 1.0, 2.0], "^the model.s logits hold NaN"),
        ([-math.inf] * 4, "^the model.s logits are -inf for every token"),
    ],
)
@ON_EVERY_PATH
def test_logits_from_which_no_token_can_be_chosen_are_refused(path, logits, message, alpha):
    with pytest.raises(ValueError, match=message):
        path(torch.tensor(logits), make(torch.randn(2, 3), torch.randn(4, 3), alpha=alpha))


@ON_EVERY_PATH
def test_max_takes_the_farthest_and_random_repeats_with_its_seed(path):
    generator = torch.Generator().manual_seed(5)
    logits, states = torch.randn(30, generator=generator), torch.randn(20, 4, generator=generator)
    head = torch.randn(30, 4, generator=generator)
    nearest = path(logits, make(states, head, alpha=0.01))
    farthest = path(logits, make(states, head, alpha=0.01, selection="max"))
    assert float(farthest.divergence) > float(nearest.divergence)
    setting = {"alpha": 0.01, "selection": "random"}
    draws = [
        [int(path(logits, make(states, head, seed=seed, **setting)).choice) for seed in range(8)]
        for _ in range(2)
    ]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) > 1


def test_each_row_of_a_selection_has_its_own_choice():
    near = 0.3 * (1 + 5e-7)  # as the same divergence may be rounded elsewhere
    distances = torch.tensor([[0.2, near, 0.3, 0.1, 0.1], [0.1, 0.2, 0.2, 0.05, 0.1]])
    assert select(distances, "min").tolist() == [3, 3]
    assert select(distances, "max").tolist() == [1, 1]
    assert select(distances[:, [2, 1, 0]], "max").tolist() == [0, 0]
    assert select(torch.tensor([0.5, 0.1, 0.4]), "max") == 0
    assert select(torch.tensor([0.1, 0.5, 0.4]), "max") == 1
    drawn = select(distances, "random", torch.Generator().manual_seed(0))
    assert drawn.shape == (2,)


@given(problems(), KINDS)
def test_divergences_are_zero_at_equality_and_never_negative(problem, kind):
    logits, states, head = problem
    log_q = (states @ head.T).T.log_softmax(0)
    assert float(divergence(log_q[:, 0], log_q, kind)[0]) == pytest.approx(0, abs=1e-5)
    assert (divergence(logits.log_softmax(0), log_q, kind) >= -1e-5).all()


def test_the_vocabulary_is_where_the_logits_are():
    assert constrain(torch.empty(5, device="meta"), 0.0).device.type == "meta"
