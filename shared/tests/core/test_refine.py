"""The step of a batch: rows on their own, no waiting for a GPU, no large temporary."""

from collections import Counter
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import dense
from revisit.config import ReVisiTConfig
from revisit.core.batch import refine
from revisit.core.columns import CPU, Pool
from revisit.core.head import LMHead
from revisit.core.session import Session
from revisit.core.step import divergence, step
from test_step import BIG, ON_A_GPU, SMALL

VOCABULARY, WIDTH = 80, 12
SIZES = pytest.mark.parametrize("sizes", [CPU, ON_A_GPU, SMALL], ids=["cpu", "gpu", "small blocks"])


def configs():
    return st.builds(
        ReVisiTConfig,
        alpha=st.sampled_from([0.0, 1e-40, 1e-5, 0.01, 0.3, 1.0]),
        divergence=st.sampled_from(["ag", "js"]),
        selection=st.sampled_from(["min", "max", "random"]),
    )


@st.composite
def generations(draw):
    """An LM head, a budget, the prompts in it, and for each step: which prompts have which rows."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    head = LMHead(torch.randn(VOCABULARY, WIDTH, generator=generator))
    prompts = [
        (torch.randn(tokens, WIDTH, generator=generator), config)
        for tokens, config in draw(
            st.lists(st.tuples(st.sampled_from([1, 20, 33, 70]), configs()), min_size=1, max_size=5)
        )
    ]
    steps = []
    for rows in draw(st.lists(st.lists(st.integers(-1, len(prompts) - 1), max_size=6), max_size=5)):
        scale = torch.tensor([0.2, 4.0, 1.0, 9.0, 0.5, 2.0])[: len(rows)].unsqueeze(1)
        steps.append((rows, torch.randn(len(rows), VOCABULARY, generator=generator) * scale))
    return head, prompts, steps


@SIZES
@settings(deadline=None, max_examples=250)
@given(
    generation=generations(),
    budget=st.sampled_from([0, 500, 1500, 6000, BIG]),
    leaves=st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_every_row_is_refined_as_if_it_were_alone(sizes, generation, budget, leaves):
    """Prompts come and go between the steps, with settings of their own, in a pool of any size."""
    head, prompts, steps = generation
    pool = Pool(head, budget, sizes)
    open_ones = {}
    for (rows, logits), leave in zip(steps, leaves, strict=False):
        if leave and open_ones:
            open_ones.pop(min(open_ones)).close()
        for prompt in rows:
            if prompt >= 0 and prompt not in open_ones:
                states, config = prompts[prompt]
                open_ones[prompt] = Session(states, pool, config, prompt)
        sessions = [open_ones.get(prompt) for prompt in rows]
        refined, decided = refine(logits, sessions)
        assert refined.shape == logits.shape
        kept = sum(session.columns.held * session.columns.size for session in open_ones.values())
        assert kept * sizes.grain * 4 <= budget
        for row, session in enumerate(sessions):
            if session is None:
                assert decided[row] is None
                assert torch.equal(refined[row], logits[row])
            else:
                agrees(decided[row], refined[row], logits[row], head, session)


def agrees(decided, refined, logits, head, session):
    """The step chose as the textbook does in float64, near-ties aside, and refined with that."""
    config, states = session.config, session.columns.states
    alone = step(logits, states, head, config, torch.Generator())
    as64 = [tensor.double().numpy() for tensor in (logits, states, head.weight)]
    vocabulary, distances, scores = dense.step(*as64, config.alpha, config.divergence)
    assert decided.vocabulary.tolist() == alone.vocabulary.tolist() == vocabulary.tolist()
    torch.testing.assert_close(decided.distances, alone.distances, rtol=1e-4, atol=1e-5)
    choice = int(decided.choice)
    if config.selection != "random":
        best = distances.min() if config.selection == "min" else distances.max()
        assert distances[choice] == pytest.approx(best, rel=1e-4, abs=2e-5)
    expected = torch.full((VOCABULARY,), -torch.inf)
    expected[decided.vocabulary] = torch.from_numpy(scores[:, choice]).float()
    torch.testing.assert_close(refined, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(refined, decided.scores)


def open_sessions(count, sizes=ON_A_GPU, budget=BIG, tokens=(30,), vocabulary=VOCABULARY, **config):
    """So many sessions of one pool, with vision states in turn as many as `tokens` says."""
    generator = torch.Generator().manual_seed(1)
    pool = Pool(LMHead(torch.randn(vocabulary, WIDTH, generator=generator)), budget, sizes)
    given = ReVisiTConfig(**{"alpha": 0.01, **config})
    return [
        Session(
            torch.randn(tokens[number % len(tokens)], WIDTH, generator=generator), pool, given, number
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("selection", ["min", "max", "random"])
def test_a_row_is_chosen_for_as_without_its_neighbours(selection):
    together = open_sessions(6, CPU, tokens=(5, 70, 33), selection=selection)
    alone = open_sessions(6, CPU, tokens=(5, 70, 33), selection=selection)
    generator = torch.Generator().manual_seed(9)
    for _ in range(4):
        logits = torch.randn(6, VOCABULARY, generator=generator) * 4
        _, steps = refine(logits, together)
        for row in range(6):
            _, (one,) = refine(logits[row : row + 1], alone[row : row + 1])
            assert int(steps[row].choice) == int(one.choice)
            assert steps[row].distances.shape == one.distances.shape


def test_scores_of_half_precision_are_refined_in_float32():
    (session,) = open_sessions(1)
    logits = torch.randn(2, VOCABULARY).to(torch.bfloat16)
    refined, _ = refine(logits, [session, None])
    assert refined.dtype == torch.float32
    assert torch.equal(refined[1], logits[1].float())
    same, _ = refine(logits, [None, None])
    assert torch.equal(same, logits.float())


def test_scores_given_are_not_written():
    (session,) = open_sessions(1)
    logits = torch.randn(2, VOCABULARY)
    before = logits.clone()
    for sessions in ([session, None], [None, None], [session, session]):
        refined, _ = refine(logits, sessions)
        refined.zero_()
    assert torch.equal(logits, before)


def test_a_result_is_not_written_by_the_next_step():
    (session,) = open_sessions(1)
    refined, (decided,) = refine(torch.randn(1, VOCABULARY), [session])
    before = [refined.clone(), decided.vocabulary.clone(), decided.distances.clone()]
    refine(torch.randn(1, VOCABULARY), [session])
    assert torch.equal(refined, before[0])
    assert torch.equal(decided.vocabulary, before[1])
    assert torch.equal(decided.distances, before[2])


def test_no_gradient_is_recorded():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(9, 4, generator=generator, requires_grad=True)
    states = torch.randn(5, 4, generator=generator, requires_grad=True)
    session = Session(states, Pool(LMHead(weight), 200), ReVisiTConfig(alpha=0))
    refined, _ = refine(torch.randn(1, 9, requires_grad=True), [session])
    assert not refined.requires_grad


@pytest.mark.parametrize("first, then", [(True, False), (False, True)])
def test_a_generation_may_begin_in_inference_mode_and_end_outside(first, then):
    generator = torch.Generator().manual_seed(1)
    for inference in (first, then):
        with torch.inference_mode(inference):
            if inference == first:
                sessions = open_sessions(2, budget=3000)
            refine(torch.randn(2, VOCABULARY, generator=generator) * 4, sessions)
    sessions[0].close()


def test_nan_in_one_row_is_refused_and_in_a_row_without_vision_tokens_it_is_not():
    sessions = open_sessions(2)
    logits = torch.randn(2, VOCABULARY)
    logits[1, 3] = torch.nan
    refine(logits, [sessions[0], None])
    with pytest.raises(ValueError, match="NaN"):
        refine(logits, sessions)


def test_a_session_that_is_closed_or_of_another_pool_is_refused():
    first, second = open_sessions(2)
    (other,) = open_sessions(1)
    with pytest.raises(ValueError, match="open, and be of one pool"):
        refine(torch.randn(2, VOCABULARY), [first, other])
    refine(torch.randn(2, VOCABULARY), [first, second])
    second.close()
    with pytest.raises(ValueError, match="open, and be of one pool"):
        refine(torch.randn(2, VOCABULARY), [first, second])


class Watched(TorchDispatchMode):
    """Counts what a GPU would have to be waited for, what it runs, and the largest tensor made."""

    # Those that run nothing on a device.
    VIEWS = (
        *("view", "slice", "select", "unsqueeze", "squeeze", "split", "expand", "alias", "detach"),
        *("unbind", "unfold", "empty", "new_empty"),
    )
    DATA_DEPENDENT = ("nonzero", "masked_select", "unique", "_local_scalar_dense", "equal")

    def __init__(self):
        super().__init__()
        self.waits = Counter()
        self.largest = 0
        self.entries = 0
        self.operators = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name.startswith(self.DATA_DEPENDENT):
            self.waits[name] += 1
        if name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            self.waits[name] += 1
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not name.startswith(self.VIEWS):
            self.largest = max(self.largest, result.numel())
            self.entries += result.numel()
            self.operators += 1
        return result

    def __enter__(self):
        self.patches = [
            patch.object(torch.Tensor, name, self.counting(name, getattr(torch.Tensor, name)))
            for name in ("tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")
        ]
        for each in self.patches:
            each.start()
        return super().__enter__()

    def __exit__(self, *error):
        for each in self.patches:
            each.stop()
        return super().__exit__(*error)

    def counting(self, name, method):
        def counted(*arguments, **keywords):
            self.waits[name] += 1
            return method(*arguments, **keywords)

        return counted


def watched(logits, sessions):
    with Watched() as watch:
        refine(logits, sessions)
    return watch


@pytest.mark.parametrize("rows, beams", [(1, 1), (8, 1), (2, 3)])
@pytest.mark.parametrize("budget", [BIG, 40 * 32 * 4])
@pytest.mark.parametrize("sizes", [ON_A_GPU, SMALL])
def test_a_step_waits_for_a_gpu_once(rows, beams, budget, sizes):
    sessions = [each for each in open_sessions(rows, sizes, budget) for _ in range(beams)]
    generator = torch.Generator().manual_seed(2)
    for _ in range(6):  # new words in every step
        logits = torch.randn(rows * beams, VOCABULARY, generator=generator) * 4
        assert watched(logits, sessions).waits == {"tolist": 1}
        assert watched(logits, sessions).waits == {"tolist": 1}
    with Watched() as watch:  # a trace reads nothing either
        _, steps = refine(logits, sessions)
        [(one.choice, one.divergence, one.scores.argmax()) for one in steps]
    assert watch.waits == {"tolist": 1}


def test_what_waits_for_a_gpu_is_noticed():
    mask = torch.tensor([True, False])
    with Watched() as watch:
        mask.nonzero()
        torch.arange(2)[mask]
        bool(mask.any())
        mask.sum().item()
    assert watch.waits["nonzero"] and watch.waits["index"] and watch.waits["__bool__"]
    assert watch.waits["_local_scalar_dense"]


@pytest.mark.parametrize("kind", ["ag", "js"])
@pytest.mark.parametrize("sizes", [ON_A_GPU, CPU], ids=["gpu", "cpu"])
def test_a_step_takes_as_many_operators_for_many_ragged_rows_as_for_few(sizes, kind):
    operators = {}
    for rows in (1, 2, 8, 32, 64):
        sessions = open_sessions(rows, sizes, tokens=(40, 33, 64, 50), divergence=kind)
        logits = torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(3)) * 4
        _, steps = refine(logits, sessions)
        assert rows == 1 or len({len(one.vocabulary) for one in steps}) > 1
        operators[rows] = watched(logits, sessions).operators
    assert operators[2] == operators[8] == operators[32] == operators[64] <= 60
    assert operators[1] <= operators[2]  # a single row has nothing to fill up


def test_rows_with_other_settings_cost_operators_for_each_kind_and_not_for_each_row():
    operators = []
    for copies in (2, 8):
        generator = torch.Generator().manual_seed(1)
        pool = Pool(LMHead(torch.randn(VOCABULARY, WIDTH, generator=generator)), BIG, ON_A_GPU)
        sessions = [
            Session(torch.randn(tokens, WIDTH, generator=generator), pool, config)
            for _ in range(copies)
            for tokens, config in (
                (20, ReVisiTConfig(alpha=0.1)),
                (33, ReVisiTConfig(alpha=0.01)),
                (20, ReVisiTConfig(alpha=0.02, divergence="js")),
                (9, ReVisiTConfig(alpha=0.02, selection="max")),
            )
        ]
        logits = torch.randn(4 * copies, VOCABULARY, generator=generator) * 4
        refine(logits, sessions)
        operators.append(watched(logits, sessions).operators)
    assert operators[0] == operators[1] <= 120


def test_rows_are_split_only_where_a_temporary_would_exceed_its_budget():
    logits = torch.randn(8, VOCABULARY, generator=torch.Generator().manual_seed(3)) * 4
    largest, operators = {}, {}
    for block in (2**12, 2**13, 2**20):
        sizes = ON_A_GPU._replace(block=block, narrowest=1)
        sessions = open_sessions(8, sizes, tokens=(20, 60, 33))
        refine(logits, sessions)
        watch = watched(logits, sessions)
        largest[block], operators[block] = watch.largest, watch.operators
    assert largest[2**12] <= max(2**12 // 4, 8 * VOCABULARY, 64 * 16)
    assert operators[2**12] > operators[2**13] > operators[2**20]


@pytest.mark.parametrize("budget", [0, 2**14, 2**30])
def test_no_tensor_has_the_size_of_vision_tokens_times_vocabulary(budget):
    vocabulary, tokens = 20_000, 500
    sessions = open_sessions(1, CPU, budget, (tokens,), vocabulary, alpha=1e-4)
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(4)) * 5
    with Watched() as watch:
        _, (decided,) = refine(logits, sessions)
    assert decided.vocabulary.shape[0] > 30
    assert watch.largest < tokens * vocabulary / 20


def test_a_step_does_not_become_longer_as_a_generation_does():
    vocabulary = 2000
    generator = torch.Generator().manual_seed(5)
    sessions = open_sessions(1, tokens=(50,), vocabulary=vocabulary)
    again = torch.randn(1, vocabulary, generator=generator) * 3
    refine(again, sessions)
    first = watched(again, sessions)
    for _ in range(50):
        refine(torch.randn(1, vocabulary, generator=generator) * 3, sessions)
    last = watched(again, sessions)
    assert sessions[0].columns.held > 500
    assert last.operators == first.operators
    assert last.entries == first.entries


@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 2**31), st.sampled_from(["ag", "js"]))
def test_rows_of_divergences_are_those_of_each_row(words, states, seed, kind):
    generator = torch.Generator().manual_seed(seed)
    log_p = torch.randn(3, words, generator=generator).mul(5).log_softmax(1)
    log_q = torch.randn(3, words, states, generator=generator).mul(5).log_softmax(1)
    together = divergence(log_p, log_q, kind)
    for row in range(3):
        torch.testing.assert_close(together[row], divergence(log_p[row], log_q[row], kind))
