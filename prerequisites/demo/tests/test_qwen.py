"""The committed Qwen2.5-VL: its format, and that what the trainer wrote is what users load."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

if not hasattr(transformers, "Qwen2_5_VLForConditionalGeneration"):
    pytest.skip("needs the environment of Qwen2.5-VL", allow_module_level=True)

import numpy as np
from qwen_vl_utils import process_vision_info
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from captions import BACKDROPS, QUESTION, named_things
from qwen_processor import GRID, IMAGE_SIDE, SPECIAL
from scenes import BACKGROUNDS, THINGS, font_path, sample_scene
from train_qwen import BACKDROP_WORDS, Prompt, as_patches, describe, see, targets

DEMO = Path(__file__).resolve().parents[1]
CHECKPOINT = DEMO / "qwen-tiny"


@pytest.fixture(scope="module")
def model():
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(CHECKPOINT).eval()


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(CHECKPOINT, padding_side="left", use_fast=False)


def pictures(count):
    files = sorted((DEMO / "coco" / "val2014").iterdir())[:count]
    return [Image.open(file).convert("RGB") for file in files]


def inputs_for(processor, images):
    limits = {
        name: getattr(processor.image_processor, name) for name in ("min_pixels", "max_pixels")
    }
    conversations = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": image, **limits},
                    {"type": "text", "text": QUESTION},
                ],
            }
        ]
        for image in images
    ]
    prompts = processor.apply_chat_template(conversations, add_generation_prompt=True)
    resized, _ = process_vision_info(conversations)
    return processor(text=prompts, images=resized, padding=True, return_tensors="pt")


def test_the_folder_has_the_files_and_the_types_of_the_published_model():
    config = json.loads((CHECKPOINT / "config.json").read_text("utf-8"))
    assert config["model_type"] == "qwen2_5_vl"
    assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]
    assert not config["tie_word_embeddings"]
    images = json.loads((CHECKPOINT / "preprocessor_config.json").read_text("utf-8"))
    assert images["image_processor_type"] == "Qwen2VLImageProcessor"
    assert images["processor_class"] == "Qwen2_5_VLProcessor"
    tokens = json.loads((CHECKPOINT / "tokenizer_config.json").read_text("utf-8"))
    assert tokens["tokenizer_class"] == "Qwen2Tokenizer"
    assert tokens["chat_template"]
    for name in ("generation_config.json", "tokenizer.json", "vocab.json", "merges.txt"):
        assert (CHECKPOINT / name).is_file()
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) < 8e6


@pytest.mark.parametrize("fast", [True, False])
def test_every_object_word_is_one_token_and_answers_come_back_whole(fast):
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT, use_fast=fast)
    for word in " ".join(thing.noun for thing in THINGS).split():
        assert len(tokenizer(f" {word}").input_ids) == 1, word
    for text in SPECIAL:
        assert len(tokenizer(text).input_ids) == 1, text
    references = (DEMO / "coco" / "annotations" / "captions_val2014.json").read_text("utf-8")
    texts = [each["caption"] for each in json.loads(references)["annotations"][:50]]
    for text in [*texts, "Größe: 3 m²\n"]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_chat_template_gives_the_format_of_qwen(processor):
    content = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": content}]
    asked = (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        "<|vision_start|><|video_pad|><|vision_end|>What?<|im_end|>\n"
    )
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    begin = "<|im_start|>assistant\n"
    for template in (processor.apply_chat_template, processor.tokenizer.apply_chat_template):
        prompt = template(messages, add_generation_prompt=True, tokenize=False)
        assert prompt == system + asked + begin
    own = [
        {"role": "system", "content": "Be brief."},
        *messages,
        {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
    ]
    assert processor.apply_chat_template(own) == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n{asked}{begin}A dog.<|im_end|>\n"
    )


def test_the_model_is_told_the_ids_of_its_special_tokens(model, processor):
    token = processor.tokenizer.convert_tokens_to_ids
    config = model.config
    assert config.vocab_size == len(processor.tokenizer)
    assert config.image_token_id == token("<|image_pad|>")
    assert config.video_token_id == token("<|video_pad|>")
    assert config.vision_start_token_id == token("<|vision_start|>")
    assert token("<|im_end|>") in model.generation_config.eos_token_id
    assert model.generation_config.pad_token_id == token("<|endoftext|>")
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()


@torch.no_grad()
def test_captions_are_those_of_the_training_and_name_things(model, processor):
    images = pictures(4)
    inputs = inputs_for(processor, images)
    prompt = Prompt(model, processor)
    assert inputs.input_ids.tolist() == [prompt.tokens.tolist()] * len(images)

    resized = [image.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC) for image in images]
    patches = as_patches(np.stack([np.asarray(image) for image in resized]), processor)
    features = see(model.visual, patches)
    expected = model.visual(inputs.pixel_values, inputs.image_grid_thw)
    torch.testing.assert_close(features.flatten(0, 1), expected, rtol=1e-4, atol=1e-4)

    found = model.generate(**inputs, max_new_tokens=90, do_sample=False)
    texts = processor.batch_decode(found[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert texts == describe(model, prompt, features)
    assert all(named_things(text) for text in texts)


def test_a_small_picture_has_fewer_vision_tokens_and_a_large_one_no_more_than_the_limit(processor):
    sizes = [(256, 256), (60, 90), (640, 480)]
    inputs = inputs_for(processor, [Image.new("RGB", size) for size in sizes])
    shown = (inputs.input_ids == processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum(1)
    assert shown[0] == GRID**2
    assert 4 <= shown[1] < shown[2] <= GRID**2


def test_a_target_says_the_cell_and_more_softly_the_picture():
    try:
        font_path()
    except FileNotFoundError:
        pytest.skip("a scene needs the font Noto Color Emoji")
    nothing = len(THINGS)
    behind = nothing + list(BACKGROUNDS).index(sample_scene("train", 7).background)
    wanted = targets("train", np.array([7]), np.array([[0, 5, nothing, nothing]]))[0]
    torch.testing.assert_close(wanted.sum(-1), torch.ones(4))
    assert wanted.argmax(-1).tolist() == [0, 5, behind, behind]
    assert (wanted[2:, [0, 5]] > 0).all()
    assert (wanted > 0).sum(-1).tolist() == [2, 2, 3, 3]
    assert set(BACKDROP_WORDS) == set(BACKGROUNDS) == set(BACKDROPS)
    assert all(word in " ".join(BACKDROPS[name]) for name, word in BACKDROP_WORDS.items())


def test_the_training_log_tells_how_it_was_made():
    lines = (CHECKPOINT / "training_log.jsonl").read_text("utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    assert {entry["stage"] for entry in entries} == {"tower", "captions", "sharpen", "finish"}
    last = [entry for entry in entries if "dev" in entry][-1]["dev"]
    assert last["Recall"] >= 0.65
