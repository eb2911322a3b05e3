"""The configuration of a LLaVA-1.5 checkpoint, as its `config.json` writes it."""

import re
from typing import Any

from transformers import LlamaConfig

# Settings of the LLaVA family's `config.json` that LLaVA-1.5 does not have, and the values that
# leave them off.
_UNSUPPORTED = {
    "mm_use_im_start_end": (None, False),
    "mm_resampler_type": (None,),
    "mm_patch_merge_type": (None, "flat"),
    "unfreeze_mm_vision_tower": (None, False),
}


def projector_depth(projector_type: str) -> int:
    """Number of linear layers of a projector: 1 for `linear`, N for `mlpNx_gelu`.

    Raises ValueError for any other name.
    """
    if projector_type == "linear":
        return 1
    match = re.fullmatch(r"mlp([1-9]\d*)x_gelu", projector_type)
    if match is None:
        raise ValueError(
            f"mm_projector_type is {projector_type!r}; expected 'linear' or 'mlpNx_gelu', "
            "as in 'mlp2x_gelu'"
        )
    return int(match.group(1))


class LlavaConfig(LlamaConfig):  # type: ignore[misc]
    """A Llama configuration with the fields that LLaVA-1.5 adds.

    `mm_vision_tower`: the CLIP vision tower, as a folder relative to the checkpoint, an absolute
    path, or a hub id. `mm_vision_select_layer`: which of its hidden states is read.
    `mm_vision_select_feature`: `patch` (without the class token) or `cls_patch`.
    `mm_projector_type`: `linear` or `mlpNx_gelu`. `mm_hidden_size`: width of the tower.
    `image_aspect_ratio`: `pad` to pad images to a square before they are resized, None not to.

    Further fields of a `config.json` are kept as they are. Raises ValueError for a setting that
    LLaVA-1.5 does not have.
    """

    model_type = "llava"

    def __init__(
        self,
        mm_vision_tower: str | None = None,
        mm_hidden_size: int = 1024,
        mm_projector_type: str = "linear",
        mm_vision_select_layer: int = -2,
        mm_vision_select_feature: str = "patch",
        image_aspect_ratio: str | None = None,
        **kwargs: Any,
    ) -> None:
        projector_depth(mm_projector_type)
        if mm_vision_select_feature not in ("patch", "cls_patch"):
            raise ValueError(
                f"mm_vision_select_feature is {mm_vision_select_feature!r}; "
                "expected 'patch' or 'cls_patch'"
            )
        if image_aspect_ratio not in (None, "pad", "square"):
            raise ValueError(
                f"image_aspect_ratio is {image_aspect_ratio!r}; LLaVA-1.5 knows 'pad' (pad to a "
                "square) and 'square' (resize and crop)"
            )
        for name, harmless in _UNSUPPORTED.items():
            if kwargs.get(name) not in harmless:
                raise ValueError(
                    f"{name} is {kwargs[name]!r}, which LLaVA-1.5 does not have; "
                    "use a checkpoint in the format of liuhaotian/llava-v1.5-7b"
                )
        self.mm_vision_tower = mm_vision_tower
        self.mm_hidden_size = mm_hidden_size
        self.mm_projector_type = mm_projector_type
        self.mm_vision_select_layer = mm_vision_select_layer
        self.mm_vision_select_feature = mm_vision_select_feature
        self.image_aspect_ratio = image_aspect_ratio
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration that a `config.json` describes.

        Raises ValueError where the file is of another kind of model.
        """
        kind = config_dict.get("model_type")
        if kind not in ("llava", "llava_llama"):
            raise ValueError(
                f"config.json has model_type {kind!r}, not 'llava': this is no LLaVA-1.5 "
                "checkpoint; use one in the format of liuhaotian/llava-v1.5-7b"
            )
        if "text_config" in config_dict or not config_dict.get("mm_vision_tower"):
            raise ValueError(
                "config.json says 'llava' but names no mm_vision_tower: this is LLaVA in another "
                "format; use a checkpoint in the format of liuhaotian/llava-v1.5-7b"
            )
        return super().from_dict(config_dict, **kwargs)
