"""Tiny models with random weights, made from the configs that Transformers gives its families."""

from typing import Any

import torch
import transformers
from transformers.models.auto import configuration_auto, modeling_auto

from releases import RELEASE

NEWER = RELEASE >= (5, 0)
PAD, BOS, EOS, IMAGE, VIDEO, VISION_START, VISION_END, AUDIO = 0, 1, 2, 5, 6, 7, 8, 9
LAYERS, VOCABULARY = 4, 120


def _by_name(*rows: tuple[Any, ...]) -> dict[str, Any]:
    """Rows of a value and the fields that have it, as a dictionary of the fields."""
    return {name: value for value, *names in rows for name in names}


# The fields of configs and their values here; a family has some of them.
SIZES = _by_name(
    (VOCABULARY, "vocab_size", "vocab_size_per_layer_input"),
    (VOCABULARY - 8, "unpadded_vocab_size"),
    (32, "hidden_size", "word_embed_proj_dim"),
    (48, "intermediate_size", "intermediate_size_mlp", "ffn_dim"),
    (LAYERS, "num_hidden_layers", "layers"),
    (4, "num_attention_heads", "attention_heads", "rotary_dim"),
    (2, "num_key_value_heads"),
    (8, "head_dim", "query_pre_attn_scalar", "hidden_size_per_layer_input", "block_multiple_of"),
    (256, "max_position_embeddings"),
    (PAD, "pad_token_id"),
    (BOS, "bos_token_id"),
    (EOS, "eos_token_id"),
    # Mixtures of experts
    (4, "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    (2, "num_experts_per_tok", "moe_topk", "moe_k"),
    (1, "n_shared_experts", "moe_num_shared_experts", "n_group", "topk_group"),
    (16, "moe_intermediate_size", "shared_expert_intermediate_size", "share_expert_dim"),
    (16, "moe_hidden_size", "dense_intermediate_size", "shared_intermediate_size"),
    ([1], "moe_layers"),
    # Latent, indexed, linear and sliding attention, and looped layers
    (16, "kv_lora_rank", "q_lora_rank", "sliding_window"),
    (8, "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"),
    (8, "index_head_dim", "linear_key_head_dim", "linear_value_head_dim"),
    (4, "linear_head_dim", "linear_num_heads", "linear_num_value_heads"),
    (2, "index_n_heads", "linear_num_key_heads"),
    (64, "index_topk", "attention_chunk_size"),
    (1, "loop_layer_index_start"),
    (3, "loop_layer_index_end"),
)
VISION_SIZES = _by_name(
    (16, "hidden_size", "image_size", "num_position_embeddings", "num_patches", "window_size"),
    (16, "embed_dim", "projection_hidden_dim", "num_image_tokens", "adapter_in_dim"),
    (24, "intermediate_size"),
    (2, "num_hidden_layers", "depth", "video_temporal_patch_size", "hidden_stride"),
    (2, "num_attention_heads", "num_heads", "num_key_value_heads"),
    (8, "head_dim"),
    (4, "patch_size", "posemb_grid_size", "n_layers"),
    (32, "out_hidden_size", "text_hidden_size", "vision_output_dim", "adapter_out_dim"),
    (32, "projector_input_dim", "projector_output_dim", "image_token_embed_dim"),
    (32, "mm_embed_dim", "output_proj_dims"),
    (48, "patch_embed_hidden_size"),
    ([0, 1], "deepstack_visual_indexes"),
    ([1], "fullatt_block_indexes"),
    ([1, 0], "vision_feature_layer"),
    (False, "vision_use_head"),
    ({}, "per_layer_config"),
    # Codebooks
    (10, "codebook_size", "num_embeddings"),
    (32, "base_channels"),
    (8, "latent_channels"),
    (1, "num_res_blocks"),
    ([1, 1], "channel_multiplier"),
    ([], "attn_resolutions"),
    # Q-Formers and resamplers
    (40, "vocab_size"),
    (16, "encoder_hidden_size"),
    (0.0, "hidden_dropout_prob", "attention_probs_dropout_prob"),
    (3, "resampler_n_latents"),
    (1, "resampler_depth"),
    (4, "resampler_n_heads"),
    (8, "resampler_head_dim"),
    # SAM's
    (4, "scale"),
    (8, "output_channels"),
    (24, "mlp_dim"),
    ([1], "global_attn_indexes"),
    ([8, 16], "downsample_channels"),
)
# Audio towers, which no test runs.
AUDIO_SIZES = VISION_SIZES | _by_name(
    (1, "encoder_layers"),
    (2, "encoder_attention_heads"),
    (16, "d_model", "downsample_hidden_size", "num_mel_bins", "adapter_input_size"),
    (24, "encoder_ffn_dim"),
    (32, "output_dim"),
    (4, "n_mel_bins"),
    (8, "mel_vocab_size"),
    ([16] * 4, "hidden_sizes"),
    ([1] * 4, "depths"),
    ([2] * 4, "patch_sizes"),
)
# Of a config that has others inside.
IDS = _by_name(
    (IMAGE, "image_token_id", "image_token_index", "image_patch_id"),
    (VIDEO, "video_token_id", "video_token_index"),
    (AUDIO, "audio_token_id", "audio_token_index"),
    (VISION_START, "vision_start_token_id", "image_start_token_id", "im_start_id"),
    (VISION_START, "boi_token_id", "boi_token_index"),
    (VISION_END, "vision_end_token_id", "image_end_token_id", "im_end_id"),
    (VISION_END, "eoi_token_id", "eoi_token_index"),
    (3, "video_start_token_id", "boa_token_id"),
    (4, "video_end_token_id", "eoa_token_id"),
    (90, "image_token_offset"),
    (100, "audio_token_offset"),
    ([111, 112, 113, 114, 115], "visual_indicator_token_ids"),
    (3, "num_query_tokens", "latent_query_num"),
    (4, "mm_tokens_per_image"),
    ({16: 4}, "projector_patch_to_query_dict"),
    (16, "projection_hidden_size", "vision_hidden_size"),
    (32, "projector_hidden_size", "projection_dim", "hidden_size"),
    (48, "alignment_intermediate_size"),
    ([[16, 32], [32, 16], [32, 32]], "image_grid_pinpoints"),
    (False, "vision_use_cls_token"),
)
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
