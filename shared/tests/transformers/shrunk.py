"""Tiny models from the configs that Transformers gives its families, number by number."""

from typing import Any

import torch
import transformers
from transformers.models.auto import configuration_auto, modeling_auto

from families import (
    BOS,
    EOS,
    IMAGE,
    LAYERS,
    NEWER,
    PAD,
    VIDEO,
    VISION_END,
    VISION_START,
    VOCABULARY,
    randomize,
)

AUDIO = 9

# What fields of configs are called, and how large they are here; a family has some of them.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "unpadded_vocab_size": VOCABULARY - 8,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "sliding_window": 16,
    # Mixtures of experts
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_shared_experts", "moe_num_shared_experts", "n_group", "topk_group"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("share_expert_dim", "moe_hidden_size", "dense_intermediate_size"), 16),
    "shared_intermediate_size": 16,
    # Latent, indexed and linear attention
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("index_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("linear_head_dim", "linear_num_heads"), 4),
    **dict.fromkeys(("index_n_heads", "linear_num_key_heads"), 2),
    "index_topk": 64,
    "linear_num_value_heads": 4,
    "rotary_dim": 4,
}
VISION_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    **dict.fromkeys(("num_hidden_layers", "depth"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "num_key_value_heads"), 2),
    "head_dim": 8,
    "image_size": 16,
    "patch_size": 4,
    **dict.fromkeys(("out_hidden_size", "text_hidden_size"), 32),
    "num_position_embeddings": 16,
    "window_size": 16,
    "deepstack_visual_indexes": [0, 1],
    "fullatt_block_indexes": [1],
    "vision_use_head": False,
    # SAM's
    "output_channels": 8,
    "mlp_dim": 24,
    "global_attn_indexes": [1],
    "downsample_channels": [8, 16],
}
# The audio towers that some of them have besides, and that no test runs.
AUDIO_SIZES: dict[str, Any] = {
    **VISION_SIZES,
    "encoder_layers": 1,
    **dict.fromkeys(("d_model", "downsample_hidden_size"), 16),
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "output_dim": 32,
    "num_mel_bins": 16,
}
IDS: dict[str, int] = {
    **dict.fromkeys(("image_token_id", "image_token_index", "image_patch_id"), IMAGE),
    **dict.fromkeys(("video_token_id", "video_token_index"), VIDEO),
    **dict.fromkeys(("audio_token_id", "audio_token_index"), AUDIO),
    **dict.fromkeys(("vision_start_token_id", "image_start_token_id", "im_start_id"), VISION_START),
    **dict.fromkeys(("vision_end_token_id", "image_end_token_id", "im_end_id"), VISION_END),
    **dict.fromkeys(("video_start_token_id", "boa_token_id"), 3),
    **dict.fromkeys(("video_end_token_id", "eoa_token_id"), 4),
    "boi_token_id": VISION_START,
    "eoi_token_id": VISION_END,
    "boi_token_index": VISION_START,
    "eoi_token_index": VISION_END,
    **dict.fromkeys(("projector_hidden_size", "projection_hidden_size", "hidden_size"), 32),
    "projection_dim": 32,
}

_PARTS = {"text_config": SIZES, "audio_config": AUDIO_SIZES}


def config(key: str, **changes: Any) -> Any:
    """The config of a family with every size that `SIZES` knows, and what is changed besides.

    A change of a part (`text_config`, ...) is merged; any other replaces.
    """
    kind = getattr(transformers, configuration_auto.CONFIG_MAPPING_NAMES[key])
    told = kind().to_dict()
    parts = {name: part for name, part in told.items() if name.endswith("_config")}
    settings = {**_known(told, IDS if "text_config" in told else {**SIZES, **IDS})}
    for name, part in parts.items():
        if isinstance(part, dict):
            settings[name] = _part(part, _PARTS.get(name, VISION_SIZES))
    settings = _merged(settings, changes)
    text = settings.get("text_config", {})
    if not NEWER and "rope_parameters" in text:  # what these releases call it
        rope = dict(text.pop("rope_parameters"))
        text["partial_rotary_factor"] = rope.pop("partial_rotary_factor", 1.0)
        text["rope_scaling"] = rope
    return kind(**settings)


def _part(told: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    inner = {
        name: _part(part, VISION_SIZES)
        for name, part in told.items()
        if name.endswith("_config") and name != "per_layer_config" and isinstance(part, dict)
    }
    model_type = {"model_type": told["model_type"]} if "model_type" in told else {}
    return {**_known(told, sizes), **inner, **model_type}


def _merged(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`None` takes a setting out, so that the family's own default counts."""
    merged = dict(settings)
    for name, change in changes.items():
        both = isinstance(change, dict) and isinstance(settings.get(name), dict)
        merged[name] = _merged(settings[name], change) if both else change
    return {name: value for name, value in merged.items() if value is not None}


def _known(told: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    return {name: size for name, size in sizes.items() if told.get(name) is not None}


def model(key: str, **changes: Any) -> Any:
    """The model that Transformers maps the family to, with random weights."""
    name = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[key]
    torch.manual_seed(0)
    return randomize(getattr(transformers, name)(config(key, **changes)))


def outline(key: str, **settings: Any) -> Any:
    """The family's model at its own default size, without memory for its weights."""
    kind = getattr(transformers, configuration_auto.CONFIG_MAPPING_NAMES[key])
    name = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[key]
    with torch.device("meta"):
        return getattr(transformers, name)(kind(**settings))
