"""Train the demo's tiny LLaVA-1.5 and write it in the format of liuhaotian/llava-v1.5-7b.

Three stages:

tower     vision tower and projector learn, on scenes where any things stand together, to name what
          each patch shows; the names are rows that the LM head and the embedding begin with
language  projector and language model learn captions and answers, the tower frozen; a light loss
          lets the vision tokens go on naming what they show: a million parameters do not come by
          themselves to the shared space of vision and words that a large model's pretraining leads
          to, and that ReVisiT reads
questions the same with four times as many questions of yes and no: two a conversation teach none

Killed and started again, the program continues from its last saved state in --work.
"""

from __future__ import annotations

import argparse
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

from captions import QUESTION, WORDS, conversation, questions
from train_tokenizer import ROLES, SYSTEM, train_tokenizer
from training import (
    DEV_SCENES,
    IGNORE,
    Log,
    Stage,
    begin_run,
    draw_pool,
    features_of,
    hallucination,
    naming_loss,
    normalised,
    train,
    train_language,
    write_record,
    yes_no_accuracy,
)

TOWER = Stage("tower", scenes=16000, batch=32, steps=3000, peak=2e-3, seed=1)
LANGUAGE = Stage("language", scenes=24000, batch=32, steps=6000, peak=1.5e-3, seed=2)
QUESTIONS = Stage("questions", scenes=24000, batch=32, steps=3000, peak=1e-3, seed=3)
NAMING_LOSS = 0.3
"""Weight, beside the answers, of the names that the vision tokens give."""

IMAGE_SIDE, PATCH = 112, 14
GRID = IMAGE_SIDE // PATCH
WIDTH, HEADS = 128, 4
TOWER_LAYERS, SELECT_LAYER, TOWER_INNER = 5, -2, 256
LLAMA_LAYERS, LLAMA_INNER = 4, 256
NAMING_LAYERS = (0, 2, 4)
"""Hidden states whose vision tokens learn to name; the last is after the final norm."""
PROJECTOR = "mlp2x_gelu"
TOWER_FOLDER = f"clip-vit-tiny-patch{PATCH}-{IMAGE_SIDE}"
HERE = Path(__file__).resolve().parent


class TinyLlava(nn.Module):
    """Vision tower, projector and language model under the names of LLaVA-1.5."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(
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
                vocab_size=vocabulary,
                hidden_size=WIDTH,
                intermediate_size=LLAMA_INNER,
                num_hidden_layers=LLAMA_LAYERS,
                num_attention_heads=HEADS,
                max_position_embeddings=512,
                initializer_range=0.05,
                pad_token_id=0,
            )
        )

    def features(self, pixels: Tensor) -> Tensor:
        """(B, 3, side, side) float pixels to (B, patches, WIDTH): the tower's layer that is used.

        The layers after it are not computed: as in LLaVA-1.5 nothing ever reads them.
        """
        vision = self.tower.vision_model
        states = vision.pre_layrnorm(vision.embeddings(pixels))
        for layer in vision.encoder.layers[: TOWER_LAYERS + 1 + SELECT_LAYER]:
            states = layer(states, None, None)[0]
        selected: Tensor = states[:, 1:]
        return selected

    def embed(self, before: Tensor, features: Tensor, after: Tensor) -> Tensor:
        """(B, T0 + N + T1, WIDTH) of (T0,) tokens, (B, N, WIDTH) features and (B, T1) tokens."""
        words = self.llama.get_input_embeddings()
        head = words(before)[None].expand(len(features), -1, -1)
        return torch.cat([head, self.projector(features), words(after)], dim=1)


def image_processor() -> CLIPImageProcessor:
    """Pixels as CLIP takes them, at the demo's size."""
    return CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIDE}, crop_size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    )


def as_pixels(pictures: np.ndarray) -> Tensor:
    """(B, side, side, 3) uint8 to (B, 3, side, side) float32, as the processor does."""
    processor = image_processor()
    return normalised(torch.from_numpy(pictures), processor.image_mean, processor.image_std)


def train_tower(model: TinyLlava, head: nn.Linear, words: Tensor, work: Path, log: Log) -> None:
    """Teach tower and projector to say, through ``head``, what each patch shows."""
    pool = draw_pool(work, "tower", TOWER.scenes, IMAGE_SIDE, GRID)
    labels = torch.from_numpy(pool["labels"].astype(np.int64))

    def loss_of(step: int, chosen: np.ndarray) -> Tensor:
        states = model.projector(model.features(as_pixels(pool["pictures"][chosen])))
        return naming_loss(states, head, words, labels[chosen])

    modules = {"tower": model.tower, "projector": model.projector, "head": head}
    train(TOWER, nn.ModuleDict(modules), loss_of, work, log)


class Prompt:
    """Token ids around the vision tokens, as the evaluation's llava_v1 prompt gives them."""

    def __init__(self, tokenizer: LlamaTokenizer) -> None:
        self.tokenizer = tokenizer
        self.before = torch.tensor(tokenizer(f"{SYSTEM} {ROLES[0]} ").input_ids)
        self.after = torch.tensor(self._plain(f"\n{QUESTION} {ROLES[1]}"))
        pieces = [tokenizer.tokenize(word)[0] for word in WORDS]
        self.words = torch.tensor(tokenizer.convert_tokens_to_ids(pieces))

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def rows(self, conversations: list[list[tuple[str, str]]]) -> tuple[Tensor, Tensor]:
        """Tokens (B, T) after the vision tokens, padded at the right, and their labels (B, T)."""
        rows, labels = [], []
        for turns in conversations:
            row: list[int] = []
            label: list[int] = []
            for question, answer in turns:
                opening = f"{ROLES[0]} " if row else "\n"
                asked = self._plain(f"{opening}{question} {ROLES[1]}")
                said = [*self._plain(answer), self.tokenizer.eos_token_id]
                row += asked + said
                label += [IGNORE] * len(asked) + said
            rows.append(torch.tensor(row))
            labels.append(torch.tensor(label))
        pad = nn.utils.rnn.pad_sequence
        return pad(rows, batch_first=True), pad(labels, batch_first=True, padding_value=IGNORE)


class LlavaReader:
    """The language model as ``language_loss`` reads it."""

    def __init__(self, model: TinyLlava, prompt: Prompt) -> None:
        self.model, self.prompt = model, prompt
        self.head, self.words, self.rows = model.llama.lm_head, prompt.words, prompt.rows

    def states(self, features: Tensor, tokens: Tensor) -> tuple[list[Tensor], int]:
        """See ``training.Reader``."""
        embeds = self.model.embed(self.prompt.before, features, tokens)
        states = self.model.llama.model(
            inputs_embeds=embeds, use_cache=False, output_hidden_states=True
        ).hidden_states
        return [states[layer] for layer in NAMING_LAYERS], len(self.prompt.before)


@torch.no_grad()
def describe(model: TinyLlava, prompt: Prompt, features: Tensor) -> list[str]:
    """A greedy caption for each picture's (N, patches, WIDTH) features."""
    texts: list[str] = []
    for batch in torch.split(features, 100):
        embeds = model.embed(prompt.before, batch, prompt.after.expand(len(batch), -1))
        output = model.llama.generate(inputs_embeds=embeds, max_new_tokens=64, do_sample=False)
        texts += prompt.tokenizer.batch_decode(output, skip_special_tokens=True)
    return texts


def train_llama(model: TinyLlava, prompt: Prompt, work: Path, log: Log) -> None:
    """Teach projector and language model captions and answers, the tower frozen."""

    def see(pictures: np.ndarray) -> Tensor:
        return model.features(as_pixels(pictures))

    pool = draw_pool(work, "train", LANGUAGE.scenes, IMAGE_SIDE, GRID)
    features = features_of(see, pool.pop("pictures"), 256, work / "features.pt")
    unseen = draw_pool(work, "dev", DEV_SCENES, IMAGE_SIDE, GRID)["pictures"]
    unseen_features = features_of(see, unseen, 256).float()
    reader = LlavaReader(model, prompt)

    def scores() -> dict[str, float]:
        found = hallucination(describe(model, prompt, unseen_features))
        return found | {"YesNo": yes_no_accuracy(reader, unseen_features)}

    modules = nn.ModuleDict({"projector": model.projector, "llama": model.llama})
    for stage, talk in ((LANGUAGE, conversation), (QUESTIONS, questions)):
        train_language(stage, talk, reader, NAMING_LOSS, modules, pool, features, work, log, scores)


def llava_config(model: TinyLlava) -> dict[str, Any]:
    """``config.json`` with the names that LLaVA-1.5 uses."""
    config = model.llama.config.to_dict()
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


def save_checkpoint(model: TinyLlava, tokenizer: LlamaTokenizer, folder: Path) -> None:
    """Write the checkpoint: configuration, weights in float32, tokenizer, and the tower beside."""
    tower = folder / TOWER_FOLDER
    tower.mkdir(parents=True, exist_ok=True)
    model.tower.save_pretrained(tower, safe_serialization=True)
    image_processor().save_pretrained(tower)
    tokenizer.save_pretrained(folder)
    weights = {name: value.clone() for name, value in model.llama.state_dict().items()}
    weights |= {
        f"model.mm_projector.{name}": value.clone()
        for name, value in model.projector.state_dict().items()
    }
    weights = {name: value for name, value in weights.items() if "inv_freq" not in name}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in (
        ("config.json", llava_config(model)),
        ("generation_config.json", model.llama.generation_config.to_dict()),
    ):
        text = json.dumps(content, indent=2, sort_keys=True)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE / "llava-tiny", help="the checkpoint")
    parser.add_argument(
        "--work", type=Path, default=HERE / "work" / "llava", help="states, to continue from"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial weights")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "tokenizer.model").exists():
        train_tokenizer(args.work / "tokenizer.model")
    tokenizer = LlamaTokenizer(str(args.work / "tokenizer.model"), legacy=True, pad_token="<unk>")
    model, prompt = TinyLlava(len(tokenizer)), Prompt(tokenizer)
    head = nn.Linear(WIDTH, len(tokenizer), bias=False)
    log = Log(args.work / "training_log.jsonl")
    begin_run(args.work)
    train_tower(model, head, prompt.words, args.work, log)
    model.llama.lm_head.load_state_dict(head.state_dict())
    model.llama.get_input_embeddings().load_state_dict(head.state_dict())
    train_llama(model, prompt, args.work, log)
    save_checkpoint(model, tokenizer, args.out)
    write_record(args.out, args.work, log, model, seed=args.seed, threads=args.threads)


if __name__ == "__main__":
    main()
