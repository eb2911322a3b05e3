"""Other decoders than ReVisiT on LLaVA-1.5, against whole passes without caches."""

import pytest
import torch

import revisit
import whole_passes
from llava import IMAGE_TOKEN_INDEX, pad_prompts
from revisit import PAIConfig, RITUALConfig, SIDConfig
from whole_passes import ASKED, CONFIGS, with_noise

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


# The second prompts of ICD, which have the images too, and of CODE.
SECOND = {"ICD": lambda prompt: [1, 70, 71, 72, 73, *prompt[1:]], "CODE": described}


def images_of(pixels):
    counts = [prompt.count(IMAGE) for prompt in PROMPTS]
    return pixels[: sum(counts)].split(counts)


def decode(model, name, prompts, images, **settings):
    """New tokens of each row of a padded batch."""
    ids, mask = pad_prompts(prompts, 0)
    pixels = torch.cat(list(images))
    inputs = {"images": pixels} if len(pixels) else {}
    second = {"images": -0.6 * pixels} if name == "RITUAL" and inputs else None
    if name in SECOND:
        second = dict(inputs) if name == "ICD" else {}
        others = pad_prompts([SECOND[name](prompt) for prompt in prompts], 0)
        second["input_ids"], second["attention_mask"] = others
    if second:
        inputs["second_inputs"] = second
    settings = {"attention_mask": mask, **ASKED, **inputs, **settings}
    with revisit.attach(model, CONFIGS[name]):
        return model.generate(ids, **settings)[:, ids.shape[1] :].tolist()


class Reference(whole_passes.Reference):
    """The decoder of a prompt and its images (n, 3, H, W)."""

    def __init__(self, model, name, prompt, images):
        super().__init__(model, name, image=len(images) > 0)
        self.prompt = prompt
        self.images = images

    def run(self, stream, tokens):
        prompt, images = self.prompt, self.images
        if stream == "noisy" and len(images):
            images = torch.stack([with_noise(image) for image in images])
        elif stream == "transformed":
            images = -0.6 * images
        elif stream == "text":
            prompt, images = [word for word in prompt if word != IMAGE], images[:0]
        elif stream == "rewritten":
            prompt = SECOND[self.name](prompt)
            images = images if self.name == "ICD" else images[:0]
        ids = torch.cat([torch.tensor(prompt), tokens]).unsqueeze(0)
        images = images if len(images) else None
        return self.model(ids, images=images, use_cache=False, output_hidden_states=True)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("settings", BEAMS, ids=str)
def test_tokens_are_those_of_two_whole_passes_a_step(small_model, pixels, name, settings):
    images = images_of(pixels)
    rows = list(zip(PROMPTS, images, strict=True))
    wanted = [Reference(small_model, name, *row).generate(**settings) for row in rows]
    together = decode(small_model, name, PROMPTS, images, **settings)
    assert together == [tokens for row in wanted for tokens in row]
    alone = [decode(small_model, name, [prompt], [its], **settings) for prompt, its in rows]
    assert alone == wanted


@pytest.mark.parametrize("name", CONFIGS)
def test_the_golden_model_s_too(golden_model, golden_images, name):
    prompt, image = [1, 5, 7, 9, IMAGE, 11, 13], golden_images["image_21"]
    wanted = Reference(golden_model, name, prompt, image).generate()
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
    assert tokens == Reference(small_model, name, PROMPTS[0], pixels[:1]).generate(**asked)


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
