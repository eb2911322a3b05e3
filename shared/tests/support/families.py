"""Every family that Transformers maps to image-text-to-text, as a tiny model, and its prompts.

A row of `FAMILIES` is `Exact` (with the argument that it needs, if it needs one), `Refused` before
anything is generated, `NotBuilt` tiny, or `Broken` in this release of Transformers. To add a
family, give it a row: most are `Exact(IMAGE)`, where IMAGE makes the tensors of one image. The
tiny model comes from the family's config (`tiny_configs.py`), with the changes that the row names.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from releases import RELEASE
from tiny_configs import (
    BOS,
    IMAGE,
    NEWER,
    PAD,
    VIDEO,
    VISION_END,
    VISION_START,
    default_model,
    tiny_model,
)

Inputs = dict[str, Tensor]
# The tensors of the n-th image of a prompt, one row each, and how many vision tokens it takes;
# None where the model's `get_image_features` has as many.
Image = Callable[[int], tuple[Inputs, int | None]]


def unchanged(product: Any) -> Any:
    return product


def softcap(cap: float, scale: float = 1) -> Callable[[Any], Any]:
    return lambda product: cap * np.tanh(scale * product / cap)


class Exact(NamedTuple):
    """Equal to the dense float64 computation."""

    image: Image
    text: Mapping[str, Any] = {}  # changes of its text config
    changes: Mapping[str, Any] = {}  # other changes of the config
    model_type: str = ""  # where the row's name is another
    images: Sequence[int] = (1, 2, 1)  # of each prompt
    token: int = IMAGE
    nested: bool = False  # whether images are given as (rows, images of a row, ...)
    types: str = "mm_token_type_ids"  # the argument that marks the vision tokens, if there is one
    padded: bool = True  # whether padding leaves the model's logits as they are
    finish: Callable[[Any], Any] = unchanged  # what the model does to its LM head's product
    unnormed: bool = False  # whether Transformers reports the last hidden state before the norm
    # More arguments of `attach` and `generate`, from the model and one prompt's inputs.
    arguments: Callable[[Any, Inputs], dict[str, Any]] = lambda model, inputs: {}
    argument: str = ""  # the same in words
    note: str = ""
    layers: Sequence[str] = ("last", "all")  # that work; others are refused

    @property
    def reference(self) -> dict[str, Any]:
        """What the dense computation needs to know."""
        return {"token": self.token, "finish": self.finish, "unnormed": self.unnormed}


class Refused(NamedTuple):
    """An error says why before anything is generated."""

    message: str  # a pattern of the error's message
    reason: str
    changes: Mapping[str, Any] = {}  # of the config
    tiny: bool = False  # else of the default size, without memory for its weights


class NotBuilt(NamedTuple):
    """No tiny model of it is made here."""

    reason: str


class Broken(NamedTuple):
    """This release of Transformers fails to run it, with any decoder."""

    family: Exact
    error: str  # a pattern of the AttributeError's message
    reason: str


Family = Exact | Refused | NotBuilt | Broken


def make(name: str) -> Any:
    """A new tiny model of the family."""
    row = FAMILIES[name]
    row = row.family if isinstance(row, Broken) else row
    assert not isinstance(row, NotBuilt)
    if isinstance(row, Refused):
        return (tiny_model if row.tiny else default_model)(name, **row.changes)
    text = {"text_config": row.text} if row.text else {}
    return tiny_model(row.model_type or name, **text, **row.changes)


@cache
def made(name: str) -> tuple[Any, list[Inputs]]:
    """The family's model, which no test may change, and its prompts."""
    model = make(name)
    return model, prompts(FAMILIES[name], model)


# Prompts


def prompts(row: Exact, model: Any) -> list[Inputs]:
    """Three prompts of one row each, of different lengths."""
    return [_prompt(row, model, number, count) for number, count in enumerate(row.images)]


def _prompt(row: Exact, model: Any, number: int, images: int) -> Inputs:
    torch.manual_seed(100 + number)
    ids, parts = [BOS, 20 + number], []
    for image in range(images):
        tensors, tokens = row.image(number + image)
        parts.append(tensors)
        tokens = len(image_features(model, tensors)) if tokens is None else tokens
        ids += [VISION_START, *[row.token] * tokens, VISION_END, 30 + image]
    inputs = text([*ids, *[40, 41, 42 + number][: number + 1]])
    inputs |= _types(row, model, inputs["input_ids"])
    for name in parts[0]:
        together = _joined(name, parts)
        inputs[name] = together.unsqueeze(0) if row.nested else together
    return inputs


def text(ids: Sequence[int] = (BOS, 20, *[IMAGE] * 6, 21, *[IMAGE] * 5, 22, 23)) -> Inputs:
    """A prompt of one row, of tokens alone."""
    input_ids = torch.tensor([ids])
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def _types(row: Exact, model: Any, input_ids: Tensor) -> Inputs:
    if row.types not in inspect.signature(model.forward).parameters:
        return {}
    return {row.types: (input_ids == IMAGE) + 2 * (input_ids == VIDEO)}


def mixed_prompt(row: Exact, model: Any) -> Inputs:
    """A prompt of two images and two videos of different sizes."""
    torch.manual_seed(7)
    ids, parts = [BOS, 20], []
    names = {
        IMAGE: ("pixel_values", "image_grid_thw"),
        VIDEO: ("pixel_values_videos", "video_grid_thw"),
    }
    sizes = [(IMAGE, (1, 4, 4)), (VIDEO, (1, 4, 2)), (IMAGE, (1, 2, 6)), (VIDEO, (1, 2, 2))]
    for token, grid in sizes:
        count = math.prod(grid)
        ids += [VISION_START, *[token] * (count // 4), VISION_END, 30 + len(ids)]
        values, grids = names[token]
        parts.append({values: torch.randn(count, 96), grids: torch.tensor([grid])})
    inputs = text(ids)
    inputs |= _types(row, model, inputs["input_ids"])
    if "video_second_per_grid" in inspect.signature(model.forward).parameters:
        inputs["video_second_per_grid"] = torch.ones(2)
    for name in {name: None for part in parts for name in part}:
        inputs[name] = torch.cat([part[name] for part in parts if name in part])
    return inputs


@torch.no_grad()
def image_features(model: Any, image: Inputs) -> Tensor:
    """The vision tokens (N, d) that the model makes of an image."""
    inner = getattr(model, "model", model)
    encoder = inner if hasattr(inner, "get_image_features") else model
    output = encoder.get_image_features(**image)
    features = getattr(output, "pooler_output", None)
    features = getattr(output, "last_hidden_state", output) if features is None else features
    if isinstance(features[0], tuple | list):  # Qwen3-VL's early layers come second
        features = features[0]
    return torch.cat([each.flatten(0, -2) for each in features])


def batch(rows: Sequence[Inputs]) -> Inputs:
    """The prompts as rows of one batch, padded on the left."""
    length = max(row["input_ids"].shape[1] for row in rows)
    together = {}
    for name in rows[0]:
        if all(row[name].shape == row["input_ids"].shape for row in rows):
            widths = [length - row[name].shape[1] for row in rows]
            padded = zip(rows, widths, strict=True)
            together[name] = torch.cat([pad(row[name], (width, 0)) for row, width in padded])
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


# Images


def pixels(
    *shape: int,
    tokens: int | None = None,
    name: str = "pixel_values",
    rows: int = 1,
    **more: Tensor,
) -> Image:
    """Images of one shape, and more tensors that are the same for each."""
    return lambda number: ({name: torch.randn(rows, *shape), **more}, tokens)


def patches(*patch: int, **more: Tensor) -> Image:
    """Images of several sizes, as rows of patches in a grid of (frames, rows, columns)."""

    def image(number: int) -> tuple[Inputs, None]:
        grid = torch.tensor([[(1, 4, 4), (1, 4, 8)][number % 2]])
        values = torch.randn(int(grid.prod()), *patch)
        return {"pixel_values": values, "image_grid_thw": grid, **more}, None

    return image


def video(number: int) -> tuple[Inputs, int]:
    """As `patches`, of two frames."""
    grid = torch.tensor([[(2, 4, 4), (2, 2, 6)][number % 2]])
    count = int(grid.prod())
    return {"pixel_values_videos": torch.randn(count, 96), "video_grid_thw": grid}, count // 4


def tiles(number: int) -> tuple[Inputs, int]:
    """An image in a grid of tiles: 2 x 2 tokens each, a token at each row's end, and the whole."""
    height, width = [(16, 32), (32, 32)][number % 2]
    values = torch.randn(1 + height * width // 256, 3, 16, 16)
    sizes = torch.tensor([[height, width]])
    return {"pixel_values": values, "image_sizes": sizes}, 4 + height // 8 * (width // 8 + 1)


def sized(patch: int) -> Image:
    """Images of different sizes; a patch of so many pixels makes a vision token."""

    def image(number: int) -> tuple[Inputs, int]:
        height, width = [(16, 8), (16, 16)][number % 2]
        values, sizes = torch.randn(1, 3, height, width), torch.tensor([[height, width]])
        return {"pixel_values": values, "image_sizes": sizes}, height * width // patch**2

    return image


def placed(side: int, tokens: int) -> Image:
    """Patches of 4 x 4 pixels, and the position of each."""
    positions = torch.tensor([[[x, y] for y in range(side) for x in range(side)]])

    def image(number: int) -> tuple[Inputs, int]:
        return {"pixel_values": torch.rand(1, side**2, 48), "image_position_ids": positions}, tokens

    return image


def flattened(number: int) -> tuple[Inputs, int]:
    """Patches with their row and column in front."""
    positions = torch.tensor([[[y + 1, x + 1] for y in range(4) for x in range(4)]])
    return {"flattened_patches": torch.cat([positions, torch.randn(1, 16, 48)], -1)}, 3


def _git(model: Any, inputs: Inputs) -> dict[str, Any]:
    rows, length = inputs["input_ids"].shape
    image = torch.arange(17 + length).lt(17)
    return {"decoder": model.git.encoder, "vision_mask": image.expand(rows, -1)}


def _mask(model: Any, inputs: Inputs) -> dict[str, Any]:
    return {"vision_mask": inputs["input_ids"] == IMAGE}


# The table

MASK = "`vision_mask`: its config names no image token id"
ONE_STREAM = '`layers="last"`: its inner layers hold several streams, which "all" is refused for'
ALONE = "one prompt at a time: padding changes the model's own logits"
TOGETHER = "one prompt at a time: images of several prompts change the model's own logits"
CROSS_ATTENTION = Refused(
    "reads its images by cross-attention",
    "reads its images by cross-attention: its prompt holds no vision tokens",
)
ENCODER = Refused(
    "is an encoder-decoder",
    "an encoder-decoder: its decoder's prompt holds no vision tokens",
)
NOT_TEXT = Refused(
    "no model of Transformers that generates",
    "does not write token by token with `generate`",
)

QWEN = patches(96)
SQUARE = pixels(3, 16, 16)
FOUR_TOKENS = pixels(3, 16, 16, tokens=4)
OF_A_SIZE = pixels(3, 16, 16, image_sizes=torch.tensor([[16, 16]]))
SMALL_OF_A_SIZE = pixels(3, 8, 8, image_sizes=torch.tensor([[8, 8]]))
QUESTION = {
    "qformer_input_ids": torch.tensor([[3, 9, 14, 27]]),
    "qformer_attention_mask": torch.ones(1, 4, dtype=torch.long),
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
SIGLIP = {"model_type": "siglip_vision_model", **VISION}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
MROPE = {**ROPE, "mrope_section": [2, 1, 1]}  # positions in time, rows and columns
WITH_MROPE = {"rope_parameters": MROPE}
GLM = {"rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}}
OMNI = {"vision_start_token_id": VISION_START}
VISION_IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
TIED = {"tie_word_embeddings": True}
UNTIED = {"tie_word_embeddings": False}
LARGE_PATCHES = {"vision_config": {"patch_size": 8}}
LARGE_IMAGES = {"vision_config": {"image_size": 32}}
FOUR_KEY_HEADS = {"num_key_value_heads": 4}
QUARTERED = {"logit_scale": 0.25}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"] * 2}
SAM = {"vision_config": {"sam_config": {"image_size": 64}}}
WIDE = {"out_hidden_size": 64}
CAPPED = {"final_logit_softcapping": 4.0}
ONCE = (1, 1, 1)  # image of each prompt
INKLING = pixels(8, 8, 3, rows=4, tokens=4, image_grid_thw=torch.tensor([[1, 2, 2]]))

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(["deepseek_vl", "llava", "qianfan_ocr"], Exact(SQUARE)),
    **dict.fromkeys(
        ["exaone4_5", "hyperclovax_vision_v2", "lfm3_vl", "minimax_m3_vl"], Exact(QWEN)
    ),
    **dict.fromkeys(
        ["cosmos3_omni", "qwen2_5_vl", "qwen3_5", "qwen3_5_moe"], Exact(QWEN, WITH_MROPE)
    ),
    **dict.fromkeys(
        ["qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"], Exact(QWEN, WITH_MROPE, OMNI)
    ),
    **dict.fromkeys(["glm46v", "glm4v", "glm4v_moe", "glm_ocr", "glmga"], Exact(QWEN, GLM)),
    **dict.fromkeys(["got_ocr2", "pp_chart2table"], Exact(pixels(3, 32, 32), changes=LARGE_IMAGES)),
    **dict.fromkeys(["aya_vision", "cohere2_vision"], Exact(SQUARE, QUARTERED)),
    **dict.fromkeys(
        ["minicpmv4_6", "minicpmv4_7"],
        Exact(
            pixels(3, 4, 128, target_sizes=torch.tensor([[4, 8]])),
            WITH_MROPE,
            VISION_IDS,
            padded=False,
            note=TOGETHER,
        ),
    ),
    **dict.fromkeys(["blip", "evolla", "idefics"], CROSS_ATTENTION),
    **dict.fromkeys(["florence2", "pix2struct", "pp_formulanet", "t5gemma2", "udop"], ENCODER),
    "apertus1p5": Exact(
        SMALL_OF_A_SIZE, {"rope_parameters": ROPE}, {"audio_config": {"codebook_dim": 16}}
    ),
    "aria": Exact(SQUARE),
    "blip-2": Exact(pixels(3, 16, 16, tokens=3), changes={"image_token_index": IMAGE}, images=ONCE),
    # A model that never writes the ten tokens that its images are made of.
    "chameleon": Exact(
        pixels(3, 16, 16, tokens=16),
        changes={
            "vocabulary_map": {
                "<image>": IMAGE,
                **{f"IMGIMG{letter}Z": 100 + code for code, letter in enumerate("ABCDEFGHIJ")},
            },
            "vq_config": {"channel_multiplier": [1, 1, 1], "resolution": 16},
        },
    ),
    "cohere_compass": Exact(
        QWEN,
        {"rope_parameters": {"full_attention": MROPE, "sliding_attention": MROPE}, **ALTERNATING},
    ),
    "cosmos3_edge": Exact(patches(48), WITH_MROPE),
    "deepseek_ocr2": Exact(
        pixels(3, 64, 64),
        {"mlp_layer_types": ["dense", "sparse"] * 2, "num_experts_per_tok": 2},
        SAM,
    ),
    "deepseek_vl_hybrid": Exact(
        pixels(3, 16, 16, tokens=16, high_res_pixel_values=torch.randn(1, 3, 64, 64)),
        changes={"high_res_vision_config": {"image_size": 64, "scale": 4}},
    ),
    "diffusion_gemma": NOT_TEXT._replace(
        changes={"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16}}
    ),
    "dots3_note": Exact(
        patches(48),
        {"layer_types": ["indexed_attention"] * 4, **FOUR_KEY_HEADS},
    ),
    "emu3": Exact(
        SMALL_OF_A_SIZE,
        changes={
            "vq_config": {"hidden_size": 32},
            "vocabulary_map": {
                "<image>": IMAGE,
                "<|extra_200|>": 98,
                **{f"<|visual token {code:06d}|>": 100 + code for code in range(10)},
            },
        },
    ),
    "ernie4_5_vl_moe": Exact(
        patches(48),
        {
            "moe_intermediate_size": [16, 16],
            "rope_parameters": {**MROPE, "mrope_section": [1, 1, 2]},
        },
    ),
    # Its tower is timm's; this one stands in for it.
    "fast_vlm": Exact(SQUARE, changes={"vision_config": SIGLIP}),
    "fuyu": Exact(
        pixels(4, 48, tokens=4),
        changes={"patch_size": 4, "image_size": 16, "hidden_size": 32},
        images=ONCE,
    ),
    # Its config has a cap, and it does not cap.
    "gemma3": Exact(SQUARE, {**CAPPED, **ALTERNATING}, types="token_type_ids"),
    "gemma3n": NotBuilt(
        'its vision tower is timm\'s. Its language model is tried alone: "all" is refused, since '
        "its inner layers hold several streams"
    ),
    "gemma4": Exact(
        placed(4, 4),
        {**CAPPED, **ALTERNATING},
        {
            "vision_config": {
                **VISION,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "pooling_kernel_size": 2,
                "position_embedding_size": 64,
            }
        },
        finish=softcap(4.0),
    ),
    "gemma4_unified": Exact(
        placed(2, 4),
        ALTERNATING,
        {"vision_config": {"patch_size": 4, "pooling_kernel_size": 1, "model_patch_size": 4}},
    ),
    "git": Exact(
        pixels(3, 16, 16, tokens=1),
        images=ONCE,
        arguments=_git,
        padded=NEWER,
        note="" if NEWER else ALONE,
        argument="`decoder=model.git.encoder`, and `vision_mask` over the image's tokens and the "
        "prompt after them",
    ),
    "glm5_next": Exact(
        QWEN,
        {"qk_rope_head_dim": 0, **FOUR_KEY_HEADS},
        layers=["last"],
        argument=ONE_STREAM,
    ),
    # Images enter at several layers, and logits are divided.
    "granite4_vision": Exact(
        tiles,
        {"logits_scaling": 2.0},
        {
            "vision_config": {**SIGLIP, "hidden_size": 64},
            "qformer_config": {"num_hidden_layers": 1},
            "deepstack_layer_map": [[-1, 0], [-2, 1]],
            "downsample_rate": "1/2",
            "vision_feature_select_strategy": "full",
        },
        finish=lambda product: product / 2,
    ),
    "granite_docling": Exact(
        pixels(1, 3, 16, 16, pixel_attention_mask=torch.ones(1, 1, dtype=torch.bool)),
        finish=lambda product: product / 4,
        images=ONCE,
    ),
    "hunyuan_vl": Exact(
        patches(48),
        {"head_dim": 8, **WITH_MROPE},
        padded=False,
        note=ALONE,
    ),
    "hy_v4_vl": Exact(patches(48), WITH_MROPE, layers=["last"], argument=ONE_STREAM),
    "idefics2": Exact(pixels(3, 16, 16, tokens=3), nested=True),
    "idefics3": Exact(FOUR_TOKENS, changes={"pad_token_id": PAD}, nested=True),
    "inkling2": Exact(INKLING, finish=softcap(30.0)),
    "inkling2_loop": Exact(INKLING, {"n_layers_per_attn_res_block": 1}, finish=softcap(30.0)),
    "inkling_mm_model": Exact(
        pixels(2, 4, 4, 3, rows=4, tokens=4), finish=lambda product: product / 24, images=ONCE
    ),
    "instructblip": Exact(
        pixels(3, 16, 16, tokens=3, **QUESTION),
        {"model_type": "llama", "intermediate_size": 48},
        {"image_token_index": IMAGE},
        images=ONCE,
    ),
    "instructblipvideo": Exact(
        pixels(2, 3, 16, 16, tokens=6, **QUESTION),
        changes={"image_token_index": IMAGE, "video_token_index": IMAGE},
        images=ONCE,
    ),
    "internvl": Exact(
        FOUR_TOKENS,
        changes={"vision_config": {"layer_scale_init_value": 1.0}, **UNTIED},
    ),
    "janus": Exact(
        SQUARE, changes={key: {"projection_dim": 32} for key in ("vision_config", "vq_config")}
    ),
    "kimi_k25": Exact(patches(3, 4, 4), FOUR_KEY_HEADS),
    "kosmos-2": Exact(
        pixels(3, 16, 16, tokens=3),
        {"embed_dim": 32},
        images=ONCE,
        types="image_embeds_position_mask",
        padded=False,
        arguments=_mask,
        argument=MASK,
        note=ALONE,
    ),
    "kosmos-2.5": Exact(
        flattened,
        {"embed_dim": 32},
        images=ONCE,
        types="image_embeds_position_mask",
        padded=not NEWER,
        arguments=_mask,
        argument=MASK,
        note=ALONE,
    ),
    "lfm2_vl": Exact(
        pixels(
            16,
            48,
            tokens=4,
            spatial_shapes=torch.tensor([[4, 4]]),
            pixel_attention_mask=torch.ones(1, 16, dtype=torch.long),
        ),
        {"layer_types": ["conv", "full_attention"] * 2},
        padded=NEWER,
        note=f"4.57: {ALONE}",
    ),
    "lighton_ocr": Exact(OF_A_SIZE),
    "llama4": Exact(
        FOUR_TOKENS,
        {"num_local_experts": 2},
        {"vision_config": {"intermediate_size": 64}},
    ),
    "llava_next": Exact(tiles, changes=LARGE_PATCHES),
    "llava_next_video": Exact(
        pixels(2, 3, 16, 16, tokens=8, name="pixel_values_videos"), token=VIDEO
    ),
    "llava_onevision": Exact(tiles, TIED, {**TIED, **LARGE_PATCHES}),
    "llava_onevision, video": Exact(
        pixels(2, 3, 16, 16, tokens=3, name="pixel_values_videos"),
        TIED,
        {**TIED, **LARGE_PATCHES},
        "llava_onevision",
        token=VIDEO,
    ),
    "minicpm_ocr": Exact(
        pixels(3, 4, 64, target_sizes=torch.tensor([[4, 4]])), WITH_MROPE, VISION_IDS
    ),
    "mistral3": Exact(sized(8), changes=UNTIED),
    "mistral4": Refused("names no image token id", "a language model alone: no images", tiny=True),
    "mistral_large4": Exact(OF_A_SIZE, FOUR_KEY_HEADS, finish=softcap(30.0)),
    "mllama": CROSS_ATTENTION._replace(
        changes={"text_config": {"rope_scaling": {"rope_type": "default"}}}
    ),
    "molmo2": Exact(
        pixels(
            16,
            48,
            tokens=4,
            image_token_pooling=torch.arange(16).view(4, 4),
            image_grids=torch.tensor([[2, 2, 0, 0]]),
            image_num_crops=torch.tensor([1]),
        ),
        changes={"vision_config": {"image_size": [16, 16]}, "adapter_config": {"image_size": None}},
        images=ONCE,
    ),
    "muse_glimmer": Exact(QWEN, changes=WIDE, finish=softcap(20.0, 0.19611613513818404)),
    "muse_spark": Exact(
        QWEN,
        changes={"audio_config": {"num_hidden_layers": 4}, **WIDE},
        finish=softcap(20.0, 0.1767766952966369),
    ),
    "nemotron_h_omni": Exact(
        pixels(48, rows=16, tokens=4, image_grid_hw=torch.tensor([[4, 4]])),
        changes={"image_token_id": IMAGE},
    ),
    "ovis2": Exact(FOUR_TOKENS, changes={"vision_config": {"vocab_size": 20}, "vocab_size": 120}),
    "paddleocr_vl": Exact(patches(3, 4, 4), WITH_MROPE),
    "paligemma": Exact(
        SQUARE,
        {"model_type": "gemma2", **CAPPED},
        LARGE_PATCHES,
        finish=softcap(4.0) if NEWER else unchanged,
        types="",
    ),
    "perception_lm": Exact(
        pixels(1, 3, 16, 16), changes={"vision_config": {**SIGLIP, "model_args": {"embed_dim": 16}}}
    ),
    "pi0": NOT_TEXT,
    "pixtral": Exact(
        sized(4),
        {"model_type": "mistral"},
        {
            "vision_config": {"model_type": "pixtral"},
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        "llava",
    ),
    "qwen2_vl": Exact(QWEN, WITH_MROPE, {"vision_config": {"hidden_size": 32}, **TIED}),
    "qwen2_vl, video": Exact(
        video, WITH_MROPE, {"vision_config": {"hidden_size": 32}}, "qwen2_vl", token=VIDEO
    ),
    "qwen3_vl": Exact(
        QWEN,
        WITH_MROPE,
        unnormed=not NEWER,
        note="early layers: their states before visual features are added; 4.57: after",
    ),
    "qwen3_vl_moe": Exact(QWEN, WITH_MROPE, unnormed=not NEWER),
    "qwen4_exp": Exact(
        QWEN,
        {
            **WITH_MROPE,
            **dict.fromkeys(("indexer_n_heads", "indexer_compress_ratio"), 2),
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 64,
        },
        layers=["last"],
        argument=ONE_STREAM,
    ),
    "shieldgemma2": Exact(SQUARE, types="token_type_ids"),
    "smolvlm": Exact(FOUR_TOKENS, TIED, {"pad_token_id": PAD, **TIED}, nested=True),
    "step3p7": Exact(SQUARE, {"sliding_window": 16}),
    "unlimited_ocr": Exact(pixels(3, 64, 64), changes=SAM),
    "video_llama_3": Exact(patches(48, image_merge_sizes=torch.tensor([2]))),
    "video_llava": Exact(pixels(3, 16, 16, tokens=16, name="pixel_values_images")),
    "vipllava": Exact(SQUARE, changes={"vision_feature_layers": [-2, -1]}),
    "vision-encoder-decoder": ENCODER._replace(
        changes={
            "encoder": {"model_type": "vit"},
            "decoder": {"model_type": "bert", "is_decoder": True, "add_cross_attention": True},
        }
    ),
}

# Where releases before 5.0 differ.
if not NEWER:
    FAMILIES["fuyu"] = NotBuilt("takes its patches as a list, and their places; exact on 5.24")
    FAMILIES["perception_lm"] = NotBuilt("its vision tower must be timm's; exact on 5.24")

if RELEASE >= (5, 24):
    FAMILIES["llama4"] = Broken(
        FAMILIES["llama4"],
        "image_outputs",
        "5.24: its own `forward` asks its language model for `image_outputs`, which that does not "
        "have; exact on 5.23",
    )

# Families whose prompts may hold images and videos together; "omni" ones also audio.
MIXED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")
