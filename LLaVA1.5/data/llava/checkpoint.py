"""The configuration and the vision tower of a checkpoint."""

from pathlib import Path
from typing import Any

from transformers import CLIPImageProcessor, CLIPVisionModel

from llava.config import LlavaConfig
from revisit.transformers.checkpoint import check_files, load_complete, reading


def load_config(name: str, **kwargs: Any) -> LlavaConfig:
    """The configuration of a checkpoint, a folder or a hub id; `kwargs` as for `from_pretrained`.

    Raises OSError where it is not there, ValueError where it is not LLaVA-1.5's.
    """
    check_files(name)
    config: LlavaConfig
    with reading(name):
        config, _ = LlavaConfig.from_pretrained(name, return_unused_kwargs=True, **kwargs)
    return config


def load_tower(
    config: LlavaConfig, checkpoint: str, **kwargs: Any
) -> tuple[CLIPVisionModel, CLIPImageProcessor]:
    """The vision tower that a checkpoint's configuration names, and its image processor.

    The name is that of a folder in the checkpoint, an absolute path, or a hub id. Raises OSError or
    ValueError where the tower is missing, damaged or incomplete.
    """
    tower = config.mm_vision_tower
    if tower is None:
        raise ValueError(f"the configuration of {checkpoint} names no mm_vision_tower")
    inside = Path(checkpoint) / tower
    name = str(inside) if inside.is_dir() else tower
    try:
        clip, _ = load_complete(CLIPVisionModel.from_pretrained, name, **kwargs)
        with reading(name):
            return clip, CLIPImageProcessor.from_pretrained(name, **kwargs)
    except (OSError, ValueError) as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(
            f"no vision tower {tower!r} for {checkpoint}: {error}\nThe tower is "
            "mm_vision_tower in config.json: a folder in the checkpoint, an absolute path, or a "
            "hub id such as openai/clip-vit-large-patch14-336."
        ) from error
