"""Tiny models of the families of Transformers, with random weights, and prompts with images."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor

from releases import RELEASE

PAD, BOS, EOS, IMAGE, VIDEO, VISION_START, VISION_END = 0, 1, 2, 5, 6, 7, 8
LAYERS, VOCABULARY = 4, 120

TEXT = {
    "vocab_size": VOCABULARY,
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
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
# Of the families that turn positions in time, rows and columns.
MROPE = {"rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [2, 1, 1]}}
QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
    "vision_token_id": VISION_END + 1,
}

Inputs = dict[str, Tensor]


NEWER = RELEASE >= (5, 0)


def same(product: Any) -> Any:
    return product


def softcap(cap: float) -> Callable[[Any], Any]:
    return lambda product: cap * np.tanh(product / cap)


class Family(NamedTuple):
    """How to build one model and its prompts."""

    needs: str  # the class of Transformers that a release may lack
    make: Callable[[], Any]
    # The tensors of the n-th image of a prompt, one row each, and how many vision tokens it takes.
    # (None where the model's own `get_image_features` tells).
    image: Callable[[int], tuple[Inputs, int | None]]
    images: Sequence[int] = (1, 2, 1)  # of each prompt
    token: int = IMAGE
    nested: bool = False  # images are given as (rows, images of a row, ...)
    types: str | None = None  # the argument that marks the vision tokens with their modality
    # Whether the model's own logits stay the same when its prompt is padded.
    padded: bool = True
    # What the model does to its LM head's product.
    finish: Callable[[Any], Any] = same
    # Whether the release reports the last hidden state before the final norm.
    unnormed: bool = False


def randomize(model: Any, scale: float = 0.25) -> Any:
    """Weights that tell tokens apart, which the small ones of a fresh model do not."""
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


def prompts(family: Family, model: Any) -> list[Inputs]:
    """Three prompts of one row each, of different lengths."""
    return [_prompt(family, model, number, count) for number, count in enumerate(family.images)]


def _prompt(family: Family, model: Any, number: int, images: int) -> Inputs:
    torch.manual_seed(100 + number)
    ids, parts = [BOS, 20 + number], []
    for image in range(images):
        tensors, tokens = family.image(number + image)
        parts.append(tensors)
        if tokens is None:
            tokens = vision_tokens(model, tensors)
        ids += [VISION_START, *[family.token] * tokens, VISION_END, 30 + image]
    ids += [40, 41, 42 + number][: number + 1]
    input_ids = torch.tensor([ids])
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if family.types and family.types in inspect.signature(model.forward).parameters:
        inputs[family.types] = (input_ids == IMAGE) + 2 * (input_ids == VIDEO)
    for name in parts[0]:
        together = _joined(name, parts)
        inputs[name] = together.unsqueeze(0) if family.nested else together
    return inputs


@torch.no_grad()
def vision_tokens(model: Any, image: Inputs) -> int:
    """How many vision tokens the model makes of an image."""
    inner = getattr(model, "model", model)
    seeing = inner if hasattr(inner, "get_image_features") else model
    features = seeing.get_image_features(**image)
    features = getattr(features, "pooler_output", features)
    if isinstance(features[0], tuple | list):  # Qwen3-VL's early layers come second
        features = features[0]
    return sum(each.flatten(0, -2).shape[0] for each in features)


def batch(rows: Sequence[Inputs]) -> Inputs:
    """The prompts as rows of one batch, padded on the left."""
    length = max(row["input_ids"].shape[1] for row in rows)
    together = {}
    for name in rows[0]:
        if all(row[name].shape == row["input_ids"].shape for row in rows):
            padded = [
                torch.nn.functional.pad(row[name], (length - row[name].shape[1], 0)) for row in rows
            ]
            together[name] = torch.cat(padded)
        else:
            together[name] = _joined(name, rows)
    return together


def _joined(name: str, parts: Sequence[Inputs]) -> Tensor:
    """The tensor of that name for several images; some families lay all patches in one strip."""
    tensors = [part[name] for part in parts]
    if name == "image_token_pooling":  # counts the patches of all images
        tensors = [one + number * one.numel() for number, one in enumerate(tensors)]
    strip = name == "pixel_values" and "target_sizes" in parts[0]
    return torch.cat(tensors, -1) if strip else cat(tensors)


def cat(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors one after another; smaller ones are filled up with zeros at their ends."""
    sizes = [max(sizes) for sizes in zip(*(one.shape[1:] for one in tensors), strict=True)]
    filled = []
    for one in tensors:
        whole = one.new_zeros((one.shape[0], *sizes))
        whole[tuple(slice(size) for size in one.shape)] = one
        filled.append(whole)
    return torch.cat(filled)


def _config(name: str, **settings: Any) -> Any:
    return getattr(transformers, name)(**settings)


def _model(name: str, config: Any) -> Any:
    torch.manual_seed(0)
    return randomize(getattr(transformers, f"{name}ForConditionalGeneration")(config))


def _pixels(*shape: int) -> Tensor:
    return torch.randn(1, *shape)


def _plain_image(tokens: int) -> Callable[[int], tuple[Inputs, int]]:
    """Images of one size, as many vision tokens each."""
    return lambda number: ({"pixel_values": _pixels(3, 16, 16)}, tokens)


# LLaVA and its kin


def _llava() -> Any:
    return _model(
        "Llava",
        _config(
            "LlavaConfig",
            vision_config=_config("CLIPVisionConfig", **VISION),
            text_config=_config("LlamaConfig", **TEXT),
            image_token_index=IMAGE,
            image_seq_length=16,
        ),
    )


def _vipllava() -> Any:
    return _model(
        "VipLlava",
        _config(
            "VipLlavaConfig",
            vision_config=_config("CLIPVisionConfig", **VISION),
            text_config=_config("LlamaConfig", **TEXT),
            image_token_index=IMAGE,
            vision_feature_layers=[-2, -1],
            image_seq_length=16,
        ),
    )


ANYRES = {"image_grid_pinpoints": [[16, 32], [32, 16], [32, 32]]}


def _llava_next() -> Any:
    return _model(
        "LlavaNext",
        _config(
            "LlavaNextConfig",
            vision_config=_config("CLIPVisionConfig", **{**VISION, "patch_size": 8}),
            text_config=_config("MistralConfig", **TEXT, sliding_window=None),
            image_token_index=IMAGE,
            **ANYRES,
        ),
    )


def _llava_next_video() -> Any:
    return _model(
        "LlavaNextVideo",
        _config(
            "LlavaNextVideoConfig",
            vision_config=_config("CLIPVisionConfig", **VISION),
            text_config=_config("LlamaConfig", **TEXT),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            **ANYRES,
        ),
    )


def _llava_onevision() -> Any:
    vision = {**VISION, "patch_size": 8, "vision_use_head": False}
    return _model(
        "LlavaOnevision",
        _config(
            "LlavaOnevisionConfig",
            vision_config=_config("SiglipVisionConfig", **vision),
            text_config=_config("Qwen2Config", **TEXT, tie_word_embeddings=True),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            tie_word_embeddings=True,
            **ANYRES,
        ),
    )


def _anyres_image(number: int) -> tuple[Inputs, int]:
    """An image in a grid of tiles: 2 x 2 tokens each, a token at each row's end, and the whole."""
    height, width = [(16, 32), (32, 32)][number % 2]
    tiles = height * width // 256
    return {
        "pixel_values": _pixels(1 + tiles, 3, 16, 16),
        "image_sizes": torch.tensor([[height, width]]),
    }, 4 + height // 8 * (width // 8 + 1)


def _granite4_vision() -> Any:
    """Images enter at several layers, and logits are divided."""
    qformer = {
        "model_type": "blip_2_qformer",
        "hidden_size": 64,
        "num_attention_heads": 1,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "encoder_hidden_size": 64,
    }
    vision = {**VISION, "hidden_size": 64, "vision_use_head": False}
    return _model(
        "Granite4Vision",
        _config(
            "Granite4VisionConfig",
            vision_config=_config("SiglipVisionConfig", **vision),
            text_config={**TEXT, "logits_scaling": 2.0},
            qformer_config=qformer,
            image_token_index=IMAGE,
            deepstack_layer_map=[[-1, 0], [-2, 1]],
            downsample_rate="1/2",
            vision_feature_select_strategy="full",
            **ANYRES,
        ),
    )


def _next_video(number: int) -> tuple[Inputs, int]:
    return {"pixel_values_videos": _pixels(2, 3, 16, 16)}, 2 * 4


def _onevision_video(number: int) -> tuple[Inputs, int]:
    return {"pixel_values_videos": _pixels(2, 3, 16, 16)}, 2 + 1


# Qwen and its kin


def _qwen2_vl() -> Any:
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4}
    return _model(
        "Qwen2VL",
        _config(
            "Qwen2VLConfig",
            vision_config={**vision, "mlp_ratio": 2},
            text_config={**TEXT, **MROPE},
            tie_word_embeddings=True,
            **QWEN_IDS,
        ),
    )


def _qwen2_5_vl() -> Any:
    vision = {
        **{name: VISION[name] for name in ("hidden_size", "intermediate_size", "patch_size")},
        "depth": 2,
        "num_heads": 2,
        "out_hidden_size": 32,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    return _model(
        "Qwen2_5_VL",
        _config(
            "Qwen2_5_VLConfig", vision_config=vision, text_config={**TEXT, **MROPE}, **QWEN_IDS
        ),
    )


def _qwen3_vl() -> Any:
    vision = {
        **{name: VISION[name] for name in ("hidden_size", "intermediate_size", "patch_size")},
        "depth": 3,
        "num_heads": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    }
    return _model(
        "Qwen3VL",
        _config("Qwen3VLConfig", vision_config=vision, text_config={**TEXT, **MROPE}, **QWEN_IDS),
    )


def _glm4v() -> Any:
    vision = {
        **VISION,
        "depth": 2,
        "num_heads": 2,
        "out_hidden_size": 32,
    }
    for name in ("num_hidden_layers", "num_attention_heads"):
        del vision[name]
    return _model(
        "Glm4v",
        _config(
            "Glm4vConfig",
            vision_config=vision,
            text_config={
                **TEXT,
                "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]},
            },
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            image_start_token_id=VISION_START,
            image_end_token_id=VISION_END,
            video_start_token_id=3,
            video_end_token_id=4,
        ),
    )


def _patches(kind: str) -> Callable[[int], tuple[Inputs, int]]:
    """Images of different sizes as a list of patches, 2 x 2 of which make a vision token."""

    def image(number: int) -> tuple[Inputs, int]:
        frames, rows, columns = [(1, 4, 4), (1, 2, 6)][number % 2]
        if kind == "video":
            frames = 2
        count = frames * rows * columns
        values = "pixel_values" if kind == "image" else "pixel_values_videos"
        grid = torch.tensor([[frames, rows, columns]])
        pixels = torch.randn(count, 3 * 2 * 4 * 4)
        return {values: pixels, f"{kind}_grid_thw": grid}, count // 4

    return image


# Others whose prompt holds a placeholder for each vision token


def _internvl() -> Any:
    return _model(
        "InternVL",
        _config(
            "InternVLConfig",
            vision_config={**VISION, "layer_scale_init_value": 1.0},
            text_config=_config("Qwen2Config", **TEXT),
            image_token_id=IMAGE,
            image_seq_length=4,
            tie_word_embeddings=False,
        ),
    )


def _gemma3() -> Any:
    text = {
        **TEXT,
        "query_pre_attn_scalar": 8,
        "sliding_window": 16,
        "sliding_window_pattern": 2,
        "final_logit_softcapping": 4.0,
    }
    return _model(
        "Gemma3",
        _config(
            "Gemma3Config",
            text_config=_config("Gemma3TextConfig", **text),
            vision_config=_config("SiglipVisionConfig", **VISION, vision_use_head=False),
            mm_tokens_per_image=4,
            image_token_index=IMAGE,
            boi_token_index=VISION_START,
            eoi_token_index=VISION_END,
        ),
    )


def _paligemma() -> Any:
    text = {**TEXT, "query_pre_attn_scalar": 8, "final_logit_softcapping": 4.0}
    vision = {**VISION, "patch_size": 8, "vision_use_head": False}
    return _model(
        "PaliGemma",
        _config(
            "PaliGemmaConfig",
            text_config=_config("Gemma2Config", **text),
            vision_config=_config("SiglipVisionConfig", **vision),
            image_token_index=IMAGE,
            vocab_size=VOCABULARY,
            projection_dim=32,
            hidden_size=32,
        ),
    )


def _idefics3() -> Any:
    return _model(
        "Idefics3",
        _config(
            "Idefics3Config",
            vision_config=VISION,
            text_config=_config("LlamaConfig", **TEXT),
            image_token_id=IMAGE,
            scale_factor=2,
            pad_token_id=PAD,
        ),
    )


def _smolvlm() -> Any:
    return _model(
        "SmolVLM",
        _config(
            "SmolVLMConfig",
            vision_config=VISION,
            text_config=_config("LlamaConfig", **TEXT, tie_word_embeddings=True),
            image_token_id=IMAGE,
            scale_factor=2,
            pad_token_id=PAD,
            tie_word_embeddings=True,
        ),
    )


def _mistral3() -> Any:
    return _model(
        "Mistral3",
        _config(
            "Mistral3Config",
            vision_config=_config("PixtralVisionConfig", **VISION),
            text_config=_config("MistralConfig", **TEXT, sliding_window=None),
            image_token_index=IMAGE,
            spatial_merge_size=2,
            tie_word_embeddings=False,
        ),
    )


def _pixtral_image(number: int) -> tuple[Inputs, int]:
    """Images of different sizes; 2 x 2 patches make a vision token."""
    height, width = [(16, 8), (16, 16)][number % 2]
    sizes = torch.tensor([[height, width]])
    return {"pixel_values": _pixels(3, height, width), "image_sizes": sizes}, height * width // 64


def _llava_pixtral() -> Any:
    return _model(
        "Llava",
        _config(
            "LlavaConfig",
            vision_config=_config("PixtralVisionConfig", **VISION),
            text_config=_config("MistralConfig", **TEXT, sliding_window=None),
            image_token_index=IMAGE,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        ),
    )


def _pixtral_12b_image(number: int) -> tuple[Inputs, int]:
    height, width = [(16, 8), (16, 16)][number % 2]
    sizes = torch.tensor([[height, width]])
    return {"pixel_values": _pixels(3, height, width), "image_sizes": sizes}, height * width // 16


def _aya_vision() -> Any:
    return _model(
        "AyaVision",
        _config(
            "AyaVisionConfig",
            vision_config=_config("SiglipVisionConfig", **VISION, vision_use_head=False),
            text_config=_config("Cohere2Config", **TEXT, logit_scale=0.25, sliding_window=16),
            image_token_index=IMAGE,
            downsample_factor=2,
        ),
    )


def _cohere2_vision() -> Any:
    return _model(
        "Cohere2Vision",
        _config(
            "Cohere2VisionConfig",
            vision_config=_config("SiglipVisionConfig", **VISION, vision_use_head=False),
            text_config=_config("Cohere2Config", **TEXT, logit_scale=0.25, sliding_window=16),
            image_token_id=IMAGE,
            downsample_factor=2,
            alignment_intermediate_size=48,
        ),
    )


def _idefics2() -> Any:
    perceiver = {
        "hidden_size": 32,
        "resampler_n_latents": 3,
        "resampler_depth": 1,
        "resampler_n_heads": 4,
        "resampler_head_dim": 8,
        "num_key_value_heads": 2,
    }
    return _model(
        "Idefics2",
        _config(
            "Idefics2Config",
            vision_config=VISION,
            perceiver_config=perceiver,
            text_config=_config("MistralConfig", **TEXT, sliding_window=None),
            image_token_id=IMAGE,
        ),
    )


def _ovis2() -> Any:
    return _model(
        "Ovis2",
        _config(
            "Ovis2Config",
            vision_config={**VISION, "vocab_size": 20, "hidden_stride": 2},
            text_config=_config("Qwen2Config", **TEXT),
            image_token_id=IMAGE,
            visual_indicator_token_ids=[111, 112, 113, 114, 115],
            vocab_size=VOCABULARY,
            hidden_size=32,
        ),
    )


def _llama4() -> Any:
    vision = {
        **VISION,
        "intermediate_size": 64,
        "vision_output_dim": 32,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
    }
    text = {
        **TEXT,
        "intermediate_size_mlp": 48,
        "num_local_experts": 2,
        "moe_layers": [1],
        "attention_chunk_size": 64,
    }
    return _model(
        "Llama4",
        _config(
            "Llama4Config",
            vision_config=vision,
            text_config=text,
            image_token_index=IMAGE,
            boi_token_index=VISION_START,
            eoi_token_index=VISION_END,
        ),
    )


def _gemma4() -> Any:
    text = {
        **TEXT,
        "sliding_window": 16,
        "final_logit_softcapping": 4.0,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }
    vision = {
        **{name: value for name, value in VISION.items() if name != "image_size"},
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pooling_kernel_size": 2,
        "position_embedding_size": 64,
    }
    return _model(
        "Gemma4",
        _config(
            "Gemma4Config",
            text_config=text,
            vision_config=vision,
            audio_config=None,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            boi_token_id=VISION_START,
            eoi_token_id=VISION_END,
            audio_token_id=9,
        ),
    )


def _placed_patches(number: int) -> tuple[Inputs, int]:
    """4 x 4 patches and where each stands; 2 x 2 of them make a vision token."""
    places = torch.tensor([[[x, y] for y in range(4) for x in range(4)]])
    return {"pixel_values": torch.rand(1, 16, 48), "image_position_ids": places}, 4


def _lfm2_vl() -> Any:
    vision = {
        **{name: value for name, value in VISION.items() if name != "image_size"},
        "model_type": "siglip2_vision_model",
        "num_patches": 16,
        "vision_use_head": False,
    }
    text = {name: value for name, value in TEXT.items() if name != "head_dim"}
    return _model(
        "Lfm2Vl",
        _config(
            "Lfm2VlConfig",
            vision_config=vision,
            text_config=_config(
                "Lfm2Config",
                **text,
                layer_types=["conv", "full_attention"] * 2,
                block_multiple_of=8,
            ),
            image_token_id=IMAGE,
            projector_hidden_size=32,
        ),
    )


def _masked_patches(number: int) -> tuple[Inputs, int]:
    return {
        "pixel_values": torch.randn(1, 16, 48),
        "spatial_shapes": torch.tensor([[4, 4]]),
        "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
    }, 4


def _chameleon() -> Any:
    """A model that never writes the ten tokens that its images are made of."""
    codes = {f"IMGIMG{letter}Z": 100 + code for code, letter in enumerate("ABCDEFGHIJ")}
    vision = {
        "embed_dim": 8,
        "num_embeddings": 10,
        "resolution": 16,
        "base_channels": 32,
        "channel_multiplier": [1, 1, 1],
        "num_res_blocks": 1,
        "latent_channels": 8,
    }
    return _model(
        "Chameleon",
        _config(
            "ChameleonConfig",
            **TEXT,
            vocabulary_map={"<image>": IMAGE, **codes},
            vq_config=vision,
        ),
    )


# Query tokens


QUERIES = 3
QFORMER = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "encoder_hidden_size": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
OPT = {
    "model_type": "opt",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "word_embed_proj_dim": 32,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}


def _blip2() -> Any:
    return _model(
        "Blip2",
        _config(
            "Blip2Config",
            vision_config=VISION,
            qformer_config=QFORMER,
            text_config=OPT,
            num_query_tokens=QUERIES,
            image_token_index=IMAGE,
        ),
    )


def _instructblip() -> Any:
    return _model(
        "InstructBlip",
        _config(
            "InstructBlipConfig",
            vision_config=VISION,
            qformer_config=QFORMER,
            text_config={**TEXT, "model_type": "llama"},
            num_query_tokens=QUERIES,
            image_token_index=IMAGE,
        ),
    )


def kosmos2() -> Any:
    text = {
        "vocab_size": VOCABULARY,
        "embed_dim": 32,
        "layers": LAYERS,
        "ffn_dim": 48,
        "attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    config = _config(
        "Kosmos2Config", text_config=text, vision_config=VISION, latent_query_num=QUERIES
    )
    return _model("Kosmos2", config)


def _question(number: int) -> tuple[Inputs, int]:
    """An image, and the prompt as the query tokens read it."""
    ids = torch.randint(1, 40, (1, 4))
    return {
        "pixel_values": _pixels(3, 16, 16),
        "qformer_input_ids": ids,
        "qformer_attention_mask": torch.ones_like(ids),
    }, QUERIES


# Those whose decoder's prompt holds no vision tokens


T5 = {
    "model_type": "t5",
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "decoder_start_token_id": PAD,
}


def with_t5(name: str) -> Any:
    return _model(
        name,
        _config(
            f"{name}Config",
            vision_config=VISION,
            qformer_config=QFORMER,
            text_config=T5,
            num_query_tokens=QUERIES,
            image_token_index=IMAGE,
        ),
    )


def florence2() -> Any:
    text = {
        "model_type": "bart",
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 64,
    }
    vision = {
        "embed_dim": [8, 16],
        "num_heads": [2, 2],
        "num_groups": [2, 2],
        "depths": [1, 1],
        "patch_size": [7, 3],
        "patch_stride": [4, 2],
        "patch_padding": [3, 1],
        "patch_prenorm": [False, True],
        "window_size": 2,
        "projection_dim": 32,
    }
    return _model(
        "Florence2",
        _config("Florence2Config", text_config=text, vision_config=vision, image_token_id=IMAGE),
    )


def mllama() -> Any:
    text = {
        **{name: value for name, value in TEXT.items() if name != "head_dim"},
        "cross_attention_layers": [1, 3],
        "rope_scaling": {"rope_type": "default"},
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "vision_output_dim": 32,
        "image_size": 16,
        "patch_size": 4,
        "intermediate_layers_indices": [0],
    }
    return _model(
        "Mllama",
        _config("MllamaConfig", text_config=text, vision_config=vision, image_token_index=IMAGE),
    )


# Language models alone, as the text of a vision-language model that is not in Transformers


def language_model(name: str, config: str | None = None, **settings: Any) -> Any:
    """A causal language model that is told which token stands for images."""
    torch.manual_seed(0)
    config = _config(f"{config or name}Config", **{**TEXT, **settings})
    config.image_token_id = IMAGE
    return randomize(getattr(transformers, f"{name}ForCausalLM")(config))


def gemma3n() -> Any:
    return language_model(
        "Gemma3n",
        config="Gemma3nText",
        intermediate_size=[48] * LAYERS,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCABULARY,
        laurel_rank=4,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention"] * 2,
        activation_sparsity_pattern=[0.0] * LAYERS,
        final_logit_softcapping=4.0,
    )


FAMILIES = {
    "LLaVA": Family("LlavaForConditionalGeneration", _llava, _plain_image(16)),
    "VipLLaVA": Family("VipLlavaForConditionalGeneration", _vipllava, _plain_image(16)),
    "LLaVA-NeXT": Family("LlavaNextForConditionalGeneration", _llava_next, _anyres_image),
    "LLaVA-OneVision": Family(
        "LlavaOnevisionForConditionalGeneration", _llava_onevision, _anyres_image
    ),
    "LLaVA-OneVision, video": Family(
        "LlavaOnevisionForConditionalGeneration", _llava_onevision, _onevision_video, token=VIDEO
    ),
    "LLaVA-NeXT-Video": Family(
        "LlavaNextVideoForConditionalGeneration", _llava_next_video, _next_video, token=VIDEO
    ),
    "Granite 4 Vision": Family(
        "Granite4VisionForConditionalGeneration",
        _granite4_vision,
        _anyres_image,
        finish=lambda product: product / 2,
    ),
    "Qwen2-VL": Family(
        "Qwen2VLForConditionalGeneration", _qwen2_vl, _patches("image"), types="mm_token_type_ids"
    ),
    "Qwen2-VL, video": Family(
        "Qwen2VLForConditionalGeneration",
        _qwen2_vl,
        _patches("video"),
        token=VIDEO,
        types="mm_token_type_ids",
    ),
    "Qwen2.5-VL": Family(
        "Qwen2_5_VLForConditionalGeneration",
        _qwen2_5_vl,
        _patches("image"),
        types="mm_token_type_ids",
    ),
    "Qwen3-VL": Family(
        "Qwen3VLForConditionalGeneration",
        _qwen3_vl,
        _patches("image"),
        types="mm_token_type_ids",
        unnormed=not NEWER,
    ),
    "GLM-4V": Family(
        "Glm4vForConditionalGeneration", _glm4v, _patches("image"), types="mm_token_type_ids"
    ),
    "InternVL": Family("InternVLForConditionalGeneration", _internvl, _plain_image(4)),
    "Gemma 3": Family(
        "Gemma3ForConditionalGeneration",
        _gemma3,
        _plain_image(4),
        types="token_type_ids",
    ),
    "PaliGemma": Family(
        "PaliGemmaForConditionalGeneration",
        _paligemma,
        _plain_image(4),
        finish=softcap(4.0) if NEWER else same,
    ),
    "Idefics3": Family("Idefics3ForConditionalGeneration", _idefics3, _plain_image(4), nested=True),
    "SmolVLM": Family("SmolVLMForConditionalGeneration", _smolvlm, _plain_image(4), nested=True),
    "Mistral3": Family("Mistral3ForConditionalGeneration", _mistral3, _pixtral_image),
    "Pixtral": Family("LlavaForConditionalGeneration", _llava_pixtral, _pixtral_12b_image),
    "AyaVision": Family(
        "AyaVisionForConditionalGeneration",
        _aya_vision,
        _plain_image(4),
    ),
    "Cohere2Vision": Family(
        "Cohere2VisionForConditionalGeneration",
        _cohere2_vision,
        _plain_image(4),
    ),
    "Idefics2": Family("Idefics2ForConditionalGeneration", _idefics2, _plain_image(3), nested=True),
    "Ovis2": Family("Ovis2ForConditionalGeneration", _ovis2, _plain_image(4)),
    "Llama 4": Family("Llama4ForConditionalGeneration", _llama4, _plain_image(4)),
    "Gemma 4": Family(
        "Gemma4ForConditionalGeneration",
        _gemma4,
        _placed_patches,
        types="mm_token_type_ids",
        finish=softcap(4.0),
    ),
    "LFM2-VL": Family("Lfm2VlForConditionalGeneration", _lfm2_vl, _masked_patches, padded=NEWER),
    "Chameleon": Family("ChameleonForConditionalGeneration", _chameleon, _plain_image(16)),
    "BLIP-2": Family(
        "Blip2ForConditionalGeneration",
        _blip2,
        _plain_image(QUERIES),
        images=(1, 1, 1),
    ),
    "InstructBLIP": Family(
        "InstructBlipForConditionalGeneration",
        _instructblip,
        _question,
        images=(1, 1, 1),
    ),
}
