"""Divergences in few passes over memory are those of the formula."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revisit.core.onepass import distances, prepare
from revisit.core.step import divergence

KINDS = st.sampled_from(["ag", "js"])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 2**31), KINDS)
def test_divergences_are_those_of_the_formula(tokens, states, seed, kind):
    log_p = (random(3, tokens, seed=seed) * 5).log_softmax(1)
    logits = random(3, tokens, states, seed=seed + 1) * 5
    expected = divergence(log_p, logits.log_softmax(1), kind)
    # Large logits do not overflow, and those of one vision state do not make others vanish.
    for shift in (0, 200, torch.arange(states) % 4 * 100):
        got = distances(prepare(log_p, kind, 0.1), logits + shift, kind)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["ag", "js"])
@pytest.mark.parametrize("log_least", [-math.inf, -1000.0, -90.0])
def test_a_token_of_little_or_no_probability_counts_in_its_row_alone(kind, log_least):
    log_p = torch.tensor([[0.5, 0.5, 1.0], [0.2, 0.3, 0.5]]).log()
    log_p[0, 2] = log_least
    logits = random(2, 3, 4)
    got = distances(prepare(log_p, kind, 0.0), logits.clone(), kind)
    torch.testing.assert_close(got, divergence(log_p, logits.log_softmax(1), kind))
    assert bool(got[0].isposinf().all()) == (kind == "ag" and log_least == -math.inf)
