"""From pixels to vision tokens: the CLIP tower and the projector."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionModel

from llava.config import LlavaConfig, projector_depth


class VisionTower(nn.Module):
    """A CLIP vision model, read at one of its hidden states.

    `processor` prepares the images that the model expects. Raises ValueError where the model is not
    the one that the configuration describes.
    """

    def __init__(
        self, clip: CLIPVisionModel, processor: CLIPImageProcessor, config: LlavaConfig
    ) -> None:
        super().__init__()
        if clip.config.hidden_size != config.mm_hidden_size:
            raise ValueError(
                f"the vision tower is {clip.config.hidden_size} wide, but mm_hidden_size is "
                f"{config.mm_hidden_size}: the tower is not the one this model was trained with"
            )
        layers = clip.config.num_hidden_layers
        if not -layers - 1 <= config.mm_vision_select_layer <= layers:
            raise ValueError(
                f"mm_vision_select_layer is {config.mm_vision_select_layer}, but the vision tower "
                f"has the hidden states {-layers - 1} to {layers}"
            )
        self.vision_tower = clip
        self.processor = processor
        self.select_layer = config.mm_vision_select_layer
        self.with_class_token = config.mm_vision_select_feature == "cls_patch"

    @property
    def grid(self) -> tuple[int, int, int]:
        """(frames, rows, columns) of the vision tokens of an image.

        One row of them all where the class token, which has no place in the image, is among them.
        """
        clip = self.vision_tower.config
        side = clip.image_size // clip.patch_size
        return (1, 1, side * side + 1) if self.with_class_token else (1, side, side)

    @property
    def tokens_per_image(self) -> int:
        _, rows, columns = self.grid
        return rows * columns

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, side, side), in any dtype, to features (n, tokens, mm_hidden_size)."""
        side = self.vision_tower.config.image_size
        if images.shape[1:] != (3, side, side):
            raise ValueError(
                f"images have shape {tuple(images.shape[1:])}; the vision tower takes "
                f"(3, {side}, {side}), as process_images gives them"
            )
        images = images.to(self.vision_tower.device, self.vision_tower.dtype)
        states = self.vision_tower(images, output_hidden_states=True).hidden_states
        features: torch.Tensor = states[self.select_layer]
        return features if self.with_class_token else features[:, 1:]


def build_projector(config: LlavaConfig) -> nn.Module:
    """The projector from the tower's width to the language model's, with LLaVA's weight names."""
    layers: list[nn.Module] = [nn.Linear(config.mm_hidden_size, config.hidden_size)]
    for _ in range(projector_depth(config.mm_projector_type) - 1):
        layers += [nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)]
    return layers[0] if config.mm_projector_type == "linear" else nn.Sequential(*layers)


def stack_images(images: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """All images of a batch in reading order, (n, 3, H, W).

    From a tensor of just that shape, one (B, k, 3, H, W) with k images a prompt, or a list of
    images (3, H, W) and stacks of images (k, 3, H, W). Raises ValueError for anything else.
    """
    if isinstance(images, torch.Tensor):
        if images.dim() == 5:
            images = images.flatten(0, 1)
        if images.dim() != 4:
            raise ValueError(
                f"images have shape {tuple(images.shape)}; expected (n, 3, H, W), (B, k, 3, H, W) "
                "or a list of tensors"
            )
        return images
    if any(image.dim() not in (3, 4) for image in images):
        shapes = [tuple(image.shape) for image in images]
        raise ValueError(f"images have shapes {shapes}; expected (3, H, W) or (k, 3, H, W) each")
    stacks = [image if image.dim() == 4 else image[None] for image in images]
    if len({stack.shape[1:] for stack in stacks}) > 1:
        shapes = [tuple(image.shape) for image in images]
        raise ValueError(f"images differ in size: {shapes}; process_images gives them one size")
    return torch.cat(stacks) if stacks else torch.empty(0, 3, 0, 0)
