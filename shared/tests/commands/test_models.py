"""Models of a stock Transformers: how they are found, and what they are given to read."""

import time

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers.processors import TemplateProcessing

from releases import RELEASE
from revisit.commands.describe import demo_model
from revisit.commands.engines.transformers import chat_inputs, load_model

if RELEASE < (4, 57):
    pytest.skip("written for stock releases", allow_module_level=True)


def test_a_hub_id_that_nobody_answers_for_is_said_at_once(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(OSError, match="no folder no-such/model here, and the hub does not give"):
        load_model("no-such/model", "cpu")
    assert time.monotonic() - began < 5


TEMPLATE = (
    "{{ bos_token }}{% for part in messages[0].content %}{% if part.type == 'image' %}"
    "<|image_pad|>{% else %}{{ part.text }}{% endif %}{% endfor %}"
)


def clip():
    """A processor that makes squares of 8 pixels; tokenizer and template begin a prompt by <s>."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_model())
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = ("<s>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", None, [bos])
    shape = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    return transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(**shape),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
        image_token="<|image_pad|>",
    )


def test_a_template_that_begins_the_prompt_is_read_as_transformers_reads_it():
    processor, image = clip(), Image.new("RGB", (9, 9))
    questions = ["Why?", "Is there a dog, a bear or any other animal in the image?"]
    batch = chat_inputs(processor, [[image]] * 2, questions)
    for question, ids, mask in zip(
        questions, batch["input_ids"], batch["attention_mask"], strict=True
    ):
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        alone = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        assert torch.equal(ids[mask.bool()], alone["input_ids"][0])
        assert (ids == processor.tokenizer.bos_token_id).sum() == 1


@pytest.mark.parametrize("size", [(3, 3), (1, 1), (4, 4), (8, 3), (8, 1), (3, 8), (1, 8)])
def test_a_side_as_long_as_there_are_channels_swaps_no_colours(size):
    processor = clip()
    images = [[Image.new("RGB", each, (250, 120, 10))] for each in (size, (9, 9))]
    pixels = np.asarray(chat_inputs(processor, images, ["What?"] * 2)["pixel_values"])
    settings = processor.image_processor
    mean, std = (np.array(v)[:, None, None] for v in (settings.image_mean, settings.image_std))
    colours = (pixels * std + mean) * 255
    assert colours == pytest.approx(np.full_like(colours, 1) * [[[250]], [[120]], [[10]]], abs=1.5)
