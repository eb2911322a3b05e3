"""The demo's trained tiny models: as vLLM serves them, and what Transformers says of an image."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import sentencepiece
import torch
import transformers
from PIL import Image

import revisit
from revisit import ReVisiTConfig
from vllm_models import DEMO, IMAGES

QUESTION = "Please describe this image in detail."
VISION_TOKENS = 64  # of an image, in both models
STEPS = 160  # the longest of their captions has 130

LLAVA = DEMO / "llava-tiny"
_PLACEHOLDER = "<0x00>"  # a word of the tokenizer that nothing says: LLaVA's own -200 is none
_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


class Shown(NamedTuple):
    """What a trained model is asked, in plain data."""

    prompt: list[int]
    image: str

    def for_vllm(self) -> dict[str, Any]:
        """A prompt of vLLM."""
        image = Image.open(self.image).convert("RGB")
        return {"prompt_token_ids": self.prompt, "multi_modal_data": {"image": image}}


class Trained:
    """A model's folder, its prompt with one placeholder, and the same model in Transformers."""

    def __init__(self, folder: Path, prompt: list[int], placeholder: int) -> None:
        self.folder = folder
        self.prompt = prompt
        self.placeholder = placeholder
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32
        ).eval()
        self.images = transformers.AutoImageProcessor.from_pretrained(folder)
        self.tokens = cache(self._tokens)

    def shown(self, image: Path) -> Shown:
        """The image with this model's prompt."""
        return Shown(self.prompt, str(image))

    def _tokens(self, image: Path, config: ReVisiTConfig | None) -> list[int]:
        """What Transformers generates, to the end of its caption; greedy where config is None."""
        ids = [
            token
            for one in self.prompt
            for token in [one] * (VISION_TOKENS if one == self.placeholder else 1)
        ]
        input_ids = torch.tensor([ids])
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            **self.images(Image.open(image).convert("RGB"), return_tensors="pt"),
        }
        if "image_grid_thw" in inputs:
            inputs["mm_token_type_ids"] = (input_ids == self.placeholder).long()
        settings = {"max_new_tokens": STEPS, "do_sample": False}
        if config is None:
            output = self.model.generate(**inputs, **settings)
        else:
            with revisit.attach(self.model, config):
                output = self.model.generate(**inputs, **settings)
        tokens: list[int] = output[0, len(ids) :].tolist()
        return tokens


def qwen() -> Trained:
    """The demo's Qwen2.5-VL, as it is."""
    folder = DEMO / "qwen-tiny"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=template,
        add_generation_prompt=True,
        tokenize=False,
    )
    placeholder = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    return Trained(folder, tokenizer(text).input_ids, placeholder)


def llava(folder: Path) -> Trained:
    """The demo's LLaVA-1.5, written to a folder in the format of Transformers, which vLLM reads."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(LLAVA / "tokenizer.model"))
    placeholder = pieces.piece_to_id(_PLACEHOLDER)
    _write_llava(folder, placeholder)
    before, after = f"{_SYSTEM} USER: ", f"\n{QUESTION} ASSISTANT:"
    prompt = [pieces.bos_id(), *pieces.encode(before), placeholder, *pieces.encode(after)]
    return Trained(folder, prompt, placeholder)


def _write_llava(folder: Path, placeholder: int) -> None:
    told = json.loads((LLAVA / "config.json").read_text())
    tower = LLAVA / told["mm_vision_tower"]
    own = set(transformers.LlamaConfig().to_dict()) - {"architectures", "model_type"}
    vision = json.loads((tower / "config.json").read_text())
    transformers.LlavaConfig(
        architectures=["LlavaForConditionalGeneration"],
        text_config=transformers.LlamaConfig(**{k: v for k, v in told.items() if k in own}),
        vision_config=transformers.CLIPVisionConfig(**vision),
        image_token_index=placeholder,
        image_seq_length=VISION_TOKENS,
        vision_feature_layer=told["mm_vision_select_layer"],
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    ).save_pretrained(folder)
    weights = {
        **{_llava_name(k): v for k, v in _read(LLAVA).items()},
        **{f"vision_tower.{k}": v for k, v in _read(tower).items()},
    }
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    settings = {"eos_token_id": told["eos_token_id"], "pad_token_id": told["pad_token_id"]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    tokenizer = transformers.AutoTokenizer.from_pretrained(LLAVA)
    tokenizer.add_special_tokens({"additional_special_tokens": [_PLACEHOLDER]})
    transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor.from_pretrained(tower),
        tokenizer=tokenizer,
        patch_size=vision["patch_size"],
        vision_feature_select_strategy="default",
        image_token=_PLACEHOLDER,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


def _read(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def _llava_name(name: str) -> str:
    """A weight's name in the published checkpoints of Transformers' format."""
    if match := re.fullmatch(r"model\.mm_projector\.([02])\.(.*)", name):
        return f"multi_modal_projector.linear_{1 if match[1] == '0' else 2}.{match[2]}"
    return f"language_model.{name}"


def captions() -> list[Path]:
    """Some of the demo's images."""
    return IMAGES[::60]
