"""What ReVisiT does with each family that Transformers maps to image-text-to-text.

A row is `Exact` (with the argument that it needs, if it needs one), `Refused` before anything is
generated, `NotBuilt` tiny, or `Broken` in this release of Transformers. To add a family, give it a
row: most are `_exact(KEY, IMAGE)`, where `shrunk.model(KEY)` makes the model from Transformers' own
config, and IMAGE makes the tensors of one image.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

import families
import shrunk
from families import (
    FAMILIES,
    IMAGE,
    NEWER,
    OPT,
    QFORMER,
    VIDEO,
    VISION,
    VISION_END,
    VISION_START,
    Family,
    Inputs,
    same,
    softcap,
)
from releases import RELEASE


class Exact(NamedTuple):
    """Equal to the dense float64 computation."""

    family: Family
    # What `attach` and `generate` are given besides, made from the model and one prompt's inputs.
    given: Callable[[Any, Inputs], dict[str, Any]] = lambda model, inputs: {}
    argument: str = ""  # the same in words
    note: str = ""
    layers: tuple[str, ...] = ("last", "all")  # that work; others are refused


class Refused(NamedTuple):
    """An error says why before anything is generated."""

    make: Callable[[], Any]
    message: str  # a pattern of the error's message
    reason: str


class NotBuilt(NamedTuple):
    """No tiny model of it is made here."""

    reason: str


class Broken(NamedTuple):
    """This release of Transformers fails to run it, whatever decodes."""

    family: Family
    error: str  # a pattern of the AttributeError's message
    reason: str


Row = Exact | Refused | NotBuilt | Broken


def _pixels(*shape: int) -> Callable[[int], tuple[Inputs, None]]:
    """Images of one shape."""
    return lambda number: ({"pixel_values": torch.randn(1, *shape)}, None)


def _patches(*patch: int, **more: Any) -> Callable[[int], tuple[Inputs, None]]:
    """Images of several sizes, as rows of patches in a grid of (frames, rows, columns)."""

    def image(number: int) -> tuple[Inputs, None]:
        grid = torch.tensor([[(1, 4, 4), (1, 4, 8)][number % 2]])
        pixels = torch.randn(int(grid.prod()), *patch)
        return {"pixel_values": pixels, "image_grid_thw": grid, **more}, None

    return image


def _exact(
    key: str,
    image: Callable[[int], tuple[Inputs, int | None]],
    *,
    note: str = "",
    given: Callable[[Any, Inputs], dict[str, Any]] = lambda model, inputs: {},
    argument: str = "",
    finish: Callable[[Any], Any] = same,
    padded: bool = True,
    types: str | None = "mm_token_type_ids",
    images: tuple[int, ...] = (1, 2, 1),
    nested: bool = False,
    unnormed: bool = False,
    layers: tuple[str, ...] = ("last", "all"),
    **changes: Any,
) -> Exact:
    family = Family(
        "",
        partial(shrunk.model, key, **changes),
        image,
        finish=finish,
        padded=padded,
        types=types,
        images=images,
        nested=nested,
        unnormed=unnormed,
    )
    return Exact(family, given, argument, note, layers)


MASK = "`vision_mask`: its config names no image token id"
ONE_STREAM = '`layers="last"`: its inner layers hold several streams, which "all" is refused for'
ALONE = "one prompt at a time: padding changes the model's own logits"
TOGETHER = "one prompt at a time: images of several prompts change the model's own logits"
CROSS = "reads its images by cross-attention: its prompt holds no vision tokens"
ENCODER = "an encoder-decoder: its decoder's prompt holds no vision tokens"
NOT_TEXT = "does not write token by token with `generate`"
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
QWEN = _patches(96)
GLM = {"rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}}
OMNI = {"text_config": {"rope_parameters": MROPE}, "vision_start_token_id": 7}
INKLING_VISION = {"posemb_grid_size": 4, "projection_hidden_dim": 16}
MINICPM = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "text_config": {"rope_parameters": MROPE},
}


def _inkling(number: int) -> tuple[Inputs, int]:
    grid = torch.tensor([[1, 2, 2]])
    return {"pixel_values": torch.randn(4, 8, 8, 3), "image_grid_thw": grid}, 4


ROWS: dict[str, Row] = {
    **{
        key: Exact(FAMILIES[name])
        for key, name in {
            "aya_vision": "AyaVision",
            "blip-2": "BLIP-2",
            "chameleon": "Chameleon",
            "cohere2_vision": "Cohere2Vision",
            "gemma3": "Gemma 3",
            "gemma4": "Gemma 4",
            "glm4v": "GLM-4V",
            "granite4_vision": "Granite 4 Vision",
            "idefics2": "Idefics2",
            "idefics3": "Idefics3",
            "instructblip": "InstructBLIP",
            "internvl": "InternVL",
            "llama4": "Llama 4",
            "llava": "LLaVA",
            "llava_next": "LLaVA-NeXT",
            "llava_next_video": "LLaVA-NeXT-Video",
            "llava_onevision": "LLaVA-OneVision",
            "mistral3": "Mistral3",
            "ovis2": "Ovis2",
            "paligemma": "PaliGemma",
            "pixtral": "Pixtral",
            "qwen2_5_vl": "Qwen2.5-VL",
            "qwen2_vl": "Qwen2-VL",
            "smolvlm": "SmolVLM",
            "vipllava": "VipLLaVA",
        }.items()
    },
    "lfm2_vl": Exact(FAMILIES["LFM2-VL"], note=f"4.57: {ALONE}"),
    "qwen3_vl": Exact(
        FAMILIES["Qwen3-VL"],
        note="early layers: their states before visual features are added; 4.57: after",
    ),
    "aria": _exact("aria", _pixels(3, 16, 16), projector_patch_to_query_dict={16: 4}),
    "cohere_compass": _exact(
        "cohere_compass",
        QWEN,
        text_config={
            "rope_parameters": {"full_attention": MROPE, "sliding_attention": MROPE},
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "cosmos3_edge": _exact("cosmos3_edge", _patches(48), text_config={"rope_parameters": MROPE}),
    "cosmos3_omni": _exact("cosmos3_omni", QWEN, text_config={"rope_parameters": MROPE}),
    "deepseek_vl": _exact("deepseek_vl", _pixels(3, 16, 16)),
    "ernie4_5_vl_moe": _exact(
        "ernie4_5_vl_moe",
        _patches(48),
        text_config={
            "moe_intermediate_size": [16, 16],
            "rope_parameters": {**MROPE, "mrope_section": [1, 1, 2]},
        },
    ),
    "exaone4_5": _exact("exaone4_5", QWEN),
    "fuyu": _exact(
        "fuyu",
        lambda number: ({"pixel_values": torch.randn(1, 4, 48)}, 4),
        patch_size=4,
        image_size=16,
        images=(1, 1, 1),
        hidden_size=32,
        text_config={
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            }
        },
    ),
    "glm46v": _exact("glm46v", QWEN, text_config=GLM),
    "glm4v_moe": _exact("glm4v_moe", QWEN, text_config=GLM),
    "glm_ocr": _exact("glm_ocr", QWEN, text_config=GLM),
    "glmga": _exact("glmga", QWEN, text_config=GLM),
    "got_ocr2": _exact("got_ocr2", _pixels(3, 32, 32), vision_config={"image_size": 32}),
    "pp_chart2table": _exact(
        "pp_chart2table", _pixels(3, 32, 32), vision_config={"image_size": 32}
    ),
    "granite_docling": _exact(
        "granite_docling",
        lambda number: (
            {
                "pixel_values": torch.randn(1, 1, 3, 16, 16),
                "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool),
            },
            None,
        ),
        finish=lambda product: product / 4,
        images=(1, 1, 1),
    ),
    "hunyuan_vl": _exact(
        "hunyuan_vl",
        _patches(48),
        padded=False,
        note=ALONE,
        text_config={"head_dim": 8, "rope_parameters": MROPE},
    ),
    "hyperclovax_vision_v2": _exact("hyperclovax_vision_v2", QWEN),
    "kimi_k25": _exact(
        "kimi_k25",
        _patches(3, 4, 4),
        projection_hidden_size=16,
        text_config={"num_key_value_heads": 4},
    ),
    "lfm3_vl": _exact("lfm3_vl", QWEN),
    "lighton_ocr": _exact(
        "lighton_ocr",
        lambda number: (
            {"pixel_values": torch.randn(1, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]])},
            None,
        ),
    ),
    "minicpm_ocr": _exact(
        "minicpm_ocr",
        lambda number: (
            {"pixel_values": torch.randn(1, 3, 4, 64), "target_sizes": torch.tensor([[4, 4]])},
            None,
        ),
        **MINICPM,
    ),
    "minimax_m3_vl": _exact("minimax_m3_vl", QWEN),
    "mistral_large4": _exact(
        "mistral_large4",
        lambda number: (
            {"pixel_values": torch.randn(1, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]])},
            None,
        ),
        finish=softcap(30.0),
        text_config={"num_key_value_heads": 4},
    ),
    "muse_glimmer": _exact(
        "muse_glimmer",
        QWEN,
        finish=lambda product: softcap(20.0)(0.19611613513818404 * product),
        out_hidden_size=64,
    ),
    "paddleocr_vl": _exact(
        "paddleocr_vl", _patches(3, 4, 4), text_config={"rope_parameters": MROPE}
    ),
    "qianfan_ocr": _exact("qianfan_ocr", _pixels(3, 16, 16)),
    "qwen2_5_omni_thinker": _exact("qwen2_5_omni_thinker", QWEN, **OMNI),
    "qwen3_omni_moe_thinker": _exact("qwen3_omni_moe_thinker", QWEN, **OMNI),
    "qwen3_5": _exact("qwen3_5", QWEN, text_config={"rope_parameters": MROPE}),
    "qwen3_5_moe": _exact("qwen3_5_moe", QWEN, text_config={"rope_parameters": MROPE}),
    "qwen3_vl_moe": _exact(
        "qwen3_vl_moe", QWEN, unnormed=not NEWER, text_config={"rope_parameters": MROPE}
    ),
    "shieldgemma2": _exact(
        "shieldgemma2", _pixels(3, 16, 16), mm_tokens_per_image=4, types="token_type_ids"
    ),
    "step3p7": _exact(
        "step3p7",
        _pixels(3, 16, 16),
        text_config={"layer_types": ["full_attention"] * 4, "sliding_window": 16},
    ),
    "video_llava": _exact(
        "video_llava", lambda number: ({"pixel_values_images": torch.randn(1, 3, 16, 16)}, 16)
    ),
    "video_llama_3": _exact("video_llama_3", _patches(48, image_merge_sizes=torch.tensor([2]))),
    "deepseek_vl_hybrid": _exact(
        "deepseek_vl_hybrid",
        lambda number: (
            {
                "pixel_values": torch.randn(1, 3, 16, 16),
                "high_res_pixel_values": torch.randn(1, 3, 64, 64),
            },
            16,
        ),
        high_res_vision_config={"image_size": 64, "scale": 4},
    ),
    "deepseek_ocr2": _exact(
        "deepseek_ocr2",
        _pixels(3, 64, 64),
        vision_config={
            "sam_config": {"image_size": 64, "scale": 4, "downsample_channels": [8, 16]}
        },
        text_config={"mlp_layer_types": ["dense", "sparse"] * 2, "num_experts_per_tok": 2},
    ),
    "unlimited_ocr": _exact(
        "unlimited_ocr",
        _pixels(3, 64, 64),
        vision_config={"sam_config": {"image_size": 64, "downsample_channels": [8, 16]}},
    ),
    "minicpmv4_6": _exact(
        "minicpmv4_6",
        lambda number: (
            {"pixel_values": torch.randn(1, 3, 4, 128), "target_sizes": torch.tensor([[4, 8]])},
            None,
        ),
        vision_config={"insert_layer_id": 0},
        padded=False,
        note=TOGETHER,
        **MINICPM,
    ),
    "minicpmv4_7": _exact(
        "minicpmv4_7",
        lambda number: (
            {"pixel_values": torch.randn(1, 3, 4, 128), "target_sizes": torch.tensor([[4, 8]])},
            None,
        ),
        vision_config={"insert_layer_id": 0},
        padded=False,
        note=TOGETHER,
        **MINICPM,
    ),
    "molmo2": _exact(
        "molmo2",
        lambda number: (
            {
                "pixel_values": torch.randn(1, 16, 48),
                "image_token_pooling": torch.arange(16).view(4, 4),
                "image_grids": torch.tensor([[2, 2, 0, 0]]),
                "image_num_crops": torch.tensor([1]),
            },
            4,
        ),
        images=(1, 1, 1),
        vision_config={"image_size": [16, 16]},
        adapter_config={"vision_feature_layer": [1, 0], "image_size": None},
    ),
    "emu3": _exact(
        "emu3",
        lambda number: (
            {"pixel_values": torch.randn(1, 3, 8, 8), "image_sizes": torch.tensor([[8, 8]])},
            None,
        ),
        vq_config={
            "codebook_size": 10,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "hidden_size": 32,
            "attn_resolutions": [],
        },
        vocabulary_map={
            "<image>": IMAGE,
            "<|extra_200|>": 98,
            **{f"<|visual token {code:06d}|>": 100 + code for code in range(10)},
        },
    ),
    "gemma4_unified": _exact(
        "gemma4_unified",
        lambda number: (
            {
                "pixel_values": torch.rand(1, 4, 48),
                "image_position_ids": torch.tensor([[[x, y] for y in range(2) for x in range(2)]]),
            },
            4,
        ),
        text_config={"layer_types": ["sliding_attention", "full_attention"] * 2},
        vision_config={
            "patch_size": 4,
            "pooling_kernel_size": 1,
            "model_patch_size": 4,
            "mm_embed_dim": 32,
            "output_proj_dims": 32,
        },
    ),
    "instructblipvideo": _exact(
        "instructblipvideo",
        lambda number: (
            {
                "pixel_values": torch.randn(1, 2, 3, 16, 16),
                "qformer_input_ids": torch.randint(1, 40, (1, 4)),
                "qformer_attention_mask": torch.ones(1, 4, dtype=torch.long),
            },
            6,
        ),
        images=(1, 1, 1),
        qformer_config=QFORMER,
        text_config=OPT,
        num_query_tokens=3,
        video_token_index=IMAGE,
    ),
    "perception_lm": _exact(
        "perception_lm",
        _pixels(1, 3, 16, 16),
        vision_config={
            "model_type": "siglip_vision_model",
            "model_args": {"embed_dim": 16},
            **VISION,
        },
        vision_use_cls_token=False,
    ),
    # Its own tower is timm's; where the vision tokens of this one stand says nothing of it.
    "fast_vlm": _exact(
        "fast_vlm",
        _pixels(3, 16, 16),
        vision_config={"model_type": "siglip_vision_model", **VISION},
    ),
    "inkling2": _exact("inkling2", _inkling, finish=softcap(30.0), vision_config=INKLING_VISION),
    "inkling2_loop": _exact(
        "inkling2_loop",
        _inkling,
        finish=softcap(30.0),
        vision_config=INKLING_VISION,
        text_config={
            "n_layers_per_attn_res_block": 1,
            "loop_layer_index_start": 1,
            "loop_layer_index_end": 3,
        },
    ),
    "apertus1p5": _exact(
        "apertus1p5",
        lambda number: (
            {"pixel_values": torch.randn(1, 3, 8, 8), "image_sizes": torch.tensor([[8, 8]])},
            None,
        ),
        image_token_offset=90,
        audio_token_offset=100,
        text_config={"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        vision_config={
            "codebook_size": 10,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "attn_resolutions": [],
        },
        audio_config={"codebook_size": 10, "codebook_dim": 16},
    ),
    "hy_v4_vl": _exact(
        "hy_v4_vl",
        _patches(48),
        layers=("last",),
        argument=ONE_STREAM,
        text_config={"rope_parameters": {**MROPE, "mrope_section": [2, 1, 1]}},
    ),
    "inkling_mm_model": _exact(
        "inkling_mm_model",
        finish=lambda product: product / 24,
        image=lambda number: ({"pixel_values": torch.randn(4, 2, 4, 4, 3)}, 4),
        images=(1, 1, 1),
        vision_config={"n_layers": 4},
        audio_config={"n_mel_bins": 4, "mel_vocab_size": 8},
    ),
    "nemotron_h_omni": _exact(
        "nemotron_h_omni",
        lambda number: (
            {"pixel_values": torch.randn(16, 48), "image_grid_hw": torch.tensor([[4, 4]])},
            4,
        ),
        vision_config={"video_temporal_patch_size": 2},
        vision_hidden_size=16,
        image_token_id=IMAGE,
    ),
    "muse_spark": _exact(
        "muse_spark",
        QWEN,
        finish=lambda product: softcap(20.0)(0.1767766952966369 * product),
        out_hidden_size=64,
        audio_config={
            "num_hidden_layers": 4,
            "hidden_sizes": [16] * 4,
            "depths": [1] * 4,
            "patch_sizes": [2] * 4,
        },
    ),
    "dots3_note": _exact(
        "dots3_note",
        _patches(48),
        text_config={
            "num_key_value_heads": 4,
            "per_layer_config": {},
            "layer_types": ["indexed_attention"] * 4,
        },
        vision_config={"per_layer_config": {}, "adapter_in_dim": 16, "adapter_out_dim": 32},
        audio_config={"adapter_input_size": 16, "adapter_out_dim": 32},
    ),
    "glm5_next": _exact(
        "glm5_next",
        QWEN,
        layers=("last",),
        argument=ONE_STREAM,
        text_config={"num_key_value_heads": 4, "qk_rope_head_dim": 0},
    ),
    "qwen4_exp": _exact(
        "qwen4_exp",
        QWEN,
        layers=("last",),
        argument=ONE_STREAM,
        text_config={
            "rope_parameters": MROPE,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 64,
            "indexer_compress_ratio": 4,
        },
    ),
    "janus": _exact(
        "janus",
        _pixels(3, 16, 16),
        vision_config={"num_image_tokens": 16, "projection_dim": 32},
        vq_config={
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "num_embeddings": 10,
            "latent_channels": 8,
            "projection_dim": 32,
            "image_token_embed_dim": 32,
        },
    ),
    "kosmos-2": Exact(
        Family(
            "",
            families.kosmos2,
            lambda number: ({"pixel_values": torch.randn(1, 3, 16, 16)}, families.QUERIES),
            images=(1, 1, 1),
            types="image_embeds_position_mask",
            padded=False,
        ),
        lambda model, inputs: {"vision_mask": inputs["input_ids"] == IMAGE},
        MASK,
        ALONE,
    ),
    "git": _exact(
        "git",
        lambda number: ({"pixel_values": torch.randn(1, 3, 16, 16)}, 1),
        images=(1, 1, 1),
        given=lambda model, inputs: {
            "decoder": model.git.encoder,
            "vision_mask": torch.arange(17 + inputs["input_ids"].shape[1])
            .lt(17)
            .expand(len(inputs["input_ids"]), -1),
        },
        padded=NEWER,
        note="" if NEWER else ALONE,
        argument="`decoder=model.git.encoder`, and `vision_mask` over the image's tokens and the "
        "prompt after them",
    ),
    "kosmos-2.5": _exact(
        "kosmos-2.5",
        lambda number: (
            {
                "flattened_patches": torch.cat(
                    [
                        torch.tensor([[[y + 1, x + 1] for y in range(4) for x in range(4)]]),
                        torch.randn(1, 16, 48),
                    ],
                    -1,
                )
            },
            3,
        ),
        images=(1, 1, 1),
        given=lambda model, inputs: {"vision_mask": inputs["input_ids"] == IMAGE},
        types="image_embeds_position_mask",
        argument=MASK,
        padded=not NEWER,
        note=ALONE,
        latent_query_num=3,
        text_config={"embed_dim": 32, "layers": 4, "ffn_dim": 48, "attention_heads": 4},
        vision_config={"patch_embed_hidden_size": 48},
    ),
    "blip": Refused(partial(shrunk.model, "blip"), "reads its images by cross-attention", CROSS),
    "idefics": Refused(
        partial(shrunk.model, "idefics"), "reads its images by cross-attention", CROSS
    ),
    "evolla": Refused(
        partial(shrunk.model, "evolla"), "reads its images by cross-attention", CROSS
    ),
    "mllama": Refused(families.mllama, "reads its images by cross-attention", CROSS),
    "florence2": Refused(families.florence2, "is an encoder-decoder", ENCODER),
    "udop": Refused(partial(shrunk.outline, "udop"), "is an encoder-decoder", ENCODER),
    "pix2struct": Refused(partial(shrunk.outline, "pix2struct"), "is an encoder-decoder", ENCODER),
    "pp_formulanet": Refused(
        partial(shrunk.outline, "pp_formulanet"), "is an encoder-decoder", ENCODER
    ),
    "t5gemma2": Refused(partial(shrunk.outline, "t5gemma2"), "is an encoder-decoder", ENCODER),
    "vision-encoder-decoder": Refused(
        partial(
            shrunk.outline,
            "vision-encoder-decoder",
            encoder={"model_type": "vit"},
            decoder={"model_type": "bert", "is_decoder": True, "add_cross_attention": True},
        ),
        "is an encoder-decoder",
        ENCODER,
    ),
    "pi0": Refused(
        partial(shrunk.outline, "pi0"), "no model of Transformers that generates", NOT_TEXT
    ),
    "diffusion_gemma": Refused(
        partial(
            shrunk.outline,
            "diffusion_gemma",
            text_config={"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
        ),
        "no model of Transformers that generates",
        NOT_TEXT,
    ),
    "mistral4": Refused(
        partial(shrunk.model, "mistral4"),
        "names no image token id",
        "a language model alone: no images",
    ),
    "gemma3n": NotBuilt(
        'its vision tower is timm\'s. Its language model is tried alone: "all" is refused, since '
        "its inner layers hold several streams"
    ),
}

# Where releases before 5.0 differ.
if not NEWER:
    ROWS["fuyu"] = NotBuilt("takes its patches as a list, and their places; exact on 5.24")
    ROWS["perception_lm"] = NotBuilt("its vision tower must be timm's; exact on 5.24")

if RELEASE >= (5, 24):
    ROWS["llama4"] = Broken(
        FAMILIES["Llama 4"],
        "image_outputs",
        "5.24: its own `forward` asks its language model for `image_outputs`, which that does not "
        "have; exact on 5.23",
    )

# Whose prompts are tried with images and videos together: the shape of a patch, the two ids.
MIXED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")
AUDIO_KEYS = ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")


def mixed_prompt(family: Family, model: Any) -> tuple[Inputs, list[int]]:
    """A prompt of two images and two videos of different sizes, and the ids of vision tokens."""
    torch.manual_seed(7)
    ids, kinds = [1, 20], {IMAGE: "image", VIDEO: "video"}
    tensors: dict[str, list[torch.Tensor]] = {}
    for token, grid in (
        (IMAGE, (1, 4, 4)),
        (VIDEO, (1, 4, 2)),
        (IMAGE, (1, 2, 6)),
        (VIDEO, (1, 2, 2)),
    ):
        count = int(np.prod(grid))
        ids += [VISION_START, *[token] * (count // 4), VISION_END, 30 + len(ids)]
        pixels = "pixel_values" if token == IMAGE else "pixel_values_videos"
        tensors.setdefault(pixels, []).append(torch.randn(count, 96))
        tensors.setdefault(f"{kinds[token]}_grid_thw", []).append(torch.tensor([grid]))
    input_ids = torch.tensor([ids])
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if family.types and family.types in inspect.signature(model.forward).parameters:
        inputs[family.types] = (input_ids == IMAGE) + 2 * (input_ids == VIDEO)
    if "video_second_per_grid" in inspect.signature(model.forward).parameters:
        inputs["video_second_per_grid"] = torch.ones(2)
    inputs.update({name: torch.cat(parts) for name, parts in tensors.items()})
    return inputs, [IMAGE, VIDEO]
