"""One generation against the formulas in dense float64, on what Transformers itself reports."""

import numpy as np
import pytest
import torch

import dense
import revisit
from families import unchanged
from revisit import ReVisiTConfig
from revisit.transformers.model_parts import is_tied, output_embeddings, text_decoder
from tiny_configs import IMAGE

STEPS = 5
ALPHA = 0.02
SETTINGS = {
    "max_new_tokens": STEPS,
    "do_sample": False,
    "return_dict_in_generate": True,
    "output_scores": True,
}


def decode(model, inputs, config, *, num_beams=1, vision_mask=None, recorded=None, **parts):
    """Output object and trace of a generation with ReVisiT.

    `recorded`: a list that gets the vision states of the first prompt, step by step.
    """
    arguments = {} if vision_mask is None else {"vision_mask": vision_mask}
    with revisit.attach(model, config, **parts) as run:

        def record(_input_ids, scores):
            recorded.append(run.vision_states[0].double().numpy())
            return scores

        if recorded is not None:
            arguments["logits_processor"] = [record]
        output = model.generate(**inputs, **SETTINGS, **arguments, num_beams=num_beams)
    return output, run.trace


def new_tokens(output):
    return output.sequences[:, -len(output.scores) :].tolist()


@torch.no_grad()
def reported(model, inputs, tokens, unnormed=False):
    """What Transformers itself reports of a prompt that goes on with `tokens`: float64 hidden
    states of the prompt, layers + 1 of (S, d), and logits (steps, V)."""
    forced = iter(tokens)
    output = model.generate(
        **inputs,
        max_new_tokens=len(tokens),
        do_sample=False,
        return_dict_in_generate=True,
        output_hidden_states=True,
        output_logits=True,
        # Some models' `generate` does not pass a list of processors on, but this argument.
        prefix_allowed_tokens_fn=lambda row, ids: [next(forced)],
    )
    states = [state[0] for state in output.hidden_states[0]]
    if unnormed:
        states[-1] = text_decoder(model).module.norm(states[-1])
    logits = torch.cat(output.logits).double().numpy()
    return [state.double().numpy() for state in states], logits


def check(
    model,
    inputs,
    layers,
    *,
    token=IMAGE,
    finish=unchanged,
    unnormed=False,
    rounding=1e-4,
    **arguments,
):
    """A generation of one prompt equals the formulas on the hidden states that are reported."""
    config = ReVisiTConfig(layers=layers, alpha=ALPHA, trace=True)
    recorded = []
    output, (trace,) = decode(model, inputs, config, recorded=recorded, **arguments)
    states, logits = reported(model, inputs, new_tokens(output)[0], unnormed)
    head = output_embeddings(model)
    weight = head.weight.detach().double().numpy()
    bias = 0 if getattr(head, "bias", None) is None else head.bias.detach().double().numpy()

    def project(hidden):
        return finish(hidden @ weight.T + bias)

    unmasked = logits[0] > torch.finfo(torch.float32).min  # Chameleon writes no image tokens
    last = project(states[-1][-1])[unmasked]
    np.testing.assert_allclose(last, logits[0][unmasked], atol=rounding * np.abs(last).max())
    start = 2 if is_tied(model) else 0
    count = len(states) - 1
    named = {"last": [count], "all": [*range(start, count, 2), count]}
    indices = named[layers] if isinstance(layers, str) else layers
    mask = arguments.get("vision_mask", torch.isin(inputs["input_ids"], torch.tensor(token)))
    positions = mask[0].nonzero().squeeze(1).numpy()
    vision = np.concatenate([states[index][positions] for index in indices])
    for kept in recorded[-1:]:  # some models' `generate` passes no processors on
        np.testing.assert_allclose(kept, vision, atol=rounding * np.abs(vision).max())
    vision = project(vision)
    sizes = []
    for scores, step, z in zip(output.scores, trace, logits, strict=True):
        vocabulary = dense.constrain(z, ALPHA)
        log_p = dense.log_softmax(z[vocabulary])
        log_q = dense.log_softmax(vision.T[vocabulary])
        distances = dense.divergences(log_p, log_q, "ag")
        choice = indices.index(step.layer) * len(positions) + step.vision_token
        assert step.candidates == len(vocabulary)
        assert distances[choice] <= distances.min() + rounding
        assert step.divergence == pytest.approx(distances[choice], abs=rounding)
        refined = log_p + log_q[:, choice]
        np.testing.assert_allclose(scores[0, vocabulary], refined, atol=20 * rounding)
        assert (scores[0] > -1e4).sum() == len(vocabulary)
        assert step.refined_token == step.token == scores[0].argmax()
        sizes.append(len(vocabulary))
    assert max(sizes) > 2
    assert [step.token for step in trace] == new_tokens(output)[0]
    return output, trace
