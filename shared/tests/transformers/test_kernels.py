"""`generate` by the kernels gives what plain PyTorch gives; each test has both."""

import math
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import revisit
from revisit import ReVisiTConfig
from revisit.core.head import LMHead
from revisit.transformers import kernels, processor
from routes import attached, plain
from small_llama import PROMPTS, batch, make_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLAIN = [1, 8, 9, 40]  # holds no vision token
CONFIG = ReVisiTConfig(layers="all", alpha=0.02, trace=True, no_vision="plain")


@pytest.fixture(scope="module")
def model():
    return make_model().to(DEVICE)


def decode(model, prompts=PROMPTS, config=CONFIG, **arguments):
    """The output object."""
    torch.manual_seed(7)
    as_object = {"output_scores": True, "return_dict_in_generate": True}
    return attached(model, prompts, config, **as_object, **arguments)


@contextmanager
def plain_pytorch():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processor, "kernels_run", lambda head: False)
        yield


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
    with plain_pytorch():
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
                assert step == expected._replace(divergence=near)


@pytest.mark.parametrize("selection", ["min", "max"])
def test_how_far_every_vision_state_is_from_the_latest_step_is_known(
    model, kernels_allowed, selection
):
    """By kernels and in plain PyTorch; the chosen one is as far as the trace says."""
    config = replace(CONFIG, selection=selection)
    found = []
    for engine in (plain_pytorch, nullcontext):
        with engine(), revisit.attach(model, config) as run:
            plain(model, [*PROMPTS, PLAIN], max_new_tokens=3)
            found.append(run.latest.distances)
            for distances, (*_, step) in zip(run.latest.distances, run.trace, strict=True):
                if step is None:
                    assert distances is None
                    continue
                best = distances.max() if selection == "max" else distances.min()
                assert float(best) == pytest.approx(step.divergence, abs=1e-5)
    for by_pytorch, by_kernels in zip(*found, strict=True):
        assert (by_pytorch is None) == (by_kernels is None)
        if by_pytorch is not None:
            torch.testing.assert_close(by_pytorch, by_kernels, rtol=1e-4, atol=1e-5)


def test_several_generations_draw_as_the_sessions_of_their_prompts(model, kernels_allowed):
    """A prompt's random draws follow from its number in the processor's life."""
    config = replace(CONFIG, selection="random", layers="last")
    states = []
    for engine in (plain_pytorch, nullcontext):
        with engine(), revisit.attach(model, config) as run:
            for _ in range(2):
                plain(model, PROMPTS, max_new_tokens=4)
                states.append([[step.vision_token for step in row] for row in run.trace])
    assert states[:2] == states[2:]
    assert states[0] != states[1]


def spoiled(value, row, step):
    """A model whose logits of one step are spoiled in one row."""
    passes = iter(range(99))

    def spoil(_module, _args, output):
        if next(passes) == step:
            output.logits[row, -1, 3 if math.isnan(value) else slice(None)] = value

    model = make_model().to(DEVICE)
    model.register_forward_hook(spoil)
    return model


NAN, NOTHING = (math.nan, "hold NaN"), (-math.inf, "-inf for every token")


@pytest.mark.parametrize(("fault", "step"), [(NAN, 1), (NAN, 5), (NOTHING, 2)], ids=str)
@pytest.mark.parametrize("sample", [False, True])
def test_a_row_without_a_token_to_choose_is_never_lost(kernels_allowed, fault, step, sample):
    value, message = fault
    with pytest.raises(ValueError, match=message):
        decode(spoiled(value, 1, step), do_sample=sample)
    assert kernels_allowed


def test_a_plain_row_may_hold_nan_and_another_exception_is_not_replaced(kernels_allowed):
    decode(spoiled(math.nan, 3, 1), [*PROMPTS, PLAIN])

    def stop(input_ids, _scores):
        if input_ids.shape[1] > len(PROMPTS[1]) + 1:  # after the step that was spoiled
            raise RuntimeError("stop here")
        return torch.zeros(len(input_ids), dtype=torch.bool, device=DEVICE)

    with pytest.raises(RuntimeError, match="stop here"):
        decode(spoiled(math.nan, 1, 1), stopping_criteria=[stop])
    assert len(kernels_allowed) == 2


def test_plain_pytorch_decodes_where_kernels_do_not_run(model, kernels_allowed, monkeypatch):
    want = decode(model).sequences.tolist()
    assert len(kernels_allowed) == 1

    def full(*_):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(processor, "Kernels", full)
    assert decode(model).sequences.tolist() == want
    monkeypatch.setattr(processor, "kernels_run", kernels.kernels_run)
    monkeypatch.setattr(kernels, "available", lambda head: False)
    assert decode(model).sequences.tolist() == want
    monkeypatch.setattr(kernels, "available", lambda head: True)
    assert not kernels.kernels_run(LMHead(torch.zeros(3, 2)))  # no GPU, whatever Triton says


class Reads(TorchDispatchMode):
    """Operators that bring numbers to the host, or whose result has a size that it must know."""

    def __init__(self):
        self.seen = []

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select"):
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("engine", [nullcontext, plain_pytorch])
def test_a_step_by_kernels_brings_nothing_to_the_host(model, kernels_allowed, engine):
    """Plain PyTorch does, so that the test would notice it."""
    by_kernels = engine is nullcontext
    inputs = batch(PROMPTS, DEVICE)
    decoder = revisit.ReVisiTLogitsProcessor(model, CONFIG)
    with torch.no_grad(), engine(), decoder.generation(inputs):
        scores = model(**inputs).logits[:, -1]
        states = [each.clone() for each in decoder.current().recorder.states]
        decoder(inputs["input_ids"], scores)
        with Reads() as reads:
            if DEVICE == "cuda" and by_kernels:
                torch.cuda.set_sync_debug_mode("error")
            try:
                decoder(inputs["input_ids"], scores)
            finally:
                if DEVICE == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
        assert bool(reads.seen) is not by_kernels
        assert len(decoder.vision_states) == len(states)
        assert all(map(torch.equal, decoder.vision_states, states))
    assert decoder.latest.kernels is None  # their memory is free


@pytest.mark.skipif(DEVICE == "cpu", reason="there is no GPU")
@pytest.mark.parametrize("devices", [("cpu", "cuda"), ("cuda", "cpu")], ids=str)
def test_the_lm_head_may_be_on_another_device_than_the_scores(kernels_allowed, devices):
    model, elsewhere = make_model().to(devices[0]), devices[1]
    want = decode(model).sequences.tolist()
    head = LMHead(model.lm_head.weight.detach().to(elsewhere))
    with revisit.attach(model, CONFIG, lm_head=head):
        assert plain(model, PROMPTS) == want
