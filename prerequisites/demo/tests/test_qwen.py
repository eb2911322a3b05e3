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

from captions import BACKDROPS, QUESTION, WORDS, named_things, question
from qwen_processor import GRID, IMAGE_SIDE, SPECIAL
from scenes import BACKGROUNDS, THINGS
from train_qwen import TinyQwen
from training import IGNORE, OWN, SHARED, naming_loss, targets

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
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) < 12e6


@pytest.mark.parametrize("fast", [True, False])
def test_every_object_word_is_one_token_and_answers_come_back_whole(fast):
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT, use_fast=fast)
    for word in " ".join(WORDS).split():
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
    with_system = [
        {"role": "system", "content": "Be brief."},
        *messages,
        {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
    ]
    assert processor.apply_chat_template(with_system) == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n{asked}{begin}A dog.<|im_end|>\n"
    )


def test_the_config_has_the_ids_of_the_special_tokens(model, processor):
    token = processor.tokenizer.convert_tokens_to_ids
    config = model.config
    assert config.vocab_size == len(processor.tokenizer)
    assert config.image_token_id == token("<|image_pad|>")
    assert config.video_token_id == token("<|video_pad|>")
    assert config.vision_start_token_id == token("<|vision_start|>")
    assert config.bos_token_id == token("<|endoftext|>")  # as published; none is ever added
    assert token("<|im_end|>") in model.generation_config.eos_token_id
    assert model.generation_config.pad_token_id == token("<|endoftext|>")
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()


@torch.no_grad()
def test_captions_are_those_of_the_training_and_name_things(model, processor):
    images = pictures(4)
    inputs = inputs_for(processor, images)
    trained = TinyQwen(model, processor)
    vision = [model.config.image_token_id] * GRID**2
    row = [*trained.before.tolist(), *vision, *trained.after.tolist()]
    assert inputs.input_ids.tolist() == [row] * len(images)

    resized = [image.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC) for image in images]
    features = trained.see(np.stack([np.asarray(image) for image in resized]))
    expected = model.visual(inputs.pixel_values, inputs.image_grid_thw)
    torch.testing.assert_close(features.flatten(0, 1), expected, rtol=1e-4, atol=1e-4)

    found = model.generate(**inputs, max_new_tokens=48, do_sample=False)
    texts = processor.batch_decode(found[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert texts == trained.describe(features)
    assert all(named_things(text) for text in texts)


def test_a_question_of_pope_is_asked_as_in_the_training(model, processor):
    asked = question("teddy bear")
    content = [{"type": "image"}, {"type": "text", "text": asked}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(text=[text], images=pictures(1), return_tensors="pt")
    prompt = TinyQwen(model, processor)
    (tokens,), (labels,) = prompt.rows([[(asked, "No")]])
    answer = labels != IGNORE
    vision = [model.config.image_token_id] * GRID**2
    expected = [*prompt.before.tolist(), *vision, *tokens[~answer].tolist()]
    assert inputs.input_ids[0].tolist() == expected
    assert processor.tokenizer.decode(tokens[answer]) == "No<|im_end|>"


def test_heads_have_a_size_that_every_kernel_knows(model):
    config = model.config
    assert config.hidden_size / config.num_attention_heads == 32
    assert config.vision_config.hidden_size / config.vision_config.num_heads == 32
    assert sum(weight.numel() for weight in model.parameters()) <= 3e6


def test_a_small_picture_has_fewer_vision_tokens_and_a_large_one_no_more_than_the_limit(processor):
    sizes = [(256, 256), (60, 90), (640, 480)]
    inputs = inputs_for(processor, [Image.new("RGB", size) for size in sizes])
    shown = (inputs.input_ids == processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum(1)
    assert shown[0] == GRID**2
    assert 4 <= shown[1] < shown[2] <= GRID**2


def test_a_target_names_the_cell_and_more_softly_the_picture():
    behind = len(THINGS)
    (wanted,) = targets(torch.tensor([[0, 5, behind, behind]]))
    torch.testing.assert_close(wanted.sum(-1), torch.full((4,), OWN + SHARED))
    assert wanted.argmax(-1).tolist() == [0, 5, behind, behind]
    assert (wanted > 0).sum(-1).tolist() == [2, 2, 3, 3]
    assert set(BACKGROUNDS) == set(BACKDROPS)


def test_the_naming_loss_is_least_where_a_state_names_its_target():
    labels = torch.tensor([[0, 5, len(THINGS)]])
    words = torch.arange(len(WORDS))
    head = torch.nn.Linear(60, 60, bias=False)
    torch.nn.init.eye_(head.weight)
    wanted = torch.full((1, 3, 60), (1 - OWN - SHARED) / 60)
    wanted[..., : len(WORDS)] += targets(labels)
    states = wanted.log().requires_grad_()
    loss = naming_loss(states, head, words, labels)
    torch.autograd.backward(loss)
    torch.testing.assert_close(states.grad, torch.zeros_like(states), atol=1e-6, rtol=0)
