"""Train the demo's tiny Qwen2.5-VL and write it in the format of Qwen/Qwen2.5-VL-7B-Instruct.

Three stages:

tower     the vision tower, merger included, learns, on scenes where any things stand together, to
          name what each vision token shows; the names are rows that the LM head and the embedding
          begin with
language  the language model learns captions and answers, the tower frozen; a light loss lets the
          vision tokens go on naming what they show (train_llava.py says why)
questions the same with four times as many questions of yes and no: two a conversation teach none

Killed and started again, the program continues from its last saved state in --work.
"""

from __future__ import annotations

import argparse
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

from captions import QUESTION, WORDS, conversation, questions
from qwen_processor import (
    END,
    GRID,
    IMAGE,
    IMAGE_SIDE,
    LONGEST,
    MERGE,
    PATCH,
    START,
    VISION_END,
    make_processor,
)
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

WIDTH, HEADS, LAYERS, INNER = 128, 4, 4, 256
NAMING_LAYERS = (0, 2, 4)
"""Hidden states whose vision tokens learn to name; the last is after the final norm."""
TOWER_WIDTH, TOWER_HEADS, TOWER_INNER, TOWER_LAYERS = 96, 3, 256, 4
WINDOW, FULL_ATTENTION = 56, [1, 3]
ROPE_BASE, ROPE_SECTIONS = 1000.0, [4, 6, 6]
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
            "num_heads": TOWER_HEADS,
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


def train_tower(
    visual: Qwen2_5_VisionTransformerPretrainedModel,
    head: nn.Linear,
    processor: Qwen2_5_VLProcessor,
    words: Tensor,
    work: Path,
    log: Log,
) -> None:
    """Teach the tower to say, through ``head``, what each vision token shows."""
    pool = draw_pool(work, "tower", TOWER.scenes, IMAGE_SIDE, GRID)
    labels = torch.from_numpy(pool["labels"].astype(np.int64))

    def loss_of(step: int, chosen: np.ndarray) -> Tensor:
        states = see(visual, as_patches(pool["pictures"][chosen], processor))
        return naming_loss(states, head, words, labels[chosen])

    train(TOWER, nn.ModuleDict({"visual": visual, "head": head}), loss_of, work, log)


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
        after = self.tokenizer(f"{VISION_END}{QUESTION}{END}\n{START}assistant\n").input_ids
        self.before, self.after = self.tokens[: self.start], torch.tensor(after)
        self.words = torch.tensor([self.tokenizer(f" {word}").input_ids[0] for word in WORDS])

    def embed(
        self, model: Qwen2_5_VLForConditionalGeneration, features: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (B, T, WIDTH) and positions (3, B, T) of the prompt's beginning, the vision
        tokens' features (B, N, WIDTH), and the tokens (B, A) after them."""
        words = model.model.embed_tokens
        before = words(self.before)[None].expand(len(features), -1, -1)
        embeds = torch.cat([before, features, words(tokens)], dim=1)
        end = self.start + features.shape[1]
        later = self.positions[..., end : end + 1] + torch.arange(tokens.shape[1])
        positions = torch.cat([self.positions[..., :end], later], dim=-1)
        return embeds, positions.expand(-1, len(features), -1)

    def rows(self, conversations: list[list[tuple[str, str]]]) -> tuple[Tensor, Tensor]:
        """Tokens (B, T) after the vision tokens, padded at the right, and their labels (B, T)."""
        rows, labels = [], []
        for turns in conversations:
            row: list[int] = []
            label: list[int] = []
            for question, answer in turns:
                opening = f"\n{START}user\n" if row else VISION_END
                asked = self.tokenizer(f"{opening}{question}{END}\n{START}assistant\n").input_ids
                said = self.tokenizer(f"{answer}{END}").input_ids
                row += asked + said
                label += [IGNORE] * len(asked) + said
            rows.append(torch.tensor(row))
            labels.append(torch.tensor(label))
        pad = nn.utils.rnn.pad_sequence
        return pad(rows, batch_first=True), pad(labels, batch_first=True, padding_value=IGNORE)


class QwenReader:
    """The language model as ``language_loss`` reads it."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, prompt: Prompt) -> None:
        self.model, self.prompt = model, prompt
        self.head, self.words, self.rows = model.lm_head, prompt.words, prompt.rows

    def states(self, features: Tensor, tokens: Tensor) -> tuple[list[Tensor], int]:
        """See ``training.Reader``."""
        embeds, positions = self.prompt.embed(self.model, features, tokens)
        states = self.model.model(
            inputs_embeds=embeds, position_ids=positions, use_cache=False, output_hidden_states=True
        ).hidden_states
        return [states[layer] for layer in NAMING_LAYERS], self.prompt.start


@torch.no_grad()
def describe(
    model: Qwen2_5_VLForConditionalGeneration, prompt: Prompt, features: Tensor
) -> list[str]:
    """A greedy caption for each picture's (N, GRID * GRID, WIDTH) features."""
    end = prompt.tokenizer.eos_token_id
    embeds, positions = prompt.embed(model, features, prompt.after.expand(len(features), -1))
    cache, said = DynamicCache(), torch.empty(len(features), 0, dtype=torch.long)
    ended = torch.zeros(len(features), dtype=torch.bool)
    while not ended.all() and said.shape[1] < 64:
        states = model.model(
            inputs_embeds=embeds, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
        token = model.lm_head(states[:, -1]).argmax(-1).masked_fill(ended, end)
        said = torch.cat([said, token[:, None]], dim=1)
        ended |= token == end
        embeds, positions = model.model.embed_tokens(said[:, -1:]), positions[..., -1:] + 1
    return list(prompt.tokenizer.batch_decode(said, skip_special_tokens=True))


def train_language_model(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    prompt: Prompt,
    work: Path,
    log: Log,
) -> None:
    """Teach the language model captions and answers, the tower frozen."""

    def seen_in(pictures: np.ndarray) -> Tensor:
        return see(model.visual, as_patches(pictures, processor))

    pool = draw_pool(work, "train", LANGUAGE.scenes, IMAGE_SIDE, GRID)
    features = features_of(seen_in, pool.pop("pictures"), 64, work / "features.pt")
    unseen = draw_pool(work, "dev", DEV_SCENES, IMAGE_SIDE, GRID)["pictures"]
    unseen_features = features_of(seen_in, unseen, 64).float()
    reader = QwenReader(model, prompt)

    def scores() -> dict[str, float]:
        found = hallucination(describe(model, prompt, unseen_features))
        return found | {"YesNo": yes_no_accuracy(reader, unseen_features)}

    modules = nn.ModuleDict({"model": model.model, "lm_head": model.lm_head})
    for stage, talk in ((LANGUAGE, conversation), (QUESTIONS, questions)):
        train_language(stage, talk, reader, NAMING_LOSS, modules, pool, features, work, log, scores)


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
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    processor = make_processor()
    model = make_model(processor)
    prompt = Prompt(model, processor)
    head = nn.Linear(WIDTH, model.config.vocab_size, bias=False)
    log = Log(args.work / "training_log.jsonl")
    begin_run(args.work)
    train_tower(model.visual, head, processor, prompt.words, args.work, log)
    model.lm_head.load_state_dict(head.state_dict())
    model.model.embed_tokens.load_state_dict(head.state_dict())
    train_language_model(model, processor, prompt, args.work, log)
    save_checkpoint(model, processor, args.out)
    write_record(args.out, args.work, log, model, seed=args.seed, threads=args.threads)


if __name__ == "__main__":
    main()
