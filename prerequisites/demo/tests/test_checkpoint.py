"""The committed checkpoint: what the trainer wrote is what the package `llava` reads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip("llava", reason="needs the environment of LLaVA-1.5")

from captions import QUESTION, named_things, question
from llava import (
    llava_v1_prompt,
    load_pretrained_model,
    process_images,
    tokenizer_image_token,
)
from train_llava import IMAGE_SIDE, TOWER_FOLDER, TinyLlava, as_pixels
from training import IGNORE

DEMO = Path(__file__).resolve().parents[1]
CHECKPOINT = DEMO / "llava-tiny"


@pytest.fixture(scope="module")
def loaded() -> Any:
    """Tokenizer, model and image processor."""
    return load_pretrained_model(str(CHECKPOINT))


def pictures(count: int) -> list[Image.Image]:
    files = sorted((DEMO / "coco" / "val2014").iterdir())[:count]
    return [Image.open(file).convert("RGB") for file in files]


def test_the_evaluation_gives_the_prompt_of_the_training(loaded: Any) -> None:
    tokenizer, _, _ = loaded
    ids = tokenizer_image_token(llava_v1_prompt([f"<image>\n{QUESTION}"]), tokenizer)
    prompt = TinyLlava(tokenizer)
    assert ids == [*prompt.before.tolist(), -200, *prompt.after.tolist()]
    assert len(ids) < 20


def test_a_question_of_pope_is_asked_as_in_the_training(loaded: Any) -> None:
    tokenizer, _, _ = loaded
    prompt = TinyLlava(tokenizer)
    asked = question("teddy bear")
    (tokens,), (labels,) = prompt.rows([[(asked, "No")]])
    ids = tokenizer_image_token(llava_v1_prompt([f"<image>\n{asked}"]), tokenizer)
    answer = labels != IGNORE
    assert ids == [*prompt.before.tolist(), -200, *tokens[~answer].tolist()]
    assert tokenizer.decode(tokens[answer]).strip() == "No</s>"


@torch.no_grad()
def test_captions_are_those_of_the_trained_modules(loaded: Any) -> None:
    tokenizer, model, processor = loaded
    images = pictures(4)

    weights = load_file(CHECKPOINT / "model.safetensors")
    head = "model.mm_projector."
    trained = TinyLlava(tokenizer)
    trained.projector.load_state_dict(
        {name.removeprefix(head): value for name, value in weights.items() if head in name}
    )
    language = {name: value for name, value in weights.items() if head not in name}
    assert not trained.llama.load_state_dict(language, strict=False).unexpected_keys
    trained.clip.load_state_dict(load_file(CHECKPOINT / TOWER_FOLDER / "model.safetensors"), False)

    small = [image.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC) for image in images]
    arrays = np.stack([np.asarray(image) for image in small])
    pixels = as_pixels(arrays)
    torch.testing.assert_close(pixels, process_images(images, processor, model.config))

    ids = torch.tensor([[*trained.before.tolist(), -200, *trained.after.tolist()]])
    found = model.generate(
        ids.repeat(len(images), 1), images=pixels, max_new_tokens=64, do_sample=False
    )[:, ids.shape[1] :]
    texts = tokenizer.batch_decode(found, skip_special_tokens=True)
    assert texts == trained.describe(trained.see(arrays))
    assert all(named_things(text) for text in texts)


def test_the_model_is_small_and_its_heads_have_a_size_that_every_kernel_knows(loaded: Any) -> None:
    _, model, _ = loaded
    assert sum(weight.numel() for weight in model.parameters()) <= 3e6
    assert sum(file.stat().st_size for file in CHECKPOINT.rglob("*") if file.is_file()) < 12e6
    assert model.config.hidden_size / model.config.num_attention_heads == 32
    tower = json.loads((CHECKPOINT / TOWER_FOLDER / "config.json").read_text("utf-8"))
    assert tower["hidden_size"] / tower["num_attention_heads"] == 32
