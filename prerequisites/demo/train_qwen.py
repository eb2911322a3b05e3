"""Train the demo's tiny Qwen2.5-VL and write it in the format of Qwen/Qwen2.5-VL-7B-Instruct."""

from __future__ import annotations

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

from captions import QUESTION, WORDS
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
from training import NAMING_LAYERS, TinyModel, normalised, run

WIDTH, HEADS, LAYERS, INNER = 128, 4, 4, 256
TOWER_WIDTH, TOWER_HEADS, TOWER_INNER, TOWER_LAYERS = 96, 3, 256, 4
WINDOW, FULL_ATTENTION = 56, [1, 3]
ROPE_BASE, ROPE_SECTIONS = 1000.0, [4, 6, 6]


class TinyQwen(TinyModel):
    """The model, its processor, and the evaluation's prompt around the vision tokens of a picture:
    tokens and positions."""

    side, grid, batch = IMAGE_SIDE, GRID, 64

    def __init__(
        self, model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor
    ) -> None:
        self.model, self.processor, self.tokenizer = model, processor, processor.tokenizer
        self.head, self.embedding = model.lm_head, model.model.embed_tokens
        self.tower = {"visual": model.visual}
        self.language = {"model": model.model, "lm_head": model.lm_head}
        content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        tokens = self.tokenizer(text.replace(IMAGE, IMAGE * GRID**2), return_tensors="pt").input_ids
        grid = torch.tensor([[1, GRID * MERGE, GRID * MERGE]])
        self.positions, _ = model.get_rope_index(tokens, grid)
        self.start = int((tokens[0] == model.config.image_token_id).nonzero()[0])
        self.before, self.after = tokens[0, : self.start], torch.tensor(self.asked(QUESTION, True))
        self.words = torch.tensor([self.tokenizer(f" {word}").input_ids[0] for word in WORDS])

    def see(self, pictures: np.ndarray) -> Tensor:
        return see(self.model.visual, as_patches(pictures, self.processor))

    def embed(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B, T, WIDTH) and positions (3, B, T) of the prompt's beginning, the vision
        tokens' features (B, N, WIDTH), and the tokens (B, A) after them."""
        before = self.embedding(self.before)[None].expand(len(features), -1, -1)
        embeds = torch.cat([before, features, self.embedding(tokens)], dim=1)
        end = self.start + features.shape[1]
        later = self.positions[..., end : end + 1] + torch.arange(tokens.shape[1])
        positions = torch.cat([self.positions[..., :end], later], dim=-1)
        return embeds, positions.expand(-1, len(features), -1)

    def asked(self, question: str, first: bool) -> list[int]:
        opening = VISION_END if first else f"\n{START}user\n"
        ids: list[int] = self.tokenizer(f"{opening}{question}{END}\n{START}assistant\n").input_ids
        return ids

    def answered(self, answer: str) -> list[int]:
        ids: list[int] = self.tokenizer(f"{answer}{END}").input_ids
        return ids

    def states(self, features: Tensor, tokens: Tensor) -> tuple[list[Tensor], int]:
        embeds, positions = self.embed(features, tokens)
        states = self.model.model(
            inputs_embeds=embeds, position_ids=positions, use_cache=False, output_hidden_states=True
        ).hidden_states
        return [states[layer] for layer in NAMING_LAYERS], self.start

    @torch.no_grad()
    def describe(self, features: Tensor) -> list[str]:
        end = self.tokenizer.eos_token_id
        embeds, positions = self.embed(features, self.after.expand(len(features), -1))
        cache, tokens = DynamicCache(), torch.empty(len(features), 0, dtype=torch.long)
        ended = torch.zeros(len(features), dtype=torch.bool)
        while not ended.all() and tokens.shape[1] < 64:
            states = self.model.model(
                inputs_embeds=embeds, position_ids=positions, past_key_values=cache, use_cache=True
            ).last_hidden_state
            token = self.head(states[:, -1]).argmax(-1).masked_fill(ended, end)
            tokens = torch.cat([tokens, token[:, None]], dim=1)
            ended |= token == end
            embeds, positions = self.embedding(tokens[:, -1:]), positions[..., -1:] + 1
        return list(self.tokenizer.batch_decode(tokens, skip_special_tokens=True))

    def save(self, folder: Path) -> nn.Module:
        """Write configuration, weights in float32, tokenizer, chat template, image processor."""
        self.model.config.torch_dtype = torch.float32
        end, pad = self.model.config.eos_token_id, self.model.config.pad_token_id
        self.model.generation_config = GenerationConfig(eos_token_id=[end, pad], pad_token_id=pad)
        self.model.save_pretrained(folder, safe_serialization=True)
        self.processor.save_pretrained(folder)
        trained: nn.Module = self.model
        return trained


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
        bos_token_id=token("<|endoftext|>"),
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


def make(work: Path) -> TinyQwen:
    """The untrained model; its tokenizer is trained anew, in a second."""
    processor = make_processor()
    return TinyQwen(make_model(processor), processor)


if __name__ == "__main__":
    run(make, "qwen")
