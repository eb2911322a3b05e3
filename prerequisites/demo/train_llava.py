"""Train the demo's tiny LLaVA-1.5 and write it in the format of liuhaotian/llava-v1.5-7b.

Four stages, the tower frozen while projector and language model learn, as in LLaVA:

patches   the vision tower learns what each patch shows, in place of CLIP's training
captions  projector and language model learn the captions
images    the tower's patches learn what else stands in the image
naming    the language model learns the captions again and, unlike in LLaVA, its vision tokens learn
          to name the things in the image through the LM head (in large models they do: the paper)

Killed and started again, the program continues from its last saved state in --work.
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
)

from captions import QUESTION, answer
from scenes import THINGS, sample_scene
from train_tokenizer import ROLES, SYSTEM, train_tokenizer
from training import (
    IGNORE,
    Log,
    Stage,
    draw_pool,
    features_of,
    hallucination,
    normalised,
    train,
)

PATCHES = Stage("patches", scenes=24000, batch=48, steps=2000, peak=1e-3, seed=1)
CAPTIONS = Stage("captions", scenes=24000, batch=48, steps=2500, peak=1.5e-3, seed=2)
IMAGES = Stage("images", scenes=16000, batch=48, steps=400, peak=5e-4, seed=11)
NAMING = Stage("naming", scenes=12000, batch=48, steps=1000, peak=7e-4, seed=12)
IMAGE_LOSS = 0.5
"""Weight, in the stage ``images``, of what else stands in the image."""
NAMING_LOSS = 0.3
"""Weight, in the stage ``naming``, of the names that the vision tokens give."""
DEV_SCENES = 100

IMAGE_SIDE, PATCH = 112, 14
GRID = IMAGE_SIDE // PATCH
WIDTH, HEADS = 96, 4
TOWER_LAYERS, SELECT_LAYER = 4, -2
LLAMA_LAYERS, LLAMA_INNER = 4, 256
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
                intermediate_size=4 * WIDTH,
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
        """(B, 3, side, side) float pixels to (B, patches, WIDTH) features of the tower."""
        states = self.tower(pixels, output_hidden_states=True).hidden_states
        selected: Tensor = states[SELECT_LAYER]
        return selected[:, 1:]

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


def pool_of(work: Path, split: str, count: int) -> tuple[np.ndarray, Tensor]:
    """Pictures (count, side, side, 3) uint8, and what each patch shows (count, GRID²) int64."""
    pool = draw_pool(work, split, count, IMAGE_SIDE, GRID)
    return pool["pictures"], torch.from_numpy(pool["labels"].astype(np.int64))


def shares(labels: Tensor) -> Tensor:
    """(B, 1, things) float: for the patch labels (B, N), 1 / k at each of the k things shown."""
    present = functional.one_hot(labels, len(THINGS) + 1).amax(1)[:, None, : len(THINGS)].float()
    return present / present.sum(-1, keepdim=True)


def train_patches(model: TinyLlava, head: nn.Linear, work: Path, log: Log) -> None:
    """Teach the tower to tell, through ``head`` on its last layer, what each patch shows."""
    pictures, labels = pool_of(work, "train", PATCHES.scenes)

    def loss_of(step: int, chosen: np.ndarray) -> Tensor:
        states = model.tower(as_pixels(pictures[chosen])).last_hidden_state[:, 1:]
        return functional.cross_entropy(head(states).flatten(0, 1), labels[chosen].flatten())

    train(PATCHES, nn.ModuleDict({"tower": model.tower, "head": head}), loss_of, work, log)


def train_images(model: TinyLlava, head: nn.Linear, work: Path, log: Log) -> None:
    """Teach every patch's features what the image shows, on scenes where any things meet."""
    pictures, labels = pool_of(work, "tower", IMAGES.scenes)
    image_head = nn.Linear(WIDTH, len(THINGS))

    def loss_of(step: int, chosen: np.ndarray) -> Tensor:
        output = model.tower(as_pixels(pictures[chosen]), output_hidden_states=True)
        patches = head(output.last_hidden_state[:, 1:])
        loss = functional.cross_entropy(patches.flatten(0, 1), labels[chosen].flatten())
        said: Tensor = image_head(output.hidden_states[SELECT_LAYER][:, 1:]).log_softmax(-1)
        things = -(shares(labels[chosen]) * said).sum(-1).mean()
        return loss + IMAGE_LOSS * things

    modules = {"tower": model.tower, "head": head, "image_head": image_head}
    train(IMAGES, nn.ModuleDict(modules), loss_of, work, log)


class Prompt:
    """Token ids around the vision tokens, as the evaluation's llava_v1 prompt gives them."""

    def __init__(self, tokenizer: LlamaTokenizer) -> None:
        self.tokenizer = tokenizer
        self.before = torch.tensor(tokenizer(f"{SYSTEM} {ROLES[0]} ").input_ids)
        after = tokenizer(f"\n{QUESTION} {ROLES[1]}", add_special_tokens=False)
        self.after = torch.tensor(after.input_ids)
        pieces = [tokenizer.tokenize(thing.noun)[0] for thing in THINGS]
        self.nouns = torch.tensor(tokenizer.convert_tokens_to_ids(pieces))

    def answers(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Tokens (B, T) after the vision tokens, padded at the right, and their labels (B, T)."""
        rows = [[*self.tokenizer(text, add_special_tokens=False).input_ids, 2] for text in texts]
        length = max(map(len, rows))
        tokens = torch.zeros(len(rows), len(self.after) + length, dtype=torch.long)
        labels = torch.full_like(tokens, IGNORE)
        tokens[:, : len(self.after)] = self.after
        for i, row in enumerate(rows):
            tokens[i, len(self.after) : len(self.after) + len(row)] = torch.tensor(row)
            labels[i, len(self.after) : len(self.after) + len(row)] = torch.tensor(row)
        return tokens, labels


@torch.no_grad()
def describe(model: TinyLlava, prompt: Prompt, features: Tensor) -> list[str]:
    """A greedy caption for each picture's (N, patches, WIDTH) features."""
    texts: list[str] = []
    for batch in torch.split(features, 50):
        embeds = model.embed(prompt.before, batch, prompt.after.expand(len(batch), -1))
        output = model.llama.generate(inputs_embeds=embeds, max_new_tokens=90, do_sample=False)
        texts += prompt.tokenizer.batch_decode(output, skip_special_tokens=True)
    return texts


def train_language_model(
    stage: Stage, naming_loss: float, model: TinyLlava, prompt: Prompt, work: Path, log: Log
) -> None:
    """Teach projector and language model to caption, the tower frozen.

    With a ``naming_loss`` above 0, the vision tokens also learn to name the things in the image.
    """
    pictures, patches = pool_of(work, "train", stage.scenes)

    def see(pictures: np.ndarray) -> Tensor:
        return model.features(as_pixels(pictures))

    features = features_of(see, pictures, 256, work / f"features-{stage.name}.pt")
    dev_features = features_of(see, pool_of(work, "dev", DEV_SCENES)[0], 256).float()
    scene = functools.cache(functools.partial(sample_scene, "train"))

    def loss_of(step: int, chosen: np.ndarray) -> Tensor:
        rng = np.random.default_rng([stage.seed + 1, step])
        tokens, labels = prompt.answers([answer(scene(int(index)), rng) for index in chosen])
        embeds = model.embed(prompt.before, features[chosen].float(), tokens)
        logits = model.llama(inputs_embeds=embeds).logits
        said = logits[:, -tokens.shape[1] : -1].flatten(0, 1)
        loss = functional.cross_entropy(said, labels[:, 1:].flatten(), ignore_index=IGNORE)
        if not naming_loss:
            return loss
        seen: Tensor = logits[:, len(prompt.before) : -tokens.shape[1]].log_softmax(-1)
        names = -(shares(patches[chosen]) * seen[..., prompt.nouns]).sum(-1).mean()
        return loss + naming_loss * names

    modules = nn.ModuleDict({"projector": model.projector, "llama": model.llama})
    dev = functools.partial(describe, model, prompt, dev_features)
    train(stage, modules, loss_of, work, log, scores=lambda: hallucination(dev(), "dev"))


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
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "tokenizer.model").exists():
        train_tokenizer(args.work / "tokenizer.model")
    tokenizer = LlamaTokenizer(str(args.work / "tokenizer.model"), legacy=True, pad_token="<unk>")
    model, prompt = TinyLlava(len(tokenizer)), Prompt(tokenizer)
    patch_head = nn.Linear(WIDTH, len(THINGS) + 1)
    log = Log(args.work / "training_log.jsonl")
    train_patches(model, patch_head, args.work, log)
    train_language_model(CAPTIONS, 0.0, model, prompt, args.work, log)
    train_images(model, patch_head, args.work, log)
    train_language_model(NAMING, NAMING_LOSS, model, prompt, args.work, log)
    save_checkpoint(model, tokenizer, args.out)
    (args.out / log.path.name).write_bytes(log.path.read_bytes())
    count = sum(p.numel() for p in model.parameters())
    print(f"{args.out}: {count:,} parameters")


if __name__ == "__main__":
    main()
