"""`generate` by the kernels gives what plain PyTorch gives; each test has both."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

import revisit
from revisit import ReVisiTConfig
from revisit.core.head import LMHead
from revisit.transformers import kernels, processor
from small_llama import PAD, PROMPTS, batch, make_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLAIN = [1, 8, 9, 40]  # holds no vision token
CONFIG = ReVisiTConfig(layers="all", alpha=0.02, trace=True, no_vision="plain")


@pytest.fixture(scope="module")
def model():
    return make_model().to(DEVICE)


def decode(model, prompts=PROMPTS, config=CONFIG, **arguments):
    torch.manual_seed(7)
    given = {key: value.to(model.device) for key, value in batch(prompts).items()}
    settings = {
        "max_new_tokens": 6,
        "do_sample": False,
        "pad_token_id": PAD,
        "output_scores": True,
        "return_dict_in_generate": True,
        **arguments,
    }
    with revisit.attach(model, config):
        return model.generate(**given, **settings)


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ({}, {}),
        ({}, {"num_beams": 3, "num_return_sequences": 2}),
        ({}, {"num_beams": 3, "do_sample": True}),
        ({}, {"do_sample": True, "top_k": 5, "num_return_sequences": 2}),
        ({}, {"suppress_tokens": list(range(0, 90, 2)), "repetition_penalty": 1.3}),
        ({"layers": "last", "divergence": "js", "alpha": 0.0}, {}),
        ({"layers": "last", "alpha": 1.0}, {}),
        ({"selection": "max"}, {}),
        ({"selection": "random", "seed": 3}, {"num_beams": 2}),
        ({"cache_bytes": 0}, {}),
        ({"cache_bytes": 8000}, {}),
    ],
    ids=str,
)
def test_kernels_give_the_tokens_scores_and_trace_of_plain_pytorch(
    model, kernels_allowed, settings, arguments
):
    prompts, config = [*PROMPTS, PLAIN], replace(CONFIG, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processor, "kernels_run", lambda head: False)
        want = decode(model, prompts, config, **arguments)
    assert not kernels_allowed
    got = decode(model, prompts, config, **arguments)
    assert len(kernels_allowed) == 1
    assert got.sequences.tolist() == want.sequences.tolist()
    for scores, expected in zip(got.scores, want.scores, strict=True):
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
    for row, expected_row in zip(got.revisit_trace, want.revisit_trace, strict=True):
        for step, expected in zip(row, expected_row, strict=True):
            assert (step is None) == (expected is None)
            if step is not None:
                near = pytest.approx(expected.divergence, abs=1e-4)
                assert step == expected._replace(divergence=step.divergence)
                assert step.divergence == near


def test_several_generations_draw_as_the_sessions_of_their_prompts(model, kernels_allowed):
    """A prompt's random draws follow from its number in the processor's life."""
    config = replace(CONFIG, selection="random", layers="last")
    inputs = {key: value.to(DEVICE) for key, value in batch(PROMPTS).items()}
    states = []
    for runs in (False, True):
        with pytest.MonkeyPatch.context() as patch, revisit.attach(model, config) as run:
            if not runs:
                patch.setattr(processor, "kernels_run", lambda head: False)
            for _ in range(2):
                model.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=PAD)
                states.append([[step.vision_token for step in row] for row in run.trace])
    assert states[:2] == states[2:]
    assert states[0] != states[1]


class Spoiled(torch.nn.Module):
    """An LM head whose logits of one pass are spoiled in one row."""

    def __init__(self, head, at, row, value):
        super().__init__()
        self.head, self.left, self.row, self.value = head, at, row, value

    @property
    def weight(self):
        return self.head.weight

    def forward(self, hidden):
        logits = self.head(hidden)
        if not self.left:
            logits[self.row, -1, 3 if math.isnan(self.value) else slice(None)] = self.value
        self.left -= 1
        return logits
