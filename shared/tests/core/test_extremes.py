"""Logits at the edge of what a float can say: certain tokens, and no possible one."""

import math

import pytest
import torch

from revisit.config import ReVisiTConfig
from revisit.core.columns import Cache
from revisit.core.head import LMHead
from revisit.core.rows import refine
from revisit.core.session import Session
from revisit.core.step import step

VOCABULARY, WIDTH, STATES = 12, 5, 7


def by_formulas(logits, states, head, config):
    return step(logits, states, head, config).scores


def in_a_batch(logits, states, head, config):
    """Beside a neighbour whose logits are ordinary."""
    cache = Cache(head, 2**20)
    sessions = [Session(each, cache, config) for each in (states, states.flip(0))]
    refined, _ = refine(torch.stack([logits, torch.arange(VOCABULARY).float()]), sessions)
    return refined[0]


both = pytest.mark.parametrize("path", [by_formulas, in_a_batch])
alphas = pytest.mark.parametrize("alpha", [0.0, 1e-5, 1.0])


def problem():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(STATES, WIDTH, generator=generator)
    head = LMHead(torch.randn(VOCABULARY, WIDTH, generator=generator))
    return torch.randn(VOCABULARY, generator=generator), states, head


@both
@alphas
@pytest.mark.parametrize("kind", ["ag", "js"])
def test_a_token_with_an_infinite_logit_is_certain(path, alpha, kind):
    logits, states, head = problem()
    logits[3] = math.inf
    scores = path(logits, states, head, ReVisiTConfig(alpha=alpha, divergence=kind))
    assert not scores.isnan().any()
    assert int(scores.argmax()) == 3
    assert float(scores.softmax(0)[3]) == 1


@both
@alphas
def test_two_infinite_logits_share_the_certainty(path, alpha):
    logits, states, head = problem()
    logits[[3, 8]] = math.inf
    scores = path(logits, states, head, ReVisiTConfig(alpha=alpha))
    assert not scores.isnan().any()
    assert sorted(scores.topk(2).indices.tolist()) == [3, 8]
    assert float(scores.softmax(0)[[3, 8]].sum()) == pytest.approx(1)


@both
@alphas
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-math.inf, "^the model.s logits are -inf for every token"),
        (math.nan, "^the model.s logits hold NaN"),
    ],
)
def test_logits_from_which_no_token_can_be_chosen_are_refused(path, alpha, value, message):
    _, states, head = problem()
    logits = torch.full((VOCABULARY,), value)
    with pytest.raises(ValueError, match=message):
        path(logits, states, head, ReVisiTConfig(alpha=alpha))
