"""The step of a batch: rows on their own, no waiting for a GPU, no large temporary."""

from collections import Counter
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from revisit.config import ReVisiTConfig
from revisit.core import onepass
from revisit.core.batch import refine
from revisit.core.columns import CPU, GPU, Pool
from revisit.core.head import LMHead
from revisit.core.session import Session
from revisit.core.step import divergence, step
from test_step import on

VOCABULARY, WIDTH = 80, 12


@st.composite
def batches(draw):
    """Rows of some prompts (None: without vision tokens), several steps of their logits."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    head = LMHead(torch.randn(VOCABULARY, WIDTH, generator=generator))
    pool = Pool(head, draw(st.sampled_from([0, 1500, 6000, 20_000, 2**30])))
    prompts = [None]
    for tokens in draw(st.lists(st.sampled_from([1, 20, 33, 70]), min_size=1, max_size=3)):
        prompts.append(pool.open(torch.randn(tokens, WIDTH, generator=generator)))
    rows = draw(st.lists(st.sampled_from(prompts), min_size=1, max_size=6))
    logits = torch.randn(3, len(rows), VOCABULARY, generator=generator)
    scale = torch.tensor([0.2, 4.0, 1.0, 9.0, 0.5, 2.0])[: len(rows)]
    return rows, logits * scale.unsqueeze(1)


CONFIGS = st.builds(
    ReVisiTConfig,
    alpha=st.sampled_from([0.0, 1e-5, 0.01, 0.3, 1.0]),
    divergence=st.sampled_from(["ag", "js"]),
    selection=st.sampled_from(["min", "max"]),
)
SIZES = {
    "cpu": CPU,
    "gpu": CPU._replace(multiple=GPU.multiple, at_once=True),
    "small": CPU._replace(block=2000, narrowest=4, gathered=300, spilled=3000),
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@settings(deadline=None, max_examples=100)
@given(batch=batches(), data=st.data())
def test_every_row_is_refined_as_if_it_were_alone(sizes, batch, data):
    """Rows of any settings, prompts of any number of vision states, shared by rows or not."""
    rows, steps = batch
    sessions = [row and on(row, data.draw(CONFIGS)) for row in rows]
    for row in rows:
        if row is not None:
            row.pool.sizes = sizes
    for logits in steps:
        check(logits, sessions)


def check(logits, sessions):
    """Each row of the batch is as the formulas of the step say it, for this row alone."""
    refined, decided = refine(logits, sessions)
    for row, session in enumerate(sessions):
        if session is None:
            assert decided[row] is None
            assert torch.equal(refined[row], logits[row])
            continue
        head, states = session.columns.pool.head, session.columns.states
        alone = step(logits[row], states, head, session.config)
        mine = decided[row]
        assert mine.vocabulary.tolist() == alone.vocabulary.tolist()
        torch.testing.assert_close(mine.distances, alone.distances, rtol=1e-4, atol=1e-5)
        # Near-ties aside the choice is the same; the scores are those of the choice made.
        best = alone.distances[mine.choice]
        torch.testing.assert_close(best, alone.divergence, rtol=1e-4, atol=2e-5)
        vocabulary = alone.vocabulary
        log_q = head.project(vocabulary, states)[:, mine.choice].log_softmax(0)
        expected = torch.full_like(logits[row], -torch.inf)
        expected[vocabulary] = logits[row][vocabulary].log_softmax(0) + log_q
        torch.testing.assert_close(refined[row], expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(refined[row], mine.scores)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), seed=st.integers(0, 2**31), budget=st.sampled_from([0, 3000, 30_000, 2**30]))
def test_prompts_come_and_go_in_any_order(data, seed, budget):
    """A pool serves them all, also where it is too small, and gets back what they held."""
    generator = torch.Generator().manual_seed(seed)
    pool = Pool(LMHead(torch.randn(VOCABULARY, WIDTH, generator=generator)), budget)
    whole = list(pool.free)
    running = []
    for _ in range(8):
        if running and data.draw(st.booleans()):
            running.pop(data.draw(st.integers(0, len(running) - 1))).close()
        for _ in range(data.draw(st.integers(0, 2))):
            states = torch.randn(data.draw(st.sampled_from([1, 9, 40])), WIDTH, generator=generator)
            running.append(Session(states, pool, data.draw(CONFIGS)))
        if running:
            order = data.draw(st.permutations(running))
            scale = data.draw(st.sampled_from([0.5, 3.0]))
            logits = torch.randn(len(order), VOCABULARY, generator=generator) * scale
            check(logits, order)
    for session in running:
        session.close()
        session.close()
    assert pool.free == whole


def test_a_closed_session_and_sessions_of_two_pools_are_refused():
    head = LMHead(torch.randn(VOCABULARY, WIDTH))
    one, other = (Session(torch.randn(3, WIDTH), Pool(head, 2**20), CONFIG) for _ in range(2))
    logits = torch.randn(2, VOCABULARY)
    with pytest.raises(ValueError, match="one pool"):
        refine(logits, [one, other])
    one.close()
    with pytest.raises(ValueError, match="must be open"):
        refine(logits[:1], [one])


class Int8Head:
    """A second kind of LM head: int8 rows and a scale for each, unpacked where they are needed."""

    def __init__(self, weight):
        self.scale = weight.abs().amax(1, keepdim=True) / 127
        self.packed = (weight / self.scale).round().to(torch.int8)
        self.size, self.width = weight.shape
        self.dtype, self.device = weight.dtype, weight.device

    def project(self, words, states):
        return (self.packed[words] * self.scale[words]) @ states.T


def test_a_head_projects_in_its_own_way():
    generator = torch.Generator().manual_seed(8)
    head = Int8Head(torch.randn(VOCABULARY, WIDTH, generator=generator))
    pool = Pool(head, 2**20)
    each = [torch.randn(tokens, WIDTH, generator=generator) for tokens in (7, 30)]
    sessions = [Session(states, pool, CONFIG) for states in each]
    for _ in range(3):
        check(torch.randn(2, VOCABULARY, generator=generator) * 3, sessions)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_columns_are_those_of_float32_rounded_and_equal_for_equal_states(dtype):
    generator = torch.Generator().manual_seed(9)
    weight = torch.randn(VOCABULARY, 96, generator=generator).to(dtype)
    states = torch.randn(70, 96, generator=generator).to(dtype)
    logits = LMHead(weight).project(torch.arange(VOCABULARY), states.repeat(3, 1))
    exact = weight.double() @ states.double().T
    bound = torch.finfo(dtype).eps * exact.abs().clamp(min=1)
    assert logits.dtype == dtype
    for copy in logits.split(70, 1):
        assert torch.equal(copy, logits[:, :70])
        assert ((copy.double() - exact).abs() <= bound).all()


CONFIG = ReVisiTConfig(alpha=0.01)


def test_scores_of_half_precision_are_refined_in_float32():
    columns = Pool(LMHead(torch.randn(9, 4)), 2**20).open(torch.randn(5, 4))
    logits = torch.randn(2, 9).to(torch.bfloat16)
    refined, _ = refine(logits, [on(columns, ReVisiTConfig(alpha=0.01)), None])
    assert refined.dtype == torch.float32
    assert torch.equal(refined[1], logits[1].float())
    same, _ = refine(logits, [None, None])
    assert same.dtype == torch.float32
    assert torch.equal(same, logits.float())


def test_who_changes_what_came_out_does_not_change_the_scores():
    logits = torch.randn(2, 9)
    before = logits.clone()
    refine(logits, [None, None])[0].zero_()
    assert torch.equal(logits, before)


def test_rows_choose_each_in_their_own_way_in_one_batch():
    ways = ["random", "min", "max", "random", "min"]
    sessions = [
        on(columns, ReVisiTConfig(alpha=0.01, selection=way), number)
        for number, (columns, way) in enumerate(zip(prompts(5, 1), ways, strict=True))
    ]
    logits = torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(3))
    refined, _ = refine(logits, sessions)
    again = [on(one.columns, one.config, one.number) for one in sessions]
    for row, one in enumerate(again):
        head, states = one.columns.pool.head, one.columns.states
        alone = step(logits[row], states, head, one.config, one.generator)
        torch.testing.assert_close(refined[row], alone.scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_all_is_where_the_head_is_whatever_the_default_device(sizes):
    generator = torch.Generator().manual_seed(2)
    head = LMHead(torch.randn(VOCABULARY, WIDTH, generator=generator))
    states = [torch.randn(count, WIDTH, generator=generator) for count in (9, 20, 33)]
    logits = torch.randn(2, 3, VOCABULARY, generator=generator)
    configs = [
        ReVisiTConfig(alpha=0.01),
        ReVisiTConfig(alpha=0.1),
        ReVisiTConfig(alpha=0.01, selection="random"),
    ]

    def decide():
        pool = Pool(head, 20_000, sizes)
        pairs = zip(states, configs, strict=True)
        sessions = [Session(each, pool, config) for each, config in pairs]
        return [refine(step, sessions)[0] for step in logits]

    expected = decide()
    with torch.device("meta"):  # what is made there is nowhere
        got = decide()
    assert torch.equal(torch.stack(got), torch.stack(expected))


@pytest.mark.parametrize(
    ("rows", "tokens", "block", "shapes"),
    [
        (8, 8, 1024, [(8, 4, 8)]),
        (8, 8, 512, [(4, 4, 8)] * 2),
        (8, 8, 511, [(3, 4, 8)] * 2 + [(2, 4, 8)]),
        (1, 100, 4 * 4 * 30, [(1, 4, 25)] * 4),
        (1, 61, 4 * 4 * 30 + 15, [(1, 4, 21)] * 2 + [(1, 4, 19)]),
        (2, 61, 4 * 4 * 30, [(1, 4, 21)] * 2 + [(1, 4, 19)] + [(1, 4, 21)] * 2 + [(1, 4, 19)]),
    ],
)
def test_temporaries_are_as_large_as_their_budget_allows(monkeypatch, rows, tokens, block, shapes):
    assert widths(monkeypatch, [tokens] * rows, block) == shapes


def test_a_long_row_does_not_make_its_neighbours_longer(monkeypatch):
    seen = widths(monkeypatch, [3, 40, 4, 38], 4 * 2 * 4 * 40)
    assert seen == [(2, 4, 4), (2, 4, 40)]


def widths(monkeypatch, tokens, block):
    """The temporaries of a step for rows of so many vision states, each with four words."""
    generator = torch.Generator().manual_seed(0)
    head = LMHead(torch.randn(VOCABULARY, WIDTH, generator=generator))
    pool = Pool(head, 2**30, CPU._replace(grain=1, block=block, narrowest=1))
    columns = [pool.open(torch.randn(count, WIDTH, generator=generator)) for count in tokens]
    seen, distances = [], onepass.distances

    def seeing(prepared, logits, kind):
        seen.append(tuple(logits.shape))
        return distances(prepared, logits, kind)

    monkeypatch.setattr(onepass, "distances", seeing)
    logits = torch.full((len(tokens), VOCABULARY), -100.0)
    logits[:, 5:9] = torch.randn(len(tokens), 4, generator=generator)
    check(logits, [on(each, ReVisiTConfig(alpha=1e-6)) for each in columns])
    return seen


def test_nan_in_one_row_is_refused_and_in_a_row_without_vision_tokens_it_is_not():
    columns = Pool(LMHead(torch.randn(9, 4)), 2**20).open(torch.randn(5, 4))
    logits = torch.randn(2, 9)
    logits[1, 3] = torch.nan
    refine(logits, [on(columns, ReVisiTConfig()), None])
    with pytest.raises(ValueError, match="NaN"):
        refine(logits, [on(columns, ReVisiTConfig())] * 2)


class Watched(TorchDispatchMode):
    """Counts what a GPU would have to be waited for, what it runs, and the largest tensor made."""

    VIEWS = (
        "view",
        "slice",
        "select",
        "unsqueeze",
        "split",
        "expand",
        "alias",
        "detach",
        "unbind",
        "unfold",
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
            # A window of the pool's columns shows some of its memory many times.
            memory = result.untyped_storage().nbytes() // result.element_size()
            size = min(result.numel(), memory)
            self.largest = max(self.largest, size)
            self.entries += size
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


def watched(logits, columns, config):
    sessions = [on(each, config) for each in columns]
    with Watched() as watch:
        refine(logits, sessions)
    return watch


def prompts(rows, beams, budget=2**30, tokens=30, vocabulary=VOCABULARY):
    generator = torch.Generator().manual_seed(1)
    pool = Pool(LMHead(torch.randn(vocabulary, WIDTH, generator=generator)), budget)
    each = [pool.open(torch.randn(tokens, WIDTH, generator=generator)) for _ in range(rows)]
    return [columns for columns in each for _ in range(beams)]


@pytest.mark.parametrize("rows, beams", [(1, 1), (8, 1), (2, 3)])
@pytest.mark.parametrize("budget", [2**30, 40 * 32 * 4])
def test_a_step_waits_for_a_gpu_once(rows, beams, budget):
    columns = prompts(rows, beams, budget)
    generator = torch.Generator().manual_seed(2)
    for _ in range(6):  # new words in every step
        logits = torch.randn(rows * beams, VOCABULARY, generator=generator) * 4
        watch = watched(logits, columns, ReVisiTConfig(alpha=0.01))
        assert watch.waits == {"tolist": 1}
        watch = watched(logits, columns, ReVisiTConfig(alpha=0.01))
        assert watch.waits == {"tolist": 1}
    with Watched() as watch:  # a trace reads nothing either
        _, steps = refine(logits, [on(each, ReVisiTConfig(alpha=0.01)) for each in columns])
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


def operators_of_a_step(rows, highest):
    """Of ragged rows, no word new, the last row's logits `highest` times as far apart."""
    generator = torch.Generator().manual_seed(3)
    pool = Pool(LMHead(torch.randn(VOCABULARY, WIDTH, generator=generator)), 2**30)
    columns = [
        pool.open(torch.randn(5 + 3 * (row % 17), WIDTH, generator=generator))
        for row in range(rows)
    ]
    scale = torch.linspace(1, highest, rows).unsqueeze(1)
    logits = torch.randn(rows, VOCABULARY, generator=generator) * scale
    sessions = [on(each, CONFIG) for each in columns]
    refine(logits, sessions)
    pool.sizes = CPU._replace(block=2**30)
    refine(logits, sessions)
    with Watched() as watch:
        _, steps = refine(logits, sessions)
    return watch.operators, [len(one.vocabulary) for one in steps]


def test_a_step_takes_as_many_operators_for_many_ragged_rows_as_for_one():
    operators = set()
    for rows in (2, 8, 32, 64):
        count, lengths = operators_of_a_step(rows, 2)
        assert len(set(lengths)) > 1 and min(lengths) > 1
        operators.add(count)
    assert len(operators) == 1
    (one,) = prompts(1, 1)
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(3))
    for _ in range(2):
        watch = watched(logits, [one], CONFIG)
    assert watch.operators <= operators.pop() <= 60


def test_rows_with_one_plausible_word_take_a_few_operators_among_others_and_few_alone():
    for rows in (8, 32, 64):
        count, lengths = operators_of_a_step(rows, 30)
        assert lengths.count(1) > 1 and max(lengths) > 1
        assert count <= operators_of_a_step(rows, 2)[0] + 12
    columns = prompts(4, 1)
    certain = torch.eye(VOCABULARY)[:4] * 100
    assert watched(certain, columns, CONFIG).operators <= 30


def test_a_word_that_is_certain_is_not_projected_and_keeps_its_place():
    columns = prompts(3, 1)
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(3, VOCABULARY, generator=generator)
    logits[1, 7] = 100
    refined, steps = refine(logits, [on(each, CONFIG) for each in columns])
    assert [each.held > 0 for each in columns] == [True, False, True]
    for row, one in enumerate(steps):
        alone = step(logits[row], columns[row].states, columns[row].pool.head, CONFIG)
        for mine, plain in zip(one, alone, strict=True):
            assert torch.allclose(mine, plain, atol=1e-5)
        assert torch.equal(one.scores, refined[row])
    _, steps = refine(logits[1:2], [on(columns[1], CONFIG)])
    assert steps[0].vocabulary.tolist() == [7] and int(steps[0].choice) == 0
    assert steps[0].distances.tolist() == [0] * 30 and not columns[1].held


def test_a_random_choice_is_drawn_for_a_word_that_is_certain_too():
    config = ReVisiTConfig(alpha=0.01, selection="random")
    (columns,) = prompts(1, 1)
    session = on(columns, config)
    generator = torch.Generator().manual_seed(0)
    session.generator.manual_seed(0)
    certain = torch.eye(VOCABULARY)[:1] * 100
    for logits in (certain, certain, certain * 0):
        _, (mine,) = refine(logits, [session])
        alone = step(logits[0], columns.states, columns.pool.head, config, generator)
        assert mine.choice == alone.choice


def test_new_words_cost_a_product_and_two_operators_more_for_each_prompt_that_has_some():
    generator = torch.Generator().manual_seed(6)
    operators = []
    for rows in (2, 32):
        columns = prompts(rows, 1)
        for _ in range(2):  # each word is new to its prompt in one of them
            logits = torch.randn(rows, VOCABULARY, generator=generator) * 4
            watch = watched(logits, columns, CONFIG)
        assert all(each.held for each in columns)
        operators.append(watch.operators)
    assert operators[1] - operators[0] < 3.5 * 30


def test_what_was_decided_is_told_row_by_row():
    (columns,) = prompts(1, 1)
    session = on(columns, CONFIG)
    _, steps = refine(torch.randn(3, VOCABULARY), [session, None, session])
    assert len(steps) == len(list(steps)) == 3
    assert [one is None for one in steps] == [False, True, False]
    with pytest.raises(IndexError, match="row 3 of 3"):
        steps[3]


@pytest.mark.parametrize("budget", [0, 2**14, 2**30])
def test_no_tensor_has_the_size_of_vision_tokens_times_vocabulary(budget):
    vocabulary, tokens = 20_000, 500
    (columns,) = prompts(1, 1, budget, tokens, vocabulary)
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(4)) * 5
    with Watched() as watch:
        _, (decided,) = refine(logits, [on(columns, ReVisiTConfig(alpha=1e-4))])
    assert decided.vocabulary.shape[0] > 30
    assert watch.largest < tokens * vocabulary / 20


def test_a_step_does_not_become_longer_as_a_generation_does():
    vocabulary = 2000
    generator = torch.Generator().manual_seed(5)
    (columns,) = prompts(1, 1, 2**30, 50, vocabulary)
    again = torch.randn(1, vocabulary, generator=generator) * 3
    config = ReVisiTConfig(alpha=0.01)
    refine(again, [on(columns, config)])
    first = watched(again, [columns], config)
    for _ in range(50):
        refine(torch.randn(1, vocabulary, generator=generator) * 3, [on(columns, config)])
    last = watched(again, [columns], config)
    assert columns.held > 500
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


@pytest.mark.parametrize("kind", ["ag", "js"])
def test_large_logits_do_not_overflow_in_one_pass(kind):
    generator = torch.Generator().manual_seed(0)
    log_p = torch.randn(2, 9, generator=generator).log_softmax(-1)
    logits = torch.randn(2, 9, 5, generator=generator)
    expected = divergence(log_p, logits.log_softmax(1), kind)
    got = onepass.distances(onepass.prepare(log_p, kind, 0.1), logits + 200, kind)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_a_word_without_probability_is_infinitely_far_in_its_own_row_alone():
    log_p = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]).log()
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    got = onepass.distances(onepass.prepare(log_p, "ag", 0.0), logits.clone(), "ag")
    assert got[0].isposinf().all()
    torch.testing.assert_close(got[1], divergence(log_p[1:], logits[1:].log_softmax(1), "ag")[0])
    alone = onepass.distances(onepass.prepare(log_p[0], "ag", 0.0), logits[0].clone(), "ag")
    assert alone.isposinf().all()
