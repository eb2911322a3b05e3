"""Models of a stock Transformers: how they are found, and what they are given to read."""

import time

import huggingface_hub
import numpy as np
import pytest
import transformers
from PIL import Image

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


def clip():
    """A processor that makes squares of 8 pixels."""
    shape = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    template = (
        "{% for part in messages[0].content %}{% if part.type == 'image' %}<|image_pad|>{% endif %}"
    )
    return transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(**shape),
        transformers.AutoTokenizer.from_pretrained(demo_model()),
        patch_size=8,
        vision_feature_select_strategy="full",
        chat_template=template + "{% endfor %}",
        image_token="<|image_pad|>",
    )


@pytest.mark.parametrize("size", [(3, 3), (1, 1), (4, 4), (8, 3), (8, 1), (3, 8), (1, 8)])
def test_a_side_as_long_as_there_are_channels_swaps_no_colours(size):
    processor = clip()
    images = [[Image.new("RGB", each, (250, 120, 10))] for each in (size, (9, 9))]
    pixels = np.asarray(chat_inputs(processor, images, ["What?"] * 2)["pixel_values"])
    settings = processor.image_processor
    mean, std = (np.array(v)[:, None, None] for v in (settings.image_mean, settings.image_std))
    colours = (pixels * std + mean) * 255
    assert colours == pytest.approx(np.full_like(colours, 1) * [[[250]], [[120]], [[10]]], abs=1.5)
