"""ReVisiT in `generate`, on a small Llama in any Transformers: formulas, rows, traces."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList

import dense
import revisit
from revisit import ReVisiTConfig
from routes import plain
from small_llama import IMAGE, PROMPTS, new_tokens


def decode(model, prompts, config, **arguments):
    """Output object and trace of a generation with ReVisiT."""
    as_object = {"return_dict_in_generate": True, "output_scores": True}
    with revisit.attach(model, config) as run:
        output = plain(model, prompts, **as_object, **arguments)
    return output, run.trace


def hidden_states_and_logits(model, ids):
    with torch.no_grad():
        output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return [state[0].double().numpy() for state in output.hidden_states], output.logits[0].double()


@pytest.mark.parametrize("layers", ["last", "all", "low", "high", [1, 3]])
@pytest.mark.parametrize("kind", ["ag", "js"])
@pytest.mark.parametrize("alpha", [0.0, 0.01, 1.0])
def test_generation_equals_a_dense_float64_computation(model, layers, kind, alpha):
    named = {"last": [4], "all": [0, 2, 4], "low": [0, 4], "high": [2, 4]}
    indices = named[layers] if isinstance(layers, str) else layers
    config = ReVisiTConfig(layers=layers, alpha=alpha, divergence=kind, trace=True)
    output, trace = decode(model, PROMPTS[1:2], config)
    head = model.lm_head.weight.detach().double().numpy()
    sequence = list(PROMPTS[1])
    positions = [number for number, token in enumerate(sequence) if token == IMAGE]
    states, _ = hidden_states_and_logits(model, sequence)
    vision = np.concatenate([states[index][positions] for index in indices])
    for scores, seen in zip(output.scores, trace[0], strict=True):
        _, logits = hidden_states_and_logits(model, sequence)
        vocabulary, distances, refined = dense.step(logits[-1].numpy(), vision, head, alpha, kind)
        choice = indices.index(seen.layer) * len(positions) + seen.vision_token
        assert distances[choice] <= distances.min() + 1e-4
        assert seen.divergence == pytest.approx(distances[choice], abs=1e-4)
        assert seen.candidates == len(vocabulary)
        np.testing.assert_allclose(scores[0, vocabulary], refined[:, choice], atol=2e-3)
        assert (scores[0] > -1e4).sum() == len(vocabulary)
        assert seen.plain_token == int(logits[-1].argmax())
        sequence.append(int(scores[0].argmax()))
    assert sequence[len(PROMPTS[1]) :] == new_tokens(output, PROMPTS[1:2])[0]


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("arguments", [{}, {"num_beams": 3}, {"use_cache": False}])
def test_a_padded_batch_gives_row_by_row_what_each_prompt_gives_alone(model, layers, arguments):
    config = ReVisiTConfig(layers=layers, alpha=0.02)
    together, _ = decode(model, PROMPTS, config, **arguments)
    for row, prompt in enumerate(PROMPTS):
        alone, _ = decode(model, [prompt], config, **arguments)
        assert new_tokens(together, PROMPTS)[row] == new_tokens(alone, [prompt])[0]


def test_rows_of_one_prompt_share_their_vision_states(model):
    shapes = []
    with revisit.attach(model, ReVisiTConfig(layers="all")) as run:

        def process(input_ids, scores):
            shapes.append((len(input_ids), [tuple(each.shape) for each in run.vision_states]))
            return scores

        processors = LogitsProcessorList([process])
        plain(model, PROMPTS[:2], max_new_tokens=3, num_beams=4, logits_processor=processors)
    assert shapes == [(8, [(3 * 3, 32), (3 * 7, 32)])] * 3


def test_sampling_repeats_with_its_seed_and_stays_inside_the_vocabulary(model):
    config = ReVisiTConfig(alpha=0.05)
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        output, _ = decode(
            model, PROMPTS[:1], config, do_sample=True, num_return_sequences=3, top_k=0
        )
        runs.append(output.sequences.tolist())
        for step, scores in enumerate(output.scores):
            drawn = output.sequences[:, len(PROMPTS[0]) + step]
            assert (scores.gather(1, drawn.unsqueeze(1)) > -1e4).all()
    assert runs[0] == runs[1]


def test_without_a_trace_nothing_is_kept(model):
    _, trace = decode(model, PROMPTS, ReVisiTConfig())
    assert trace is None


@torch.no_grad()
def test_a_decoding_loop_of_one_s_own(model):
    config = ReVisiTConfig(layers="all", alpha=0.02, trace=True)
    expected, _ = decode(model, PROMPTS[:1], config)
    tokens = torch.tensor(PROMPTS[:1])
    processor = revisit.ReVisiTLogitsProcessor(model, config)
    with processor.generation({"input_ids": tokens}):
        for _ in range(6):
            scores = processor(tokens, model(input_ids=tokens).logits[:, -1])
            tokens = torch.cat([tokens, scores.argmax(1, keepdim=True)], 1)
    assert tokens.tolist() == expected.sequences.tolist()
    generated = tokens[0, len(PROMPTS[0]) :].tolist()
    assert [step.refined_token for step in processor.trace[0]] == generated
    assert [step.token for step in processor.trace[0]] == [*generated[:-1], None]


@torch.no_grad()
def test_a_model_that_returns_a_tuple_is_told_what_is_wrong(model):
    tokens = torch.tensor(PROMPTS[:1])
    processor = revisit.ReVisiTLogitsProcessor(model)
    with (
        processor.generation({"input_ids": tokens}),
        pytest.raises(ValueError, match="return_dict=True"),
    ):
        processor(tokens, model(input_ids=tokens, return_dict=False)[0][:, -1])


@pytest.mark.parametrize("num_beams", [1, 3])
def test_the_trace_tells_the_token_that_was_sampled(model, num_beams):
    torch.manual_seed(1)
    config = ReVisiTConfig(alpha=1e-3, trace=True)
    output, trace = decode(
        model, PROMPTS, config, do_sample=True, temperature=3.0, num_beams=num_beams
    )
    for row, tokens in enumerate(new_tokens(output, PROMPTS)):
        assert [step.token for step in trace[row]] == tokens
    assert any(step.token != step.refined_token for row in trace for step in row)


def test_the_trace_of_a_beam_is_that_of_its_own_hypothesis(model):
    """Each step's argmax is the model's for this hypothesis so far, alone."""
    config = ReVisiTConfig(alpha=0.02, trace=True)
    output, trace = decode(model, PROMPTS[:2], config, num_beams=4, num_return_sequences=2)
    sequences = new_tokens(output, PROMPTS[:2])
    assert len(trace) == len(sequences) == 4
    for row, tokens in enumerate(sequences):
        for number, step in enumerate(trace[row]):
            prompt = [*PROMPTS[row // 2], *tokens[:number]]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
            assert step.plain_token == int(logits.argmax())
            assert step.token == tokens[number]


def test_random_draws_differ_between_generations_and_not_with_the_neighbours(model):
    """A prompt's draws follow from the seed and its number among the prompts seen."""
    config = ReVisiTConfig(selection="random", trace=True, layers="all", alpha=1e-3)

    def choices(trace):
        return [[(step.layer, step.vision_token) for step in row] for row in trace]

    _, together = decode(model, [PROMPTS[1]] * 3, config)
    alone = []
    with revisit.attach(model, config) as run:
        for _ in range(3):
            plain(model, PROMPTS[1:2])
            alone += choices(run.trace)
    assert choices(together) == alone
    assert alone[0] != alone[1] != alone[2]
    _, other = decode(model, PROMPTS[1:2], replace(config, seed=1))
    assert choices(other) != alone[:1]
