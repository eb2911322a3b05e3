"""The second streams of VCD, RITUAL and M3ID: what they take, and what they refuse."""

import pytest
import torch
import transformers

import families
from decoding import CONFIGS, decode, made, refused, second, together
from releases import RELEASE
from revisit import DoLaConfig, ReVisiTConfig, RITUALConfig, VCDConfig


def test_ritual_says_what_to_pass():
    model, _, rows = made("llava")
    refused(
        model, RITUALConfig(), rows[0], r"second_inputs=\{'pixel_values': \.\.\.\} .*second_image"
    )


def test_second_inputs_must_be_as_large_and_known():
    model, _, rows = made("qwen2_5_vl")
    fewer = {"second_inputs": {"pixel_values": rows[1]["pixel_values"][:4]}}
    refused(model, RITUALConfig(), rows[1], "as many vision tokens", **fewer)
    grids = {"second_inputs": {"image_grid_thw": rows[1]["image_grid_thw"][:, [0, 2, 1]]}}
    refused(model, RITUALConfig(), rows[1], "as many vision tokens", **grids)
    unknown = {"second_inputs": {"pixels": rows[1]["pixel_values"]}}
    refused(model, VCDConfig(), rows[1], "has pixels, which is not among the arguments", **unknown)
    known = {"second_inputs": {"pixel_values": rows[1]["pixel_values"]}}
    refused(model, ReVisiTConfig(), rows[1], "no second stream", **known)
    refused(model, DoLaConfig(), rows[1], "no second stream", **known)


@pytest.mark.skipif(RELEASE < (4, 51), reason="this release cannot read a prompt in chunks")
@pytest.mark.parametrize("config", [VCDConfig(), RITUALConfig()], ids=["VCD", "RITUAL"])
@pytest.mark.parametrize("route", ["argument", "generation config"])
def test_second_images_in_chunks_are_refused_before_anything_runs(config, route):
    model, _, rows = made("llava")
    asked = {"prefill_chunk_size": 3}
    if route == "generation config":
        asked = {"generation_config": transformers.GenerationConfig(**asked)}
    ran, images = [], second("RITUAL", rows[0])
    handle = model.register_forward_pre_hook(lambda *_: ran.append(1))
    refused(model, config, rows[0], "leave out prefill_chunk_size", **images, **asked)
    handle.remove()
    assert not ran


def test_a_second_prompt_of_the_caller_is_read():
    model, _, rows = made("qwen2_5_vl")
    prompt = torch.tensor(
        [[word for word in rows[1]["input_ids"][0].tolist() if word > 8 or word == 1]]
    )
    same = {"second_inputs": {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}}
    assert decode(model, "M3ID", rows[1]) == decode(model, "M3ID", rows[1], **same)
    short = {"second_inputs": {"input_ids": prompt[:, :2]}}
    assert decode(model, "M3ID", rows[1]) != decode(model, "M3ID", rows[1], **short)


@pytest.mark.parametrize("name", ["VCD", "RITUAL", "M3ID"])
def test_a_model_that_hands_its_prompt_over_is_refused(name):
    model = families.make("blip-2")
    row = families.made("blip-2")[1][0]
    message = "hands the prompt over to another model"
    refused(model, CONFIGS[name], row, message, **second(name, row))


def test_noise_does_not_reach_what_an_image_is_filled_up_with():
    model, _, rows = made("pixtral")  # of different sizes, in one tensor
    alone = [decode(model, "VCD", row)[0] for row in rows]
    assert decode(model, "VCD", together(rows)) == alone
