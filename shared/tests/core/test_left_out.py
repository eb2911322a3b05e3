"""Scores beyond V_cons, as engines hand them on: of probability 0, finite, in the model's order."""

import math

import numpy as np
import pytest
import torch

from revisit import ReVisiTConfig
from revisit.core.head import LMHead
from revisit.core.left_out import fill_left_out
from revisit.core.step import step
from revisit.decoders import dola, m3id, ritual, vcd

SEEDS = range(12)


def draw(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 3, shape)).float()


def revisited(logits, other, share):
    states, weight = other[0, :12].view(3, 4), other[0, :4] * draw(9, logits.shape[1], 4)
    config = ReVisiTConfig(alpha=share)
    return torch.stack([step(row, states, LMHead(weight), config).scores for row in logits])


DECODERS = {
    "ReVisiT": revisited,
    "VCD": lambda logits, other, share: vcd.combine(logits, other, 1.0, share),
    "RITUAL": lambda logits, other, share: ritual.combine(logits, other, 3.0, share),
    "M3ID": lambda logits, other, share: m3id.combine(logits, other, 3, 0.02, share),
    "M3ID, 512": lambda logits, other, share: m3id.combine(logits, other, 512, 0.02, share),
    "M3ID, 9999": lambda logits, other, share: m3id.combine(logits, other, 9999, 0.02, share),
    "DoLa": lambda logits, other, share: dola.combine(logits, other.unsqueeze(1), share),
}
every_decoder = pytest.mark.parametrize("decoder", DECODERS)


@every_decoder
@pytest.mark.parametrize("share", [1, 0.1, 1e-5, 0])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_probabilities_stay_and_the_rest_keeps_the_model_s_order(decoder, share, normalized, seed):
    logits, other = draw(seed, 3, 200), draw(100 + seed, 3, 200)
    logits[0, 5] = -math.inf
    if normalized:
        logits = logits.log_softmax(-1)
    decided = DECODERS[decoder](logits, other, share)
    filled = fill_left_out(decided, logits)
    kept = decided > -math.inf
    assert torch.equal(filled[kept], decided[kept])
    assert torch.equal(filled == -math.inf, logits == -math.inf)
    for temperature in (0.01, 1, 100):
        assert torch.equal((filled / temperature).softmax(-1), (decided / temperature).softmax(-1))
    for row in range(3):
        beyond = ~kept[row]
        assert torch.equal(filled[row, beyond].argsort(), logits[row, beyond].argsort())


@every_decoder
@pytest.mark.parametrize("penalty", [0.25, 0.8, 1.2, 4])
def test_a_penalty_brings_no_token_over_one_that_is_kept(decoder, penalty):
    logits, other = draw(1, 3, 200), draw(2, 3, 200)
    decided = DECODERS[decoder](logits, other, 0.01)
    filled = fill_left_out(decided, logits)
    kept = decided > -math.inf
    for penalized in (kept, ~kept):  # as `repetition_penalty` and its kind do
        change = torch.where(filled < 0, filled * penalty, filled / penalty)
        after = torch.where(penalized, change, filled)
        for row in range(3):
            assert after[row, ~kept[row]].max() < after[row, kept[row]].min() - 104


def test_likely_tokens_that_differ_by_one_bit_keep_their_order():
    for top in (20.0, -3.0, 700.0):
        logits = torch.full((1, 8), top)
        logits[0, 0] += 1
        for place in range(2, 8):
            logits[0, place] = torch.nextafter(logits[0, place - 1], torch.tensor(math.inf))
        decided = m3id.combine(logits, -logits, 512, 0.02, 1.0)
        assert (decided > -math.inf).sum() == 1
        assert fill_left_out(decided, logits)[0, 1:].argmax() == 6


def test_a_score_is_a_multiple_of_the_log_probability_that_follows_from_its_row_alone():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 0.0, -900.0]])
    decided = torch.tensor([[-2.0, -math.inf, -3.0, -math.inf], [-600.0, -math.inf, -3.0, -700.0]])
    filled = fill_left_out(decided, logits)
    nats = math.log(4) + 1
    assert filled[0].tolist() == pytest.approx([-2.0, -(2**14) * nats, -3.0, -(2**14) * nats])
    least = (logits[1].log_softmax(0)[1] - 1) * 32 * 700
    assert filled[1].tolist() == pytest.approx([-600.0, float(least), -3.0, -700.0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_certain_token_leaves_the_others_in_order(dtype):
    logits = torch.tensor([[1, math.inf, 3, 2, -math.inf]], dtype=dtype)
    decided = torch.full((1, 5), -math.inf)
    decided[0, 1] = 0
    filled = fill_left_out(decided, logits)
    assert filled.dtype == torch.float32
    assert filled[0].argsort(descending=True).tolist() == [1, 2, 3, 0, 4]
    assert filled[0, 2] < -10_000
    assert filled[0, 4] == -math.inf


def test_a_certain_token_that_alone_is_possible_leaves_the_others_impossible():
    logits = torch.full((2, 5), -math.inf)
    logits[:, 1] = math.inf
    logits[1, 3] = 2.0
    decided = torch.full((2, 5), -math.inf)
    decided[:, 1] = 0
    filled = fill_left_out(decided, logits)
    assert filled[0].tolist() == decided[0].tolist()
    assert -math.inf < filled[1, 3] < -10_000
    assert (filled[1, [0, 2, 4]] == -math.inf).all()
