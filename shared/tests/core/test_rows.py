"""The step of a batch: each row as its formulas say it, whatever is kept and whatever PyTorch is
set to."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pytorch_settings import SETTINGS
from revisit.config import ReVisiTConfig
from revisit.core import columns
from revisit.core.columns import Cache
from revisit.core.head import LMHead
from revisit.core.rows import refine
from revisit.core.session import Session
from revisit.core.step import step

VOCABULARY, WIDTH = 80, 12
CONFIG = ReVisiTConfig(alpha=0.01)
CONFIGS = st.builds(
    ReVisiTConfig,
    alpha=st.sampled_from([0.0, 1e-5, 0.01, 0.3, 1.0]),
    divergence=st.sampled_from(["ag", "js"]),
    selection=st.sampled_from(["min", "max", "random"]),
)
POLICIES = st.sampled_from(["cpu", "gpu", "small"])
pytestmark = pytest.mark.filterwarnings("ignore:ReVisiT. cache_bytes")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def a_cache(budget=2**30, policy="cpu", dtype=torch.float32):
    """Of a random LM head; as on another device, or with small temporaries."""
    cache = Cache(LMHead(random(VOCABULARY, WIDTH).to(dtype)), budget)
    cache.on_cpu = policy != "gpu"
    if policy == "small":
        cache.block, cache.gathered = 2000, 300
    return cache


def a_session(tokens=30, config=CONFIG, cache=None, number=0):
    cache = cache or a_cache()
    states = random(tokens, WIDTH, seed=tokens + number).to(cache.head.dtype)
    return Session(states, cache, config, number)


def check(logits, sessions):
    """Each row of the batch is as the formulas of the step say it, for this row alone."""
    random_states = [each and each.generator.get_state() for each in sessions]
    refined, decided = refine(logits, sessions)
    assert refined.dtype == torch.float32 and len(decided) == len(sessions)
    for row, session in enumerate(sessions):
        got = decided[row]
        if session is None:
            assert got is None and torch.equal(refined[row], logits[row].float())
            continue
        head, states, config = session.columns.cache.head, session.columns.states, session.config
        alone = step(logits[row], states, head, config, torch.Generator())
        assert torch.equal(refined[row], got.scores)
        assert got.vocabulary.tolist() == alone.vocabulary.tolist()
        torch.testing.assert_close(got.distances, alone.distances, rtol=1e-4, atol=1e-5)
        if config.selection == "random":
            if sessions.count(session) == 1:
                generator = torch.Generator()
                generator.set_state(random_states[row])
                draw = torch.randint(len(states), (), generator=generator)
                assert int(got.choice) == int(draw)
        else:  # near-ties aside the same
            best = alone.distances[got.choice]
            torch.testing.assert_close(best, alone.divergence, rtol=1e-4, atol=2e-5)
        # The scores follow from the choice.
        log_q = head.project(alone.vocabulary, states)[:, got.choice].float().log_softmax(0)
        expected = torch.full_like(refined[row], -torch.inf)
        expected[alone.vocabulary] = logits[row].float()[alone.vocabulary].log_softmax(0) + log_q
        torch.testing.assert_close(refined[row], expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=150)
@given(
    data=st.data(),
    seed=st.integers(0, 2**31),
    policy=POLICIES,
    budget=st.sampled_from([0, 1500, 6000, 20_000, 2**30]),
)
def test_every_row_is_as_its_formulas_say_while_prompts_come_and_go(data, seed, policy, budget):
    """Rows of any settings, prompts of any number of vision states, shared by rows or not."""
    cache = a_cache(budget, policy)
    running = [None]
    with patch.object(columns, "_NARROWEST", 4 if policy == "small" else 128):
        for turn in range(5):
            if len(running) > 2 and data.draw(st.booleans()):
                running.pop(data.draw(st.integers(1, len(running) - 1))).close()
            for tokens in data.draw(st.lists(st.sampled_from([1, 20, 33, 300]), max_size=2)):
                running.append(a_session(tokens, data.draw(CONFIGS), cache, turn))
            rows = data.draw(st.lists(st.sampled_from(running), min_size=1, max_size=5))
            scale = data.draw(st.sampled_from([0.2, 1.0, 4.0, 20.0]))
            check(random(len(rows), VOCABULARY, seed=seed + turn) * scale, rows)
            assert 0 <= cache.left <= budget
    for session in running[1:]:
        session.close()
        session.close()
    assert cache.left == budget


def test_a_row_has_the_same_bits_whatever_its_neighbours_are():
    tokens, kinds = (7, 300, 40), ("min", "max", "min")
    configs = [ReVisiTConfig(alpha=0.01, selection=kind) for kind in kinds]
    cache = a_cache()
    together = [a_session(m, c, cache) for m, c in zip(tokens, configs, strict=True)]
    alone = [a_session(m, c) for m, c in zip(tokens, configs, strict=True)]
    for turn in range(3):
        logits = random(3, VOCABULARY, seed=turn) * 3
        refined, _ = refine(logits, together)
        for row, session in enumerate(alone):
            assert torch.equal(refine(logits[row : row + 1], [session])[0][0], refined[row])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [*SETTINGS, "all in turn"])
@pytest.mark.parametrize("dense", [False, True])
def test_what_pytorch_is_set_to_changes_no_bit(dense, name, dtype):
    states, logits = random(40, WIDTH).to(dtype), random(4, 2, VOCABULARY) * 3
    weight = random(VOCABULARY, WIDTH).to(dtype)

    def decide(contexts, weight):
        head = LMHead(weight)
        # Either both tables hold all tokens, or they fill up and something stays absent.
        cache = Cache(head, (2 * VOCABULARY if dense else 20) * 40 * weight.element_size())
        cache.on_cpu = not dense
        made = []
        for turn, some in enumerate(logits):
            with contexts[turn % len(contexts)]():
                if not turn:
                    sessions = [
                        Session(states, cache, ReVisiTConfig(alpha=alpha)) for alpha in (0.01, 0.3)
                    ]
                refined, steps = refine(some, sessions)
                made += [refined, *steps[0][1:], *steps[1][1:]]
                made += step(some[0], states, head, sessions[0].config)
        return made

    chosen = list(SETTINGS.values()) if name == "all in turn" else [SETTINGS[name]]
    expected = decide([nullcontext], weight)
    got = decide(chosen, weight.clone().requires_grad_())
    for tensor, plain in zip(got, expected, strict=True):
        assert torch.equal(tensor, plain)


def test_a_step_needs_no_gradient_and_its_scores_may_be_changed_anywhere():
    head = LMHead(random(VOCABULARY, WIDTH).requires_grad_())
    session = Session(random(9, WIDTH), Cache(head, 2**20), CONFIG)
    logits = random(1, VOCABULARY).requires_grad_()
    refined, _ = refine(logits, [session])
    assert not refined.requires_grad and not session.columns.table.requires_grad
    with torch.inference_mode():
        refine(logits * 2, [session])
    refined.add_(1)
    refine(logits * 3, [session])


def test_sessions_of_several_threads_do_not_interfere():
    logits = [random(1, VOCABULARY, seed=seed) * 3 for seed in range(8)]

    def decode(tokens):
        session = a_session(tokens)
        return torch.cat([refine(each, [session])[0] for each in logits])

    expected = [decode(tokens) for tokens in range(1, 9)]
    with ThreadPoolExecutor(4) as threads:
        for got, alone in zip(threads.map(decode, range(1, 9)), expected, strict=True):
            assert torch.equal(got, alone)


def test_scores_of_half_precision_are_refined_in_float32_and_stay_as_they_are():
    logits = random(2, VOCABULARY).to(torch.bfloat16)
    before = logits.clone()
    for sessions in ([a_session(), None], [None, None]):
        refined, _ = refine(logits, sessions)
        assert refined.dtype == torch.float32 and torch.equal(refined[1], logits[1].float())
        refined.zero_()
        refine(same := random(2, VOCABULARY), sessions)[0].zero_()
        assert torch.equal(same, random(2, VOCABULARY))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_head_of_another_dtype_is_used_in_it(dtype):
    cache = a_cache(3000, dtype=dtype)
    sessions = [a_session(tokens, cache=cache) for tokens in (9, 40)]
    assert all(session.columns.table.dtype == dtype for session in sessions)
    for turn in range(3):
        check(random(2, VOCABULARY, seed=turn) * 3, sessions)


def test_a_certain_token_is_not_projected_and_a_random_choice_is_drawn_all_the_same():
    certain, open_ = torch.eye(VOCABULARY)[7:8] * 100, torch.zeros(1, VOCABULARY)
    session = a_session()
    _, (decided,) = refine(certain, [session])
    assert decided.vocabulary.tolist() == [7] and decided.scores.argmax() == 7
    assert decided.scores.isneginf().sum() == VOCABULARY - 1 and float(decided.scores[7]) == 0
    assert int(decided.choice) == 0 and decided.distances.tolist() == [0] * 30
    assert not session.columns.held
    session = a_session(config=ReVisiTConfig(alpha=0.01, selection="random"))
    generator = torch.Generator().set_state(session.generator.get_state())
    for logits in (certain, certain, open_):
        _, (decided,) = refine(logits, [session])
        assert int(decided.choice) == int(torch.randint(30, (), generator=generator))


def test_nothing_runs_where_a_row_cannot_be_decoded():
    good, closed = a_session(), a_session(tokens=3)
    logits = random(2, VOCABULARY)
    logits[1, 3] = torch.nan
    refine(logits, [good, None])
    held = good.columns.held
    for value, message in ((torch.nan, "hold NaN"), (-torch.inf, "-inf for every token")):
        logits[0] += 1
        logits[1] = value
        with pytest.raises(ValueError, match=message):
            refine(logits, [good, closed])
    assert good.columns.held == held
    with pytest.raises(ValueError):
        refine(logits, [None])
    closed.close()
    with pytest.raises(ValueError, match=r"^the session of this prompt is closed$"):
        refine(random(1, VOCABULARY), [closed])


class Largest(TorchDispatchMode):
    """The most entries of a tensor that is made."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not function.is_view:
            self.entries = max(self.entries, result.numel())
        return result


@pytest.mark.parametrize("alpha", [0.0, 1e-4])
def test_no_tensor_has_the_size_of_vision_states_times_vocabulary(alpha):
    vocabulary, tokens = 3000, 1500
    head = LMHead(random(vocabulary, WIDTH))
    cache = Cache(head, 40 * tokens * 4)
    session = Session(random(tokens, WIDTH), cache, ReVisiTConfig(alpha=alpha))
    with Largest() as largest:
        _, (decided,) = refine(random(1, vocabulary) * 4, [session])
    assert decided.vocabulary.shape[0] > 40
    assert largest.entries <= max(vocabulary * 128, 40 * tokens) < vocabulary * tokens / 10
