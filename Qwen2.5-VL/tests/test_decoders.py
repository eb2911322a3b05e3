"""Other decoders than ReVisiT on Qwen2.5-VL, against whole passes without caches."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch

import revisit
from prompts import BOTH, END, FILM, IMAGE, NOTHING, ONE, PAD, START, THREE, VIDEO, batch
from revisit import PAIConfig, SIDConfig
from whole_passes import (
    ASKED,
    CONFIGS,
    added,
    expected,
    formula,
    inner_logits,
    premature,
    steered,
    with_noise,
)

PROMPTS = [NOTHING, ONE, THREE, FILM, BOTH]
BEAMS = [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}]
PIXELS = ("pixel_values", "pixel_values_videos")


def decode(model, name, prompts, **settings):
    """New tokens of each row of a padded batch."""
    inputs = batch(prompts)
    second = {key: -0.6 * inputs[key] for key in PIXELS if key in inputs}
    given = {"second_inputs": second} if name == "RITUAL" and second else {}
    if name in SECOND:
        given = {"second_inputs": batch([SECOND[name](prompt) for prompt in prompts])}
    settings = {"do_sample": False, "pad_token_id": PAD, **ASKED, **settings}
    with revisit.attach(model, CONFIGS[name]):
        output = model.generate(**inputs, **given, **settings)
    return output[:, inputs["input_ids"].shape[1] :].tolist()


def described(prompt):
    """One description in place of all images and videos."""
    words = [word for word in prompt[0] if word not in (IMAGE, VIDEO)]
    first = next((n for n, word in enumerate(prompt[0]) if word in (IMAGE, VIDEO)), 0)
    told = [60, 61, 62] if len(words) < len(prompt[0]) else []
    return [*words[:first], *told, *words[first:]], [], []


# The prompts of the second streams that are given: ICD's have the images too.
SECOND = {"ICD": lambda prompt: ([70, 71, 72, 73, *prompt[0]], *prompt[1:]), "CODE": described}


def noisy(inputs):
    """The pixel values with noise, image by image."""
    told = {}
    for name, grids in zip(PIXELS, ("image_grid_thw", "video_grid_thw"), strict=True):
        if name in inputs:
            images = inputs[name].split(inputs[grids].prod(1).tolist())
            told[name] = torch.cat([with_noise(image) for image in images])
    return told


def reference(model, name, prompt, **settings):
    """The same of one prompt, by whole passes."""
    inputs = batch([prompt])

    @torch.no_grad()
    def whole(tokens, words=None, **pixels):
        given = pixels if "input_ids" in pixels else {**inputs, **pixels}
        if words is not None:
            given = {"input_ids": torch.tensor([words])}
        ids = torch.cat([given["input_ids"][0], tokens]).unsqueeze(0)
        given.update(input_ids=ids, attention_mask=torch.ones_like(ids))
        model.rope_deltas = None
        output = model(**given, use_cache=False, output_hidden_states=True)
        return output.logits[0, -1].double(), output.hidden_states

    layers, nothing = model.model.layers, torch.zeros(0, dtype=torch.long)
    text = [word for word in prompt[0] if word not in (IMAGE, VIDEO, START, END)]
    steering = nullcontext
    if name == "VISTA" and text != prompt[0]:
        directions = added(layers, lambda: whole(nothing), lambda: whole(nothing, words=text))
        steering = partial(steered, layers, directions)

    def decide(tokens):
        with steering():
            logits, states = whole(tokens)
        if name == "VCD":
            second, _ = whole(tokens, **noisy(inputs))
        elif name == "RITUAL":
            turned = {key: -0.6 * inputs[key] for key in PIXELS if key in inputs}
            second, _ = whole(tokens, **turned)
        elif name in SECOND:
            second, _ = whole(tokens, **batch([SECOND[name](prompt)]))
        elif name in ("DeCo", "VISTA"):
            last = [state[0, -1] for state in states]
            second = inner_logits(name, last, model.model.norm, model.lm_head.weight)
        elif name in ("M3ID", "PAI"):
            second, _ = whole(tokens, words=text)
        else:
            weight = model.lm_head.weight.double()
            layers = range(0, model.config.num_hidden_layers // 2, 2)
            second = premature(logits, [weight @ states[k][0, -1].double() for k in layers])
        return formula(name, logits, second, len(tokens))

    return expected(decide, model.config.vocab_size, **settings)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("settings", BEAMS, ids=str)
def test_tokens_are_those_of_two_whole_passes_a_step(golden_model, name, settings):
    wanted = [reference(golden_model, name, prompt, **settings) for prompt in PROMPTS]
    together = decode(golden_model, name, PROMPTS, **settings)
    assert together == [tokens for row in wanted for tokens in row]
    alone = [decode(golden_model, name, [prompt], **settings) for prompt in PROMPTS]
    assert alone == wanted


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}], ids=str)
def test_without_a_cache_the_same_tokens(golden_model, name, settings):
    wanted = decode(golden_model, name, PROMPTS, **settings)
    assert decode(golden_model, name, PROMPTS, use_cache=False, **settings) == wanted


@pytest.mark.parametrize("name", CONFIGS)
def test_sampling_draws_from_the_reference_s_distribution(golden_model, name):
    asked = {"do_sample": True, "top_k": 0, "num_return_sequences": 3}
    torch.manual_seed(3)
    tokens = decode(golden_model, name, [THREE], **asked)
    torch.manual_seed(3)
    assert tokens == reference(golden_model, name, THREE, **asked)


@pytest.mark.parametrize("kind", [PAIConfig, SIDConfig])
def test_attention_of_this_release_is_not_changed(golden_model, kind):
    with pytest.raises(ValueError, match="ALL_ATTENTION_FUNCTIONS: pass alpha=0"):
        revisit.enable(golden_model, kind())
