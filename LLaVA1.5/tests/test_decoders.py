"""Other decoders than ReVisiT on LLaVA-1.5, against whole passes without caches."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch

import revisit
from llava import IMAGE_TOKEN_INDEX, pad_prompts
from revisit import PAIConfig, RITUALConfig, SIDConfig
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

IMAGE = IMAGE_TOKEN_INDEX
PROMPTS = [
    [1, 5, 7, IMAGE, 11, 13],
    [1, IMAGE, IMAGE, 30, IMAGE, 40, 50, 60],
    [1, 21, 22, 23, 24],
    [1, IMAGE, IMAGE, 9],
]
BEAMS = [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}]


def described(prompt):
    """One description in place of all images."""
    if IMAGE not in prompt:
        return prompt
    first = prompt.index(IMAGE)
    return [*prompt[:first], 60, 61, 62, *(word for word in prompt[first:] if word != IMAGE)]


# The prompts of the second streams that are given: ICD's have the images too.
SECOND = {"ICD": lambda prompt: [1, 70, 71, 72, 73, *prompt[1:]], "CODE": described}


def images_of(pixels):
    counts = [prompt.count(IMAGE) for prompt in PROMPTS]
    return pixels[: sum(counts)].split(counts)


def decode(model, name, prompts, images, **settings):
    """New tokens of each row of a padded batch."""
    ids, mask = pad_prompts(prompts, 0)
    stacked = torch.cat(list(images))
    given = {"images": stacked} if len(stacked) else {}
    if name == "RITUAL" and given:
        given["second_inputs"] = {"images": -0.6 * stacked}
    if name in SECOND:
        second, second_mask = pad_prompts([SECOND[name](prompt) for prompt in prompts], 0)
        seen = given if name == "ICD" else {}
        given = {**given, "second_inputs": {**seen, "input_ids": second}}
        given["second_inputs"]["attention_mask"] = second_mask
    settings = {"attention_mask": mask, **ASKED, **given, **settings}
    with revisit.attach(model, CONFIGS[name]):
        return model.generate(ids, **settings)[:, ids.shape[1] :].tolist()


def reference(model, name, prompt, images, **settings):
    """The same of one prompt, by whole passes."""

    @torch.no_grad()
    def whole(words, tokens, pixels):
        ids = torch.cat([torch.tensor(words), tokens]).unsqueeze(0)
        given = pixels if len(pixels) else None
        output = model(ids, images=given, use_cache=False, output_hidden_states=True)
        return output.logits[0, -1].double(), output.hidden_states

    layers, nothing = model.model.layers, torch.zeros(0, dtype=torch.long)
    text = [word for word in prompt if word != IMAGE]
    steering = nullcontext
    if name == "VISTA" and len(images):
        directions = added(
            layers,
            lambda: whole(prompt, nothing, images),
            lambda: whole(text, nothing, images[:0]),
        )
        steering = partial(steered, layers, directions)

    def decide(tokens):
        with steering():
            logits, states = whole(prompt, tokens, images)
        if name == "VCD":
            noisy = [with_noise(image) for image in images]
            second, _ = whole(prompt, tokens, torch.stack(noisy) if noisy else images)
        elif name == "RITUAL":
            second, _ = whole(prompt, tokens, -0.6 * images)
        elif name == "ICD":
            second, _ = whole(SECOND[name](prompt), tokens, images)
        elif name == "CODE":
            second, _ = whole(SECOND[name](prompt), tokens, images[:0])
        elif name in ("DeCo", "VISTA"):
            last = [state[0, -1] for state in states]
            second = inner_logits(name, last, model.model.norm, model.lm_head.weight)
        elif name in ("M3ID", "PAI"):
            second, _ = whole(text, tokens, images[:0])
        else:
            weight = model.lm_head.weight.double()
            layers = range(0, max(1, model.config.num_hidden_layers // 2), 2)
            second = premature(logits, [weight @ states[k][0, -1].double() for k in layers])
        return formula(name, logits, second, len(tokens))

    return expected(decide, model.config.vocab_size, **settings)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("settings", BEAMS, ids=str)
def test_tokens_are_those_of_two_whole_passes_a_step(small_model, pixels, name, settings):
    images = images_of(pixels)
    rows = list(zip(PROMPTS, images, strict=True))
    wanted = [reference(small_model, name, *row, **settings) for row in rows]
    together = decode(small_model, name, PROMPTS, images, **settings)
    assert together == [tokens for row in wanted for tokens in row]
    alone = [decode(small_model, name, [prompt], [own], **settings) for prompt, own in rows]
    assert alone == wanted


@pytest.mark.parametrize("name", CONFIGS)
def test_the_golden_model_s_too(golden_model, golden_images, name):
    prompt, image = [1, 5, 7, 9, IMAGE, 11, 13], golden_images["image_21"]
    wanted = reference(golden_model, name, prompt, image)
    assert decode(golden_model, name, [prompt], [image]) == wanted


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}], ids=str)
def test_without_a_cache_the_same_tokens(small_model, pixels, name, settings):
    images = images_of(pixels)
    wanted = decode(small_model, name, PROMPTS, images, **settings)
    assert decode(small_model, name, PROMPTS, images, use_cache=False, **settings) == wanted


@pytest.mark.parametrize("name", CONFIGS)
def test_sampling_draws_from_the_reference_s_distribution(small_model, pixels, name):
    asked = {"do_sample": True, "top_k": 0, "num_return_sequences": 3}
    torch.manual_seed(3)
    tokens = decode(small_model, name, PROMPTS[:1], [pixels[:1]], **asked)
    torch.manual_seed(3)
    assert tokens == reference(small_model, name, PROMPTS[0], pixels[:1], **asked)


@pytest.mark.parametrize("name", ["VCD", "RITUAL"])
def test_images_come_in_every_form(small_model, pixels, name):
    ids, mask = pad_prompts([PROMPTS[3], [1, 5, IMAGE, 8, IMAGE, 4]], 0)
    results = []
    for form in (
        lambda images: images,
        lambda images: images.unflatten(0, (2, 2)),
        list,
        lambda images: [images[:2], images[2:]],
    ):
        second = {"second_inputs": {"images": form(-0.6 * pixels[:4])}} if name == "RITUAL" else {}
        with revisit.attach(small_model, CONFIGS[name]):
            results.append(
                small_model.generate(
                    ids, attention_mask=mask, images=form(pixels[:4]), max_new_tokens=4, **second
                ).tolist()
            )
    assert all(result == results[0] for result in results)


def test_ritual_says_what_to_pass(small_model, pixels):
    with (
        pytest.raises(ValueError, match=r"second_inputs=\{'images': \.\.\.\} .*second_image"),
        revisit.attach(small_model, RITUALConfig()),
    ):
        small_model.generate(torch.tensor([PROMPTS[0]]), images=pixels[:1], max_new_tokens=2)


@pytest.mark.parametrize("kind", [PAIConfig, SIDConfig])
def test_attention_of_this_release_is_not_changed(small_model, kind):
    with pytest.raises(ValueError, match="ALL_ATTENTION_FUNCTIONS: pass alpha=0"):
        revisit.enable(small_model, kind())
