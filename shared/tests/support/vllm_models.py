"""Tiny models of both families with random weights, in the format that vLLM serves.

Their attention heads have size 32, the least that vLLM's attention on a CPU has.
"""

import base64
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
import transformers
from PIL import Image

import revisit
from revisit import ReVisiTConfig

DEMO = Path(__file__).parents[3] / "prerequisites" / "demo"
IMAGES = sorted((DEMO / "coco" / "val2014").glob("*.jpg"))
TOKENIZER = [
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
]
_QWEN = json.loads((DEMO / "qwen-tiny" / "config.json").read_text())
VOCABULARY, IMAGE_ID, EOS = (
    _QWEN[name] for name in ("vocab_size", "image_token_id", "eos_token_id")
)
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
STEPS = 16

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": _QWEN["pad_token_id"],
    "tie_word_embeddings": False,
}


class Question(NamedTuple):
    """A prompt: what is asked, and the images that it shows."""

    text: str
    images: tuple[int, ...] = (0,)
    whole: bool = False  # whether the text is the prompt, as a chat template made it

    @property
    def prompt(self) -> str:
        """With a placeholder for each image."""
        if self.whole:
            return self.text
        return f"<|im_start|>user\n{IMAGE * len(self.images)}{self.text}<|im_end|>\n"

    def chat(self) -> list[dict[str, Any]]:
        """As messages of an HTTP request, the images inside."""
        content: list[dict[str, Any]] = []
        for number in self.images:
            data = base64.b64encode(IMAGES[number].read_bytes()).decode()
            content.append(
                {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}
            )
        content.append({"type": "text", "text": self.text})
        return [{"role": "user", "content": content}]

    def opened(self) -> list[Image.Image]:
        return [Image.open(IMAGES[number]).convert("RGB") for number in self.images]

    def for_vllm(self) -> dict[str, Any]:
        asked: dict[str, Any] = {"prompt": self.prompt}
        if self.images:
            asked["multi_modal_data"] = {"image": self.opened()}
        return asked


QUESTIONS = [
    Question("Please describe this image in detail.", (0,)),
    Question("What is there?", (1,)),
    Question("Name the animals, one after another, and say where they stand.", (2,)),
    Question("Two of them: which is larger?", (3, 4)),
    Question("And?", (5,)),
    Question("Is there a dog in the image?", (6,)),
]


def make(family: str, folder: Path) -> Path:
    """Write a model of the family into a folder."""
    folder.mkdir()
    for name in TOKENIZER:
        shutil.copy(DEMO / "qwen-tiny" / name, folder / name)
    model = {"qwen": _qwen, "llava": _llava}[family](folder)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.ndim > 1 or name.endswith("bias"):
                parameter.normal_(std=0.25)
    model.save_pretrained(folder)
    if family == "llava":
        _rename(folder / "model.safetensors", "vision_tower.", "vision_tower.vision_model.")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS}))
    return folder


def _rename(path: Path, old: str, new: str) -> None:
    """As published checkpoints name them, and vLLM reads them; newer Transformers writes others."""
    tensors = safetensors.torch.load_file(path)
    if not any(name.startswith(new) for name in tensors):
        renamed = {
            new + name.removeprefix(old) if name.startswith(old) else name: tensor
            for name, tensor in tensors.items()
        }
        safetensors.torch.save_file(renamed, path, {"format": "pt"})


def _qwen(folder: Path) -> Any:
    for name in ("preprocessor_config.json", "chat_template.json"):
        shutil.copy(DEMO / "qwen-tiny" / name, folder / name)
    rope = {"type": "mrope", "rope_type": "default", "mrope_section": [4, 6, 6]}
    heads = {"hidden_size": 64, "num_heads": 2}  # which two ranks can share
    vision = {**_QWEN["vision_config"], "depth": 2, "out_hidden_size": 64, **heads}
    named = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(
            vision_config={**vision, "fullatt_block_indexes": [1]},
            text_config={**TEXT, "rope_scaling": rope},
            tie_word_embeddings=False,
            **{name: _QWEN[name] for name in named},
        )
    )


def _llava(folder: Path) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(
            size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<|image_pad|>",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)
    vision = transformers.CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
    )
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config=vision,
            text_config=transformers.LlamaConfig(**TEXT),
            image_token_index=IMAGE_ID,
            image_seq_length=16,
            tie_word_embeddings=False,
        )
    )


class Reference:
    """What Transformers generates with ReVisiT, one prompt at a time."""

    def __init__(self, folder: Path) -> None:
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32
        ).eval()
        self.processor = transformers.AutoProcessor.from_pretrained(folder)
        self.known: dict[Any, list[int]] = {}

    def __call__(
        self, question: Question, config: ReVisiTConfig | None, steps: int = STEPS
    ) -> list[int]:
        """The new tokens; greedy where config is None."""
        key = (question, config, steps)
        if key not in self.known:
            self.known[key] = self._generate(question, config, steps)
        return self.known[key]

    def _generate(self, question: Question, config: ReVisiTConfig | None, steps: int) -> list[int]:
        inputs = self.processor(
            text=[question.prompt], images=question.opened() or None, return_tensors="pt"
        )
        settings = {"max_new_tokens": steps, "do_sample": False, "eos_token_id": None}
        if config is None:
            output = self.model.generate(**inputs, **settings)
        else:
            with revisit.attach(self.model, config):
                output = self.model.generate(**inputs, **settings)
        tokens: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
        return tokens

    def all(
        self, asked: Iterable[tuple[Question, ReVisiTConfig | None]], steps: int = STEPS
    ) -> list[list[int]]:
        return [self(question, config, steps) for question, config in asked]


def mixed(
    layers: str | Sequence[int], questions: Sequence[Question] = QUESTIONS
) -> list[tuple[Question, ReVisiTConfig | None]]:
    """Every question in several settings, plain ones between."""
    settings: list[ReVisiTConfig | None] = [
        None,
        ReVisiTConfig(layers=layers, alpha=1e-5),
        ReVisiTConfig(layers=layers, alpha=1e-3, divergence="js"),
        ReVisiTConfig(layers=layers, alpha=1e-1),
        ReVisiTConfig(layers=layers, alpha=1e-2, selection="max"),
        ReVisiTConfig(layers=layers, alpha=1e-3, selection="random", seed=7),
    ]
    return [(question, config) for question in questions for config in settings]
