"""Tiny models with random weights, made from the configs that Transformers gives its families."""

from typing import Any

import torch
import transformers
from transformers.models.auto import configuration_auto, modeling_auto

from releases import RELEASE

NEWER = RELEASE >= (5, 0)
PAD, BOS, EOS, IMAGE, VIDEO, VISION_START, VISION_END, AUDIO = 0, 1, 2, 5, 6, 7, 8, 9
LAYERS, VOCABULARY = 4, 120

# The fields of configs and their sizes here; a family has some of them.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "unpadded_vocab_size": VOCABULARY - 8,
    **dict.fromkeys(("hidden_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "intermediate_size_mlp", "ffn_dim"), 48),
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "sliding_window": 16,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
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
    **dict.fromkeys(("index_topk", "attention_chunk_size"), 64),
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
    **dict.fromkeys(("out_hidden_size", "text_hidden_size", "vision_output_dim"), 32),
    **dict.fromkeys(("projector_input_dim", "projector_output_dim", "image_token_embed_dim"), 32),
    **dict.fromkeys(("mm_embed_dim", "output_proj_dims"), 32),
    **dict.fromkeys(("num_position_embeddings", "num_patches", "window_size", "embed_dim"), 16),
    "deepstack_visual_indexes": [0, 1],
    "fullatt_block_indexes": [1],
    "vision_use_head": False,
    # Codebooks
    **dict.fromkeys(("codebook_size", "num_embeddings"), 10),
    "base_channels": 32,
    "latent_channels": 8,
    "num_res_blocks": 1,
    "channel_multiplier": [1, 1],
    "attn_resolutions": [],
    # Q-Formers and resamplers
    "vocab_size": 40,
    "encoder_hidden_size": 16,
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0),
    "resampler_n_latents": 3,
    "resampler_depth": 1,
    "resampler_n_heads": 4,
    "resampler_head_dim": 8,
    # SAM's
    "output_channels": 8,
    "mlp_dim": 24,
    "global_attn_indexes": [1],
    "downsample_channels": [8, 16],
}
# Audio towers, which no test runs.
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
    **dict.fromkeys(("boi_token_id", "boi_token_index"), VISION_START),
    **dict.fromkeys(("eoi_token_id", "eoi_token_index"), VISION_END),
    **dict.fromkeys(("video_start_token_id", "boa_token_id"), 3),
    **dict.fromkeys(("video_end_token_id", "eoa_token_id"), 4),
    **dict.fromkeys(("projector_hidden_size", "projection_hidden_size", "hidden_size"), 32),
    "projection_dim": 32,
}
_PART_SIZES = {"text_config": SIZES, "audio_config": AUDIO_SIZES}


def config(model_type: str, **changes: Any) -> Any:
    """A family's config with every size that the tables above know, and then `changes`.

    A changed part (`text_config`, ...) is merged, and None restores the family's default.
    """
    kind = getattr(transformers, configuration_auto.CONFIG_MAPPING_NAMES[model_type])
    default = kind().to_dict()
    settings = _known(default, IDS if "text_config" in default else {**SIZES, **IDS})
    settings |= _parts(default, _PART_SIZES)
    settings = _merged(settings, changes)
    text = settings.get("text_config", {})
    if not NEWER and "rope_parameters" in text:  # the older name of the field
        rope = dict(text.pop("rope_parameters"))
        text["partial_rotary_factor"] = rope.pop("partial_rotary_factor", 1.0)
        text["rope_scaling"] = rope
    return kind(**settings)


def _parts(default: dict[str, Any], sizes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The configs inside a config."""
    made = {}
    for name, part in default.items():
        if name.endswith("_config") and name != "per_layer_config" and isinstance(part, dict):
            made[name] = {**_known(part, sizes.get(name, VISION_SIZES)), **_parts(part, {})}
            if "model_type" in part:
                made[name]["model_type"] = part["model_type"]
    return made


def _merged(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(settings)
    for name, change in changes.items():
        both = isinstance(change, dict) and isinstance(settings.get(name), dict)
        merged[name] = _merged(settings[name], change) if both else change
    return {name: value for name, value in merged.items() if value is not None}


def _known(default: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    return {name: size for name, size in sizes.items() if default.get(name) is not None}


def tiny_model(model_type: str, **changes: Any) -> Any:
    """The class that Transformers maps the family to, with random weights."""
    name = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type]
    torch.manual_seed(0)
    return randomize(getattr(transformers, name)(config(model_type, **changes)))


def default_model(model_type: str, **settings: Any) -> Any:
    """The family's model at its default size, without memory for its weights."""
    kind = getattr(transformers, configuration_auto.CONFIG_MAPPING_NAMES[model_type])
    name = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type]
    with torch.device("meta"):
        return getattr(transformers, name)(kind(**settings))


def language_model(name: str = "Llama", config_name: str | None = None, **changes: Any) -> Any:
    """A causal language model, whose config names a token for images."""
    kind = getattr(transformers, f"{config_name or name}Config")
    settings = kind(**{**_known(kind().to_dict(), SIZES), **changes})
    settings.image_token_id = IMAGE
    torch.manual_seed(0)
    return randomize(getattr(transformers, f"{name}ForCausalLM")(settings))


def randomize(model: Any, scale: float = 0.25) -> Any:
    """Weights that make tokens differ, which the small ones of a new model do not."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.ndim > 1 or name.endswith(("bias", "newline")):
                parameter.normal_(std=scale)
    model.tie_weights()
    for part in model.modules():  # BLIP-2 generates with its language model's settings
        if settings := getattr(part, "generation_config", None):
            settings.eos_token_id = None
            settings.pad_token_id = PAD
    return model.eval()
