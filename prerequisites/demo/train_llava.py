"""Train the demo's tiny LLaVA-1.5 and write it in the format of liuhaotian/llava-v1.5-7b."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
)

from captions import QUESTION, WORDS
from train_tokenizer import ROLES, SYSTEM, train_tokenizer
from training import NAMING_LAYERS, TinyModel, normalised, run

IMAGE_SIDE, PATCH = 112, 14
WIDTH, HEADS = 128, 4
TOWER_LAYERS, SELECT_LAYER, TOWER_INNER = 5, -2, 256
LLAMA_LAYERS, LLAMA_INNER = 4, 256
PROJECTOR = "mlp2x_gelu"
TOWER_FOLDER = f"clip-vit-tiny-patch{PATCH}-{IMAGE_SIDE}"


class TinyLlava(TinyModel):
    """Vision tower, projector and language model of LLaVA-1.5, and its llava_v1 prompt."""

    side, grid, batch = IMAGE_SIDE, IMAGE_SIDE // PATCH, 256

    def __init__(self, tokenizer: LlamaTokenizer) -> None:
        self.tokenizer = tokenizer
        self.before = torch.tensor(tokenizer(f"{SYSTEM} {ROLES[0]} ").input_ids)
        self.after = torch.tensor(self.asked(QUESTION, True))
        pieces = [tokenizer.tokenize(word)[0] for word in WORDS]
        self.words = torch.tensor(tokenizer.convert_tokens_to_ids(pieces))
        self.clip = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=WIDTH,
                intermediate_size=TOWER_INNER,
                num_hidden_layers=TOWER_LAYERS,
                num_attention_heads=HEADS,
                image_size=IMAGE_SIDE,
                patch_size=PATCH,
                projection_dim=WIDTH,
            )
        )
        self.projector = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.llama = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=LLAMA_INNER,
                num_hidden_layers=LLAMA_LAYERS,
                num_attention_heads=HEADS,
                max_position_embeddings=512,
                initializer_range=0.05,
                pad_token_id=0,
            )
        )
        self.head, self.embedding = self.llama.lm_head, self.llama.get_input_embeddings()
        self.tower = {"tower": self.clip, "projector": self.projector}
        self.language = {"projector": self.projector, "llama": self.llama}

    def see(self, pictures: np.ndarray) -> Tensor:
        # The layers after the one that is read are not computed, as in LLaVA-1.5.
        vision = self.clip.vision_model
        states = vision.pre_layrnorm(vision.embeddings(as_pixels(pictures)))
        for layer in vision.encoder.layers[: TOWER_LAYERS + 1 + SELECT_LAYER]:
            states = layer(states, None, None)[0]
        selected: Tensor = states[:, 1:]
        return selected

    def vision_tokens(self, features: Tensor) -> Tensor:
        projected: Tensor = self.projector(features)
        return projected

    def embed(self, features: Tensor, after: Tensor) -> Tensor:
        """(B, T0 + N + T1, WIDTH) of the prompt's beginning, (B, N, WIDTH) features and (B, T1)
        tokens."""
        before = self.embedding(self.before)[None].expand(len(features), -1, -1)
        return torch.cat([before, self.vision_tokens(features), self.embedding(after)], dim=1)

    def asked(self, question: str, first: bool) -> list[int]:
        opening = "\n" if first else f"{ROLES[0]} "
        return self._plain(f"{opening}{question} {ROLES[1]}")

    def answered(self, answer: str) -> list[int]:
        return [*self._plain(answer), self.tokenizer.eos_token_id]

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def states(self, features: Tensor, tokens: Tensor) -> tuple[list[Tensor], int]:
        embeds = self.embed(features, tokens)
        states = self.llama.model(
            inputs_embeds=embeds, use_cache=False, output_hidden_states=True
        ).hidden_states
        return [states[layer] for layer in NAMING_LAYERS], len(self.before)

    @torch.no_grad()
    def describe(self, features: Tensor) -> list[str]:
        texts: list[str] = []
        for batch in torch.split(features, 100):
            embeds = self.embed(batch, self.after.expand(len(batch), -1))
            output = self.llama.generate(inputs_embeds=embeds, max_new_tokens=64, do_sample=False)
            texts += self.tokenizer.batch_decode(output, skip_special_tokens=True)
        return texts

    def save(self, folder: Path) -> nn.Module:
        """Write configuration, weights in float32, tokenizer, and the tower beside."""
        tower = folder / TOWER_FOLDER
        tower.mkdir(parents=True, exist_ok=True)
        self.clip.save_pretrained(tower, safe_serialization=True)
        image_processor().save_pretrained(tower)
        self.tokenizer.save_pretrained(folder)
        projector = self.projector.state_dict().items()
        weights = {f"model.mm_projector.{name}": value.clone() for name, value in projector}
        weights |= {name: value.clone() for name, value in self.llama.state_dict().items()}
        weights = {name: value for name, value in weights.items() if "inv_freq" not in name}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        configs = {
            "config.json": llava_config(self.llama),
            "generation_config.json": self.llama.generation_config.to_dict(),
        }
        for name, content in configs.items():
            text = json.dumps(content, indent=2, sort_keys=True)
            (folder / name).write_text(text + "\n", encoding="utf-8")
        return nn.ModuleDict({"tower": self.clip, **self.language})


def image_processor() -> CLIPImageProcessor:
    """Pixels as CLIP takes them, at the demo's size."""
    return CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIDE}, crop_size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    )


def as_pixels(pictures: np.ndarray) -> Tensor:
    """(B, side, side, 3) uint8 to (B, 3, side, side) float32, as the processor does."""
    processor = image_processor()
    return normalised(torch.from_numpy(pictures), processor.image_mean, processor.image_std)


def llava_config(llama: LlamaForCausalLM) -> dict[str, Any]:
    """``config.json`` with the names that LLaVA-1.5 uses."""
    config = llama.config.to_dict()
    kept = (
        "bos_token_id eos_token_id pad_token_id hidden_act hidden_size initializer_range"
        " intermediate_size max_position_embeddings num_attention_heads num_hidden_layers"
        " num_key_value_heads pretraining_tp rms_norm_eps rope_scaling tie_word_embeddings"
        " transformers_version use_cache vocab_size"
    )
    return {
        **{name: config[name] for name in kept.split() if name in config},
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "torch_dtype": "float32",
        "image_aspect_ratio": "pad",
        "mm_hidden_size": WIDTH,
        "mm_projector_type": PROJECTOR,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": SELECT_LAYER,
        "mm_vision_tower": TOWER_FOLDER,
    }


def make(work: Path) -> TinyLlava:
    """The untrained model, with the tokenizer in ``work``, which is trained where there is none."""
    if not (work / "tokenizer.model").exists():
        train_tokenizer(work / "tokenizer.model")
    return TinyLlava(LlamaTokenizer(str(work / "tokenizer.model"), legacy=True, pad_token="<unk>"))


if __name__ == "__main__":
    run(make, "llava")
