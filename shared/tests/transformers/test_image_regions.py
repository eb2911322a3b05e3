"""A vision token's box is the part of the image that the token shows."""

import inspect

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as MAPPED,
)

import families
from marked_models import look, mark, painted, unmix
from releases import RELEASE
from revisit.transformers.image_regions import image_boxes, prompt_boxes
from revisit.transformers.vision_positions import patch_grid
from tiny_configs import BOS, IMAGE, VISION_END, VISION_START

LAST = 40
RED, BLUE = 0, 1  # the first and second word


def processor(name, **settings):
    if not hasattr(transformers, name):
        pytest.skip(f"this Transformers has no {name}")
    try:
        return getattr(transformers, name)(**settings)
    except ImportError as error:
        pytest.skip(str(error))


class Marked:
    """A marked model and its prompts."""

    def __init__(self, model, images):
        self.images = images
        self.model = unmix(model)
        self.known = inspect.signature(model.forward).parameters
        mark(model, self.inputs, LAST)

    def prepare(self, image):
        prepared = self.images(images=[image], return_tensors="pt")
        return {name: value for name, value in prepared.items() if name in self.known}

    def inputs(self, images):
        parts, ids = [], [BOS]
        for image in images:
            parts.append(self.prepare(image))
            count = len(families.image_features(self.model, parts[-1]))
            ids += [VISION_START, *[IMAGE] * count, VISION_END]
        inputs = families.text([*ids, LAST])
        for name in parts[0]:
            inputs[name] = torch.cat([part[name] for part in parts])
        if "mm_token_type_ids" in self.known:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).long()
        return inputs

    def seen(self, images, words=2):
        """The trace, and the image and box of each word."""
        inputs = self.inputs(images)
        trace = look(self.model, inputs, words)
        count = int((inputs["input_ids"] == IMAGE).sum())
        boxes = prompt_boxes(self.prepare, images, count, self.model.config)
        return trace, [boxes[step.vision_token] for step in trace]


LLAVA = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}


@pytest.fixture(scope="module")
def padded_llava():
    images = processor("LlavaImageProcessor", **LLAVA, do_pad=True)
    return Marked(families.make("llava"), images)


@pytest.fixture(scope="module")
def cropped_llava():
    return Marked(families.make("llava"), processor("CLIPImageProcessor", **LLAVA))


@pytest.fixture(scope="module")
def qwen():
    sizes = {"patch_size": 4, "merge_size": 2, "min_pixels": 64, "max_pixels": 64 * 64}
    return Marked(families.make("qwen2_5_vl"), processor("Qwen2VLImageProcessor", **sizes))


@pytest.fixture(scope="module")
def internvl():
    settings = {
        "size": {"height": 16, "width": 16},
        "crop_to_patches": True,
        "min_patches": 1,
        "max_patches": 6,
    }
    return Marked(families.make("internvl"), processor("GotOcr2ImageProcessor", **settings))


def close(box, expected, by=0.02):
    assert box == pytest.approx(expected, abs=by)


def test_the_square_padding_of_llava_is_undone(padded_llava):
    # A square of 64 with the image in rows 16 to 48; its vision tokens are cells of 16.
    image = painted((64, 32), red=(32, 0, 48, 16), blue=(0, 16, 16, 32))
    trace, (red, blue) = padded_llava.seen([image])
    assert [step.patch for step in trace] == [(0, 1, 2), (0, 2, 0)]
    close(red[1], (0.5, 0, 0.75, 0.5))
    close(blue[1], (0, 0.5, 0.25, 1))


def test_padding_shows_no_part_of_the_image(padded_llava):
    boxes = image_boxes(padded_llava.prepare, (64, 32), lambda *_: (4, 4))
    assert all(box[3] <= 0.02 for box in boxes[:4])
    assert all(box[1] >= 0.98 for box in boxes[12:])


def test_what_the_stock_processor_crops_off_is_not_drawn(cropped_llava):
    # The middle square, columns 16 to 48; its vision tokens are cells of 8.
    image = painted((64, 32), red=(16, 0, 24, 8), blue=(40, 24, 48, 32))
    trace, (red, blue) = cropped_llava.seen([image])
    assert [step.patch for step in trace] == [(0, 0, 0), (0, 3, 3)]
    close(red[1], (0.25, 0, 0.375, 0.25))
    close(blue[1], (0.625, 0.75, 0.75, 1))


@pytest.mark.parametrize("size", [(64, 64), (50, 33), (30, 61)])
def test_qwen_s_merged_patches_are_found_in_images_of_any_size(qwen, size):
    width, height = size
    _, rows, columns = qwen.prepare(painted(size))["image_grid_thw"][0].tolist()
    rows, columns = rows // 2, columns // 2
    wanted = [
        (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        for row, column in ((rows - 1, 1), (1, columns - 1))
    ]
    pixels = [
        tuple(round(edge * side) for edge, side in zip(box, (width, height) * 2, strict=True))
        for box in wanted
    ]
    image = painted(size, red=pixels[RED], blue=pixels[BLUE])
    trace, seen = qwen.seen([image])
    assert [step.patch for step in trace] == [(0, rows - 1, 1), (0, 1, columns - 1)]
    for (_, box), expected in zip(seen, wanted, strict=True):
        close(box, expected)


def test_of_several_images_the_right_one_is_told(qwen, padded_llava):
    first, second = painted((32, 16), blue=(8, 8, 16, 16)), painted((24, 40), red=(16, 32, 24, 40))
    trace, (red, blue) = qwen.seen([first, second])
    assert [step.image for step in trace] == [1, 0]
    assert (red[0], blue[0]) == (1, 0)
    close(red[1], (2 / 3, 0.8, 1, 1))
    close(blue[1], (0.25, 0.5, 0.5, 1))
    images = [painted((64, 32), red=(32, 0, 48, 16)), painted((32, 64), blue=(0, 48, 16, 64))]
    trace, (red, blue) = padded_llava.seen(images)
    assert [step.patch for step in trace] == [None, None]  # images or tiles: the inputs do not say
    assert (red[0], blue[0]) == (0, 1)
    close(red[1], (0.5, 0, 0.75, 0.5))
    close(blue[1], (0, 0.75, 0.5, 1))


def test_tiles_are_drawn_where_they_lie(internvl):
    # Two tiles of 64, each in cells of 32; the thumbnail's are as tall as half the image.
    image = painted((128, 64), red=(96, 32, 128, 64), blue=(32, 0, 64, 32))
    assert len(internvl.prepare(image)["pixel_values"]) == 3
    trace, (red, blue) = internvl.seen([image])
    assert [step.vision_token for step in trace] == [7, 1]
    assert [step.patch for step in trace] == [None, None]
    close(red[1], (0.75, 0.5, 1, 1))
    close(blue[1], (0.25, 0, 0.5, 0.5))
    boxes = prompt_boxes(internvl.prepare, [image], 12, internvl.model.config)
    close(boxes[8][1], (0, 0, 0.5, 0.5))


def test_vision_tokens_in_a_layout_that_is_not_known_are_refused(padded_llava):
    image = painted((64, 32))
    with pytest.raises(ValueError, match="17 vision tokens, but patch by patch its images make 16"):
        prompt_boxes(padded_llava.prepare, [image], 17, padded_llava.model.config)

    for change in (lambda pixels: pixels.flip(-1), lambda pixels: pixels.mT):  # mirrored, turned

        def prepare(image, change=change):
            return {"pixel_values": change(padded_llava.prepare(image)["pixel_values"])}

        with pytest.raises(ValueError, match="turned, mirrored or in another order"):
            prompt_boxes(prepare, [image], 16, padded_llava.model.config)
    with pytest.raises(ValueError, match="config does not name"):
        image_boxes(padded_llava.prepare, (8, 8), lambda *_: None)


def test_a_line_of_pixels_has_no_parts(qwen):
    with pytest.raises(ValueError, match="of 1 x 40 pixels no part can be told from another"):
        image_boxes(qwen, (1, 40), lambda height, width: (1, 1))


ROW_BY_ROW = [
    "aya_vision",
    "cohere2_vision",
    "deepseek_vl",
    "deepseek_vl_hybrid",
    "gemma3",
    "internvl",
    "janus",
    "llama4",
    "llava",
    "mistral3",
    "paligemma",
    "qianfan_ocr",
    "shieldgemma2",
    "vipllava",
]


@pytest.mark.parametrize("name", [name for name in ROW_BY_ROW if name in MAPPED])
@torch.no_grad()
def test_a_model_lays_its_vision_tokens_out_row_by_row(name):
    """A block of pixels changes the vision token whose cell it is, and no other."""
    if name == "llama4" and RELEASE < (5, 0):
        pytest.skip("this release's Llama 4 needs more than the image to give its features")
    family = families.FAMILIES[name]
    family = getattr(family, "family", family)  # of a broken one
    model = unmix(families.make(name))
    torch.manual_seed(0)
    image, _ = family.image(1)
    before = families.image_features(model, image)
    height, width = image["pixel_values"].shape[-2:]
    rows, columns = patch_grid(model.config, height, width)
    assert len(before) == rows * columns > 1
    for row in range(rows):
        for column in range(columns):
            pixels = image["pixel_values"].clone()
            high, wide = height // rows, width // columns
            pixels[..., row * high : (row + 1) * high, column * wide : (column + 1) * wide] += 1
            after = families.image_features(model, {**image, "pixel_values": pixels})
            moved = (after - before).abs().amax(1)
            assert (moved > 1e-4).nonzero().tolist() == [[row * columns + column]]
