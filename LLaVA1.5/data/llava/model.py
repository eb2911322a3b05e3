"""LLaVA-1.5: a Llama that reads images (Liu et al., arXiv 2310.03744)."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, ClassVar

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionModel,
    GenerationConfig,
    GenerationMixin,
    LlamaForCausalLM,
    LogitsProcessorList,
)
from transformers.generation.streamers import BaseStreamer

from llava.checkpoint import load_config, load_tower
from llava.config import LlavaConfig
from llava.generation import TextLogitsProcessorList, TextStreamer, text_only
from llava.layout import IMAGE_TOKEN_INDEX, Layout, expand, image_positions
from llava.vision import VisionTower, build_projector, stack_images
from revisit.transformers.checkpoint import load_complete

Images = torch.Tensor | Sequence[torch.Tensor]

_HUB_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "token",
    "use_auth_token",
)
_TOWER_PREFIX = "model.vision_tower."


class LlavaLlamaForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    """LLaVA-1.5, with the weight names of liuhaotian/llava-v1.5-7b.

    A prompt holds IMAGE_TOKEN_INDEX (-200) once for each image. `forward` and `generate` take the
    images, in reading order over the batch, as `images` (see `stack_images`).

    From a configuration alone the model has no vision tower: `attach_vision_tower` gives it one.
    """

    config_class = LlavaConfig
    # A buffer that follows from the configuration: older checkpoints hold it, newer ones do not.
    _keys_to_ignore_on_load_missing: ClassVar[list[str]] = [r"rotary_emb\.inv_freq"]
    # LLaVA-1.5 never trains the tower, which is in another folder: a copy adds nothing.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^model\.vision_tower\."]

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        self.model.mm_projector = build_projector(config)
        self.model.mm_projector.apply(self._init_weights)
        self.model.vision_tower = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a checkpoint and its vision tower, from a folder or from the hub.

        Takes the arguments of Transformers' `from_pretrained`; a field of the configuration, such
        as `mm_vision_tower`, replaces what config.json says. Raises OSError or ValueError where the
        checkpoint or its tower is missing, damaged or incomplete.
        """
        name = str(pretrained_model_name_or_path)
        want_info = kwargs.pop("output_loading_info", False)
        config = kwargs.get("config") or load_config(name, **kwargs)
        hub = {key: kwargs[key] for key in _HUB_ARGUMENTS if key in kwargs}
        clip, processor = load_tower(config, name, **hub)
        model, info = load_complete(super().from_pretrained, name, **kwargs)
        model.attach_vision_tower(clip.to(_main_device(model), model.dtype), processor)
        return (model, info) if want_info else model

    def attach_vision_tower(
        self, clip: CLIPVisionModel, processor: CLIPImageProcessor | None = None
    ) -> None:
        """Give the model its vision tower; the processor follows from its image size by default."""
        if processor is None:
            side = clip.config.image_size
            processor = CLIPImageProcessor(
                size={"shortest_edge": side}, crop_size={"height": side, "width": side}
            )
        self.model.vision_tower = VisionTower(clip, processor, self.config).train(self.training)

    def save_pretrained(
        self,
        save_directory: str,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save the checkpoint, and the vision tower in the folder in it that the config names."""
        weights = self.state_dict() if state_dict is None else state_dict
        weights = {key: w for key, w in weights.items() if not key.startswith(_TOWER_PREFIX)}
        tower = self.model.vision_tower
        if tower is not None:
            path = PurePath(self.config.mm_vision_tower or "vision_tower")
            if path.is_absolute() or ".." in path.parts:
                path = PurePath(path.name)
            self.config.mm_vision_tower = path.as_posix()
        super().save_pretrained(save_directory, is_main_process, weights, **kwargs)
        if tower is not None and is_main_process:
            folder = PurePath(save_directory) / path
            safe = kwargs.get("safe_serialization", False)
            tower.vision_tower.save_pretrained(folder, safe_serialization=safe)
            tower.processor.save_pretrained(folder)

    def vision_tokens(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        images: Images | None = None,
        **forward_kwargs: Any,
    ) -> tuple[torch.Tensor, list[list[tuple[int, int, int]]]]:
        """The positions of the vision tokens in a prefill. Pure; the tower is not run.

        `input_ids`, `attention_mask`: (B, T), as `forward` takes them, whose other arguments are
        accepted too. Returns a (B, S) bool mask over the sequence that the decoder layers see, true
        at vision tokens, and for each row the (frames, rows, columns) of its images in order.
        Raises ValueError where the images are not as many as the placeholders.
        """
        if images is not None:
            _match_images(input_ids, attention_mask, images)
        layout = self._layout(input_ids, attention_mask)
        tower = self.model.vision_tower
        counts = image_positions(input_ids, attention_mask).sum(1).tolist()
        return layout.vision, [[tower.grid for _ in range(count)] for count in counts]

    def _layout(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> Layout:
        tower = self.model.vision_tower
        if tower is None and (input_ids == IMAGE_TOKEN_INDEX).any():
            raise ValueError("an image in the prompt, but no vision tower in the model: attach one")
        return expand(input_ids, attention_mask, 1 if tower is None else tower.tokens_per_image)

    def encode_images(self, images: Images) -> torch.Tensor:
        """The vision tokens of images (n, 3, H, W), ready for the decoder: (n, tokens, hidden)."""
        if self.model.vision_tower is None:
            raise ValueError("images were given, but the model has no vision tower: attach one")
        tokens: torch.Tensor = self.model.mm_projector(
            self.model.vision_tower(stack_images(images))
        )
        return tokens

    def _embed(
        self, input_ids: torch.Tensor, layout: Layout, images: torch.Tensor | None
    ) -> torch.Tensor:
        """Embeddings (B, S, hidden) of the expanded sequence."""
        text_ids = input_ids.masked_fill(input_ids == IMAGE_TOKEN_INDEX, 0)
        tokens = self.model.embed_tokens(text_ids).flatten(0, 1)[layout.source]
        if images is not None:
            features = self.encode_images(images).flatten(0, 1)
            tokens[layout.vision[layout.mask]] = features.to(tokens)
        return layout.place(tokens, 0.0)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        images: Images | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Llama's forward over prompts (B, T) whose image placeholders are expanded on the way.

        The sequence of the outputs is the expanded, left-padded one of `vision_tokens`. `labels`:
        (B, T), -100 for none; vision tokens, padding and the first token of a row have none. With
        `past_key_values`, and with `inputs_embeds`, nothing is expanded: `attention_mask` and
        `position_ids` are then those of the expanded sequence. Raises ValueError unless there is
        one image for each placeholder.
        """
        if past_key_values is None and inputs_embeds is None:
            if input_ids is None:
                raise ValueError("forward needs input_ids or inputs_embeds")
            if position_ids is not None:
                raise ValueError("position_ids follow from attention_mask here; leave them out")
            stacked = _match_images(input_ids, attention_mask, images)
            layout = self._layout(input_ids, attention_mask)
            if labels is not None:
                labels = labels.masked_fill(input_ids == IMAGE_TOKEN_INDEX, -100)
                labels = layout.place(labels.flatten()[layout.source], -100)
                # No token predicts a row's first token, and padding does not either.
                labels = labels.masked_fill(layout.position_ids == 0, -100)
            inputs_embeds = self._embed(input_ids, layout, stacked)
            attention_mask, position_ids = layout.mask, layout.position_ids
            input_ids = None
        elif input_ids is not None and (input_ids == IMAGE_TOKEN_INDEX).any():
            raise ValueError("an image placeholder after the prefill: images belong to the prompt")
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )

    def generate(self, *args: Any, streamer: BaseStreamer | None = None, **kwargs: Any) -> Any:
        """Transformers' `generate`, with `images`; a streamer is not given image placeholders."""
        return super().generate(
            *args, streamer=None if streamer is None else TextStreamer(streamer), **kwargs
        )

    def contrastive_search(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            "contrastive search hides the prompt from the model, which needs it to place the "
            "images: leave out penalty_alpha (greedy decoding, sampling and beam search work)"
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        images: Images | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The arguments of `forward` for the next step, from the sequence (B, T) so far."""
        if past_key_values is None:
            return {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "images": images,
                "use_cache": use_cache,
            }
        layout = self._layout(input_ids, attention_mask)
        return {
            "input_ids": input_ids[:, -1:],
            "attention_mask": layout.mask,
            "position_ids": layout.position_ids[:, -1:],
            "past_key_values": past_key_values,
            "use_cache": use_cache,
        }

    @staticmethod
    def _expand_inputs_for_generation(
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        *,
        input_ids: torch.Tensor,
        images: Images | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Repeat every row, and its images as a block, `expand_size` times."""
        stacked = _match_images(input_ids, attention_mask, images)
        if stacked is not None:
            counts = image_positions(input_ids, attention_mask).sum(1).tolist()
            blocks = torch.split(stacked, counts)
            stacked = torch.cat([block.repeat(expand_size, 1, 1, 1) for block in blocks])
        input_ids, kwargs = GenerationMixin._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, attention_mask=attention_mask, **kwargs
        )
        return input_ids, {**kwargs, "images": stacked}

    def _get_logits_processor(
        self,
        generation_config: GenerationConfig,
        *args: Any,
        encoder_input_ids: torch.Tensor,
        **kwargs: Any,
    ) -> LogitsProcessorList:
        pad = generation_config.pad_token_id
        processors = super()._get_logits_processor(
            generation_config, *args, encoder_input_ids=text_only(encoder_input_ids, pad), **kwargs
        )
        return TextLogitsProcessorList(processors, pad)


def _match_images(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, images: Images | None
) -> torch.Tensor | None:
    """The images (n, 3, H, W) of prompts (B, T), or None for prompts of text alone.

    Raises ValueError unless there are as many images as placeholders.
    """
    stacked = None if images is None else stack_images(images)
    count = 0 if stacked is None else len(stacked)
    wanted = int(image_positions(input_ids, attention_mask).sum())
    if count != wanted:
        raise ValueError(
            f"the prompts hold {wanted} image placeholders ({IMAGE_TOKEN_INDEX}), but {count} "
            "images were given; give one image for each placeholder, in reading order"
        )
    return stacked if count else None


def _main_device(model: LlavaLlamaForCausalLM) -> torch.device:
    """The device that computes: that of the weights, or the first that they were spread over."""
    spread = getattr(model, "hf_device_map", {}).values()
    devices = [device for device in spread if device not in ("cpu", "disk")]
    if devices:
        return torch.device(devices[0])
    return torch.device("cpu") if spread else model.device
