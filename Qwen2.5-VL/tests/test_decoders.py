"""Other decoders than ReVisiT on Qwen2.5-VL, against whole passes without caches."""

import pytest
import torch

import revisit
import whole_passes
from prompts import BOTH, END, FILM, IMAGE, NOTHING, ONE, PAD, START, THREE, VIDEO, batch
from revisit import PAIConfig, SIDConfig
from whole_passes import ASKED, CONFIGS, with_noise

PROMPTS = [NOTHING, ONE, THREE, FILM, BOTH]
BEAMS = [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}]
PIXELS = ("pixel_values", "pixel_values_videos")


def decode(model, name, prompts, **settings):
    """New tokens of each row of a padded batch."""
    inputs = batch(prompts)
    pixels = {key: -0.6 * inputs[key] for key in PIXELS if key in inputs}
    second = {"second_inputs": pixels} if name == "RITUAL" and pixels else {}
    if name in SECOND:
        second = {"second_inputs": batch([SECOND[name](prompt) for prompt in prompts])}
    settings = {"do_sample": False, "pad_token_id": PAD, **ASKED, **settings}
    with revisit.attach(model, CONFIGS[name]):
        output = model.generate(**inputs, **second, **settings)
    return output[:, inputs["input_ids"].shape[1] :].tolist()


def described(prompt):
    """One description in place of all images and videos."""
    words = [word for word in prompt[0] if word not in (IMAGE, VIDEO)]
    first = next((n for n, word in enumerate(prompt[0]) if word in (IMAGE, VIDEO)), 0)
    description = [60, 61, 62] if len(words) < len(prompt[0]) else []
    return [*words[:first], *description, *words[first:]], [], []


# The second prompts of ICD, which have the images too, and of CODE.
SECOND = {"ICD": lambda prompt: ([70, 71, 72, 73, *prompt[0]], *prompt[1:]), "CODE": described}


def noisy(inputs):
    """The pixel values with noise, image by image."""
    pixels = {}
    for name, grids in zip(PIXELS, ("image_grid_thw", "video_grid_thw"), strict=True):
        if name in inputs:
            images = inputs[name].split(inputs[grids].prod(1).tolist())
            pixels[name] = torch.cat([with_noise(image) for image in images])
    return pixels


class Reference(whole_passes.Reference):
    """The decoder of a prompt with its images and videos."""

    def __init__(self, model, name, prompt):
        self.text = [word for word in prompt[0] if word not in (IMAGE, VIDEO, START, END)]
        super().__init__(model, name, image=self.text != prompt[0])
        self.prompt = prompt

    def run(self, stream, tokens):
        inputs = batch([SECOND[self.name](self.prompt) if stream == "rewritten" else self.prompt])
        if stream == "noisy":
            inputs |= noisy(inputs)
        elif stream == "transformed":
            inputs |= {key: -0.6 * inputs[key] for key in PIXELS if key in inputs}
        elif stream == "text":
            inputs = {"input_ids": torch.tensor([self.text])}
        ids = torch.cat([inputs["input_ids"][0], tokens]).unsqueeze(0)
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        self.model.rope_deltas = None
        return self.model(**inputs, use_cache=False, output_hidden_states=True)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("settings", BEAMS, ids=str)
def test_tokens_are_those_of_two_whole_passes_a_step(golden_model, name, settings):
    wanted = [Reference(golden_model, name, prompt).generate(**settings) for prompt in PROMPTS]
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
    assert tokens == Reference(golden_model, name, THREE).generate(**asked)


@pytest.mark.parametrize("kind", [PAIConfig, SIDConfig])
def test_attention_of_this_release_is_not_changed(golden_model, kind):
    with pytest.raises(ValueError, match="ALL_ATTENTION_FUNCTIONS: pass alpha=0"):
        revisit.enable(golden_model, kind())
