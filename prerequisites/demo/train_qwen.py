"""Train the demo's tiny Qwen2.5-VL and write it in the format of Qwen/Qwen2.5-VL-7B-Instruct.

Four stages, the tower frozen while the language model learns:

tower     the vision tower, merger included, learns what each vision token shows, on scenes where
          any things stand together; its classes are rows that the LM head begins with
captions  the language model learns to caption; a light loss lets its vision tokens go on naming
          what they show: a million parameters do not come by themselves to the shared space of
          vision and words that a large model's pretraining leads to, and that ReVisiT reads
sharpen   the tower learns on
finish    the language model learns on, with what the tower now sees

Killed and started again, the program continues from its last saved state in --work.
"""

from __future__ import annotations

import argparse
import copy
import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    DynamicCache,
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLVisionSdpaAttention,
    apply_rotary_pos_emb_vision,
)

from captions import QUESTION, answer
from qwen_processor import GRID, IMAGE, IMAGE_SIDE, LONGEST, MERGE, PATCH, make_processor
from scenes import BACKGROUNDS, THINGS, sample_scene
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

TOWER = Stage("tower", scenes=12000, batch=32, steps=1200, peak=2e-3, seed=1)
CAPTIONS = Stage("captions", scenes=16000, batch=32, steps=4000, peak=1.5e-3, seed=2)
SHARPEN = Stage("sharpen", scenes=12000, batch=32, steps=1000, peak=1e-3, seed=3)
FINISH = Stage("finish", scenes=8000, batch=32, steps=700, peak=7e-4, seed=4)
NAMING_LOSS = 0.1
"""Weight, beside the captions, of the names that the vision tokens give."""
OTHERS = 0.3
"""How much of a vision token's target is what the whole picture shows."""
DEV_SCENES = 200

WIDTH, HEADS, LAYERS, INNER = 96, 4, 4, 256
TOWER_WIDTH, TOWER_INNER, TOWER_LAYERS = 64, 176, 4
WINDOW, FULL_ATTENTION = 112, [1, 3]
ROPE_BASE, ROPE_SECTIONS = 1000.0, [2, 5, 5]
BACKDROP_WORDS = {
    "meadow": "meadow",
    "beach": "beach",
    "night": "stars",
    "snow": "snow",
    "room": "floor",
    "sunset": "sunset",
    "pink": "pink",
    "mint": "green",
    "grey": "grey",
}
HERE = Path(__file__).resolve().parent


def make_model(processor: Qwen2_5_VLProcessor) -> Qwen2_5_VLForConditionalGeneration:
    """The untrained model."""
    token = processor.tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        vocab_size=len(processor.tokenizer),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        max_position_embeddings=LONGEST,
        max_window_layers=LAYERS,
        initializer_range=0.05,
        rope_theta=ROPE_BASE,
        rope_scaling={"type": "mrope", "mrope_section": ROPE_SECTIONS},
        eos_token_id=token("<|im_end|>"),
        pad_token_id=token("<|endoftext|>"),
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        vision_config={
            "hidden_size": TOWER_WIDTH,
            "intermediate_size": TOWER_INNER,
            "depth": TOWER_LAYERS,
            "num_heads": HEADS,
            "out_hidden_size": WIDTH,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "window_size": WINDOW,
            "fullatt_block_indexes": FULL_ATTENTION,
        },
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def as_patches(pictures: np.ndarray, processor: Qwen2_5_VLProcessor) -> Tensor:
    """(B, side, side, 3) uint8 to (B, patches, 3, PATCH, PATCH), four patches a vision token.

    As the image processor gives them, but each patch once: it repeats a picture as two frames.
    """
    settings = processor.image_processor
    pixels = normalised(torch.from_numpy(pictures), settings.image_mean, settings.image_std)
    cut = pixels.view(len(pixels), 3, GRID, MERGE, PATCH, GRID, MERGE, PATCH)
    return cut.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(len(pixels), -1, 3, PATCH, PATCH)


def see(visual: Qwen2_5_VisionTransformerPretrainedModel, patches: Tensor) -> Tensor:
    """(B, patches, 3, PATCH, PATCH) to (B, GRID * GRID, WIDTH): what ``visual`` gives, batched.

    ``visual.forward`` lays all pictures of a batch in one sequence and masks them apart, at a cost
    that grows with the square of the batch.
    """
    count, length = patches.shape[:2]
    grid = torch.tensor([[1, GRID * MERGE, GRID * MERGE]])
    order, edges = visual.get_window_index(grid)
    windows = len(set(edges)) - 1
    angles = visual.rot_pos_emb(grid).view(GRID * GRID, MERGE**2, -1)[order].flatten(0, 1)
    angles = torch.cat([angles, angles], dim=-1)

    kernel = visual.patch_embed.proj.weight.sum(dim=2).flatten(1)
    states = functional.linear(patches.flatten(2), kernel)
    states = states.view(count, GRID * GRID, MERGE**2, -1)[:, order].flatten(1, 2)
    for number, block in enumerate(visual.blocks):
        parts = 1 if number in visual.fullatt_block_indexes else windows
        states = states.view(count * parts, length // parts, -1)
        turns = angles.view(parts, length // parts, -1).repeat(count, 1, 1)
        states = states + _attend(block.attn, block.norm1(states), turns)
        states = states + block.mlp(block.norm2(states))
    merged: Tensor = visual.merger(states.reshape(count * length, -1)).view(count, GRID * GRID, -1)
    return merged[:, torch.argsort(order)]


def _attend(attention: Qwen2_5_VLVisionSdpaAttention, states: Tensor, turns: Tensor) -> Tensor:
    """Attention of the tower's block within each row of (R, L, width) states."""
    rows, length, _ = states.shape
    heads = attention.qkv(states).view(rows, length, 3, attention.num_heads, -1)
    query, key, value = heads.unbind(dim=2)
    query, key = apply_rotary_pos_emb_vision(query, key, turns.cos(), turns.sin())
    mixed = functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    )
    attended: Tensor = attention.proj(mixed.transpose(1, 2).flatten(2))
    return attended


def words_of_labels(processor: Qwen2_5_VLProcessor) -> Tensor:
    """(things + backgrounds,) token that begins the word for each."""
    words = [thing.noun for thing in THINGS] + [BACKDROP_WORDS[name] for name in BACKGROUNDS]
    return torch.tensor([processor.tokenizer(f" {word}").input_ids[0] for word in words])


scene = functools.cache(sample_scene)


def targets(split: str, chosen: np.ndarray, labels: np.ndarray) -> Tensor:
    """(B, cells, words) what each cell should say: its own word, and more softly the things shown.

    ``labels`` (B, cells) are those of ``draw_pool`` for the scenes ``chosen`` (B,) of ``split``.
    """
    names = list(BACKGROUNDS)
    behind = np.array([names.index(scene(split, int(index)).background) for index in chosen])
    own = np.where(labels < len(THINGS), labels, len(THINGS) + behind[:, None]).astype(np.int64)
    one = functional.one_hot(torch.from_numpy(own), len(THINGS) + len(names))
    shown = one[..., : len(THINGS)].amax(dim=1, keepdim=True)
    share = functional.pad(shown / shown.sum(-1, keepdim=True), (0, len(names)))
    return (1 - OTHERS) * one + OTHERS * share


def naming_loss(states: Tensor, rows: Tensor, wanted: Tensor) -> Tensor:
    """Cross entropy of (B, cells, WIDTH) states through the LM head's ``rows`` (words, WIDTH)."""
    return functional.cross_entropy(
        functional.linear(states, rows).flatten(0, 1), wanted.flatten(0, 1)
    )


def train_tower(
    stage: Stage,
    visual: Qwen2_5_VisionTransformerPretrainedModel,
    head: nn.Linear,
    processor: Qwen2_5_VLProcessor,
    work: Path,
    log: Log,
) -> None:
    """Teach the tower to say, through ``head`` over the vocabulary, what each token shows."""
    pool = draw_pool(work, "tower", stage.scenes, IMAGE_SIDE, GRID)
    words = words_of_labels(processor)

    def loss_of(step: int, chosen: np.ndarray) -> Tensor:
        states = see(visual, as_patches(pool["pictures"][chosen], processor))
        wanted = targets("tower", chosen, pool["labels"][chosen])
        return naming_loss(states, head.weight[words], wanted)

    modules = nn.ModuleDict({"visual": visual, "head": head})
    train(stage, modules, loss_of, work, log)


class Prompt:
    """The evaluation's prompt around the vision tokens of one picture: tokens and positions."""

    def __init__(
        self, model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor
    ) -> None:
        self.tokenizer = processor.tokenizer
        content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        tokens = self.tokenizer(text.replace(IMAGE, IMAGE * GRID**2), return_tensors="pt").input_ids
        grid = torch.tensor([[1, GRID * MERGE, GRID * MERGE]])
        self.positions, _ = model.get_rope_index(tokens, grid)
        self.tokens = tokens[0]
        self.start = int((self.tokens == model.config.image_token_id).nonzero()[0])

    def embed(
        self, model: Qwen2_5_VLForConditionalGeneration, features: Tensor, answers: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (B, T, WIDTH) and positions (3, B, T) of prompt and (B, A) answer tokens."""
        words = model.model.embed_tokens
        prompt = words(self.tokens)[None].expand(len(features), -1, -1)
        end = self.start + features.shape[1]
        parts = [prompt[:, : self.start], features, prompt[:, end:], words(answers)]
        later = self.positions.max() + 1 + torch.arange(answers.shape[1])
        positions = torch.cat([self.positions, later.expand(3, 1, -1)], dim=-1)
        return torch.cat(parts, dim=1), positions.expand(-1, len(features), -1)

    def answers(self, texts: list[str]) -> Tensor:
        """(B, A) tokens and the end of the turn, ``IGNORE`` after it."""
        end = self.tokenizer.eos_token_id
        rows = [torch.tensor([*self.tokenizer(text).input_ids, end]) for text in texts]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORE)


@torch.no_grad()
def describe(
    model: Qwen2_5_VLForConditionalGeneration, prompt: Prompt, features: Tensor
) -> list[str]:
    """A greedy caption for each picture's (N, GRID * GRID, WIDTH) features."""
    end = prompt.tokenizer.eos_token_id
    nothing = torch.empty(len(features), 0, dtype=torch.long)
    embeds, positions = prompt.embed(model, features, nothing)
    cache, said = DynamicCache(), nothing
    ended = torch.zeros(len(features), dtype=torch.bool)
    while not ended.all() and said.shape[1] < 90:
        states = model.model(
            inputs_embeds=embeds, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
        token = model.lm_head(states[:, -1]).argmax(-1).masked_fill(ended, end)
        said = torch.cat([said, token[:, None]], dim=1)
        ended |= token == end
        embeds, positions = model.model.embed_tokens(said[:, -1:]), positions[..., -1:] + 1
    return list(prompt.tokenizer.batch_decode(said, skip_special_tokens=True))


def train_language_model(
    stage: Stage,
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    work: Path,
    log: Log,
) -> None:
    """Teach the language model to caption, the tower frozen."""
    pool = draw_pool(work, "train", stage.scenes, IMAGE_SIDE, GRID)

    def seen_in(pictures: np.ndarray) -> Tensor:
        return see(model.visual, as_patches(pictures, processor))

    features = features_of(seen_in, pool["pictures"], 64, work / f"features-{stage.name}.pt")
    unseen = draw_pool(work, "dev", DEV_SCENES, IMAGE_SIDE, GRID)["pictures"]
    dev_features = features_of(seen_in, unseen, 64).float()
    prompt = Prompt(model, processor)
    words = words_of_labels(processor)

    def loss_of(step: int, chosen: np.ndarray) -> Tensor:
        rng = np.random.default_rng([stage.seed + 1, step])
        labels = prompt.answers([answer(scene("train", int(index)), rng) for index in chosen])
        embeds, positions = prompt.embed(
            model, features[chosen].float(), labels[:, :-1].clamp(min=0)
        )
        states = model.model(
            inputs_embeds=embeds, position_ids=positions, use_cache=False
        ).last_hidden_state
        said = labels != IGNORE
        logits = model.lm_head(states[:, -labels.shape[1] :][said])
        seen = states[:, prompt.start : prompt.start + GRID**2]
        wanted = targets("train", chosen, pool["labels"][chosen])
        vision = naming_loss(seen, model.lm_head.weight[words], wanted)
        return functional.cross_entropy(logits, labels[said]) + NAMING_LOSS * vision

    modules = nn.ModuleDict({"model": model.model, "lm_head": model.lm_head})
    dev = functools.partial(describe, model, prompt, dev_features)
    train(stage, modules, loss_of, work, log, scores=lambda: hallucination(dev(), "dev"))


def save_checkpoint(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, folder: Path
) -> None:
    """Write configuration, weights in float32, tokenizer, chat template and image processor."""
    model.config.torch_dtype = torch.float32
    end, pad = model.config.eos_token_id, model.config.pad_token_id
    model.generation_config = GenerationConfig(eos_token_id=[end, pad], pad_token_id=pad)
    model.save_pretrained(folder, safe_serialization=True)
    processor.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE / "qwen-tiny", help="the checkpoint")
    parser.add_argument(
        "--work", type=Path, default=HERE / "work" / "qwen", help="states, to continue from"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial weights")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    processor = make_processor()
    model = make_model(processor)
    log = Log(args.work / "training_log.jsonl")
    head = copy.deepcopy(model.lm_head)
    train_tower(TOWER, model.visual, head, processor, args.work, log)
    model.lm_head.load_state_dict(head.state_dict())
    train_language_model(CAPTIONS, model, processor, args.work, log)
    train_tower(SHARPEN, model.visual, head, processor, args.work, log)
    train_language_model(FINISH, model, processor, args.work, log)
    save_checkpoint(model, processor, args.out)
    (args.out / log.path.name).write_bytes(log.path.read_bytes())
    count = sum(p.numel() for p in model.parameters())
    print(f"{args.out}: {count:,} parameters")


if __name__ == "__main__":
    main()
