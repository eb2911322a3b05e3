"""The committed checkpoint: what the trainer wrote is what the package `llava` reads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip("llava", reason="needs the environment of LLaVA-1.5")

from captions import QUESTION, named_things
from llava import (
    llava_v1_prompt,
    load_pretrained_model,
    process_images,
    tokenizer_image_token,
)
from train_llava import IMAGE_SIDE, TOWER_FOLDER, Prompt, TinyLlava, as_pixels

DEMO = Path(__file__).resolve().parents[1]
CHECKPOINT = DEMO / "llava-tiny"


def pictures(count: int) -> list[Image.Image]:
    files = sorted((DEMO / "coco" / "val2014").iterdir())[:count]
    return [Image.open(file).convert("RGB") for file in files]


def test_the_evaluation_gives_the_prompt_of_the_training() -> None:
    tokenizer, _, _ = load_pretrained_model(str(CHECKPOINT))
    ids = tokenizer_image_token(llava_v1_prompt([f"<image>\n{QUESTION}"]), tokenizer)
    prompt = Prompt(tokenizer)
    assert ids == [*prompt.before.tolist(), -200, *prompt.after.tolist()]
    assert len(ids) < 20


@torch.no_grad()
def test_captions_are_those_of_the_trained_modules() -> None:
    tokenizer, model, processor = load_pretrained_model(str(CHECKPOINT))
    images = pictures(4)
    prompt = Prompt(tokenizer)

    weights = load_file(CHECKPOINT / "model.safetensors")
    head = "model.mm_projector."
    trained = TinyLlava(len(tokenizer)).eval()
    trained.projector.load_state_dict(
        {name.removeprefix(head): value for name, value in weights.items() if head in name}
    )
    language = {name: value for name, value in weights.items() if head not in name}
    assert not trained.llama.load_state_dict(language, strict=False).unexpected_keys
    trained.tower.load_state_dict(load_file(CHECKPOINT / TOWER_FOLDER / "model.safetensors"), False)

    small = [image.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC) for image in images]
    arrays = np.stack([np.asarray(image) for image in small])
    pixels = as_pixels(arrays)
    torch.testing.assert_close(pixels, process_images(images, processor, model.config))

    after = prompt.after.expand(len(images), -1)
    embeds = trained.embed(prompt.before, trained.features(pixels), after)
    expected = trained.llama.generate(inputs_embeds=embeds, max_new_tokens=80, do_sample=False)
    ids = torch.tensor([[*prompt.before.tolist(), -200, *prompt.after.tolist()]])
    found = model.generate(
        ids.repeat(len(images), 1), images=pixels, max_new_tokens=80, do_sample=False
    )[:, ids.shape[1] :]
    texts = tokenizer.batch_decode(found, skip_special_tokens=True)
    assert texts == tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert all(named_things(text) for text in texts)


def test_the_training_log_tells_how_it_was_made() -> None:
    lines = (CHECKPOINT / "training_log.jsonl").read_text("utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    stages = {entry["stage"] for entry in entries}
    assert stages == {"patches", "captions", "images", "naming"}
    last = [entry for entry in entries if "dev" in entry][-1]["dev"]
    assert last["Recall"] >= 0.7


def test_the_checkpoint_is_small() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.rglob("*") if file.is_file()) < 8e6
