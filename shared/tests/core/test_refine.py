"""The step of a batch: rows on their own, no waiting for a GPU, no large temporary."""

from collections import Counter
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from revisit.config import ReVisiTConfig
from revisit.core.batch import refine
from revisit.core.columns import Columns
from revisit.core.head import LMHead
from revisit.core.step import divergence, step
from test_step import on

VOCABULARY, WIDTH = 80, 12


@st.composite
def batches(draw):
    """Rows of some prompts (None: without vision tokens), several steps of their logits."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    head = LMHead(torch.randn(VOCABULARY, WIDTH, generator=generator))
    budget = draw(st.sampled_from([0, 1500, 6000, 2**30]))
    prompts = [None]
    for tokens in draw(st.lists(st.sampled_from([1, 20, 33]), min_size=1, max_size=3)):
        states = torch.randn(tokens, WIDTH, generator=generator)
        prompts.append(Columns(states, head, budget))
    rows = draw(st.lists(st.sampled_from(prompts), min_size=1, max_size=6))
    logits = torch.randn(3, len(rows), VOCABULARY, generator=generator)
    scale = torch.tensor([0.2, 4.0, 1.0, 9.0, 0.5, 2.0])[: len(rows)]
    return rows, logits * scale.unsqueeze(1)


@pytest.mark.parametrize("one_pass", [lambda _: True, lambda _: False], ids=["cpu", "gpu"])
@settings(deadline=None, max_examples=150)
@given(
    batch=batches(),
    alpha=st.sampled_from([0.0, 1e-5, 0.01, 0.3, 1.0]),
    kind=st.sampled_from(["ag", "js"]),
    selection=st.sampled_from(["min", "max"]),
)
def test_every_row_is_refined_as_if_it_were_alone(one_pass, batch, alpha, kind, selection):
    rows, steps = batch
    config = ReVisiTConfig(alpha=alpha, divergence=kind, selection=selection)
    for logits in steps:
        with patch("revisit.core.onepass.serves", one_pass):
            refined, decided = refine(logits, [row and on(row, config) for row in rows])
        for row, columns in enumerate(rows):
            if columns is None:
                assert decided[row] is None
                assert torch.equal(refined[row], logits[row])
                continue
            alone = step(logits[row], columns.states, columns.head, config)
            assert decided[row].vocabulary.tolist() == alone.vocabulary.tolist()
            torch.testing.assert_close(
                decided[row].distances, alone.distances, rtol=1e-4, atol=1e-5
            )
            # Near-ties aside the choice is the same; the scores are those of the choice made.
            choice = decided[row].choice
            torch.testing.assert_close(
                alone.distances[choice], alone.divergence, rtol=1e-4, atol=2e-5
            )
            vocabulary = alone.vocabulary
            log_q = columns.project(vocabulary)[:, choice].log_softmax(0)
            expected = torch.full((VOCABULARY,), -torch.inf)
            expected[vocabulary] = logits[row][vocabulary].log_softmax(0) + log_q
            torch.testing.assert_close(refined[row], expected, rtol=1e-4, atol=1e-4)
            assert torch.equal(refined[row], decided[row].scores)


def test_scores_of_half_precision_are_refined_in_float32():
    columns = Columns(torch.randn(5, 4), LMHead(torch.randn(9, 4)), 2**20)
    logits = torch.randn(2, 9).to(torch.bfloat16)
    refined, _ = refine(logits, [on(columns, ReVisiTConfig(alpha=0.01)), None])
    assert refined.dtype == torch.float32
    assert torch.equal(refined[1], logits[1].float())
    same, _ = refine(logits, [None, None])
    assert torch.equal(same, logits.float())


def test_nan_in_one_row_is_refused_and_in_a_row_without_vision_tokens_it_is_not():
    columns = Columns(torch.randn(5, 4), LMHead(torch.randn(9, 4)), 2**20)
    logits = torch.randn(2, 9)
    logits[1, 3] = torch.nan
    refine(logits, [on(columns, ReVisiTConfig()), None])
    with pytest.raises(ValueError, match="NaN"):
        refine(logits, [on(columns, ReVisiTConfig())] * 2)


class Watched(TorchDispatchMode):
    """Counts what a GPU would have to be waited for, what it runs, and the largest tensor made."""

    VIEWS = ("view", "slice", "select", "unsqueeze", "split", "expand", "alias", "detach", "unbind")
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


def watched(logits, columns, config):
    sessions = [on(each, config) for each in columns]
    with Watched() as watch, patch("revisit.core.onepass.serves", lambda _: False):
        refine(logits, sessions)
    return watch


def prompts(rows, beams, budget=2**30, tokens=30, vocabulary=VOCABULARY):
    generator = torch.Generator().manual_seed(1)
    head = LMHead(torch.randn(vocabulary, WIDTH, generator=generator))
    each = [
        Columns(torch.randn(tokens, WIDTH, generator=generator), head, budget) for _ in range(rows)
    ]
    return [columns for columns in each for _ in range(beams)]


@pytest.mark.parametrize("rows, beams", [(1, 1), (8, 1), (2, 3)])
@pytest.mark.parametrize("budget", [2**30, 40 * 30 * 4])
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


def test_rows_of_a_batch_are_taken_together():
    logits = torch.randn(8, VOCABULARY, generator=torch.Generator().manual_seed(3)) * 4
    config = ReVisiTConfig(alpha=0.01)
    operators = []
    for rows in (1, 8):
        columns = prompts(rows, 1)
        refine(logits[:rows], [on(each, config) for each in columns])
        operators.append(watched(logits[:rows], columns, config).operators)
    assert operators[1] < operators[0] + 7 * 4 + 10


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
    assert columns.kept > 500
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
