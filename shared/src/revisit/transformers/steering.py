"""VISTA in `generate`: logits of inner layers, and MLPs that are steered towards the image."""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from revisit.config import VISTAConfig
from revisit.core.head import LMHead
from revisit.decoders import vista
from revisit.transformers.contrastive import text_only_stream
from revisit.transformers.generation import (
    Prompts,
    refuse_chunked_prefill,
    refuse_prefilled_cache,
)
from revisit.transformers.layer_logits import (
    LayerLogitsGeneration,
    LayerLogitsProcessor,
    below_last,
)
from revisit.transformers.model_parts import Model
from revisit.transformers.second_stream import OtherImages, SecondStream
from revisit.transformers.vision_positions import locate

_MLPS = ("mlp", "feed_forward", "ffn")


class VISTALogitsProcessor(LayerLogitsProcessor):
    """Mixes in the logits of inner layers, and steers the model while it generates.

    Raises:
        ValueError: as `LayerLogitsProcessor`, or a layer has no MLP to steer.
    """

    name = "VISTA"
    config: VISTAConfig

    def __init__(
        self,
        model: Model,
        config: VISTAConfig,
        *,
        lm_head: LMHead | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__(model, config, lm_head=lm_head, decoder=decoder)
        if config.steering:
            self.mlps()  # what cannot work is refused now

    def chosen_layers(self) -> tuple[int, ...]:
        return below_last(self.config.layers, vista.LAYERS, self.decoder.depth, self.name)

    def combine(self, logits: Tensor, inner: Tensor) -> Tensor:
        return vista.combine(logits, inner, self.config.weight)

    def mlps(self) -> list[nn.Module]:
        """The MLP of each layer."""
        layers = self.decoder.layers
        found = [
            next((getattr(layer, name) for name in _MLPS if hasattr(layer, name)), None)
            for layer in layers
        ]
        mlps = [mlp for mlp in found if isinstance(mlp, nn.Module)]
        if len(mlps) < len(layers) or self.decoder.depth != len(layers):
            raise ValueError(
                f"VISTA steers the MLP of each layer, which it cannot find in a "
                f"{type(layers[0]).__name__}: steering=0 leaves the logits of inner layers alone"
            )
        return mlps

    def open(self, prompts: Prompts) -> LayerLogitsGeneration:
        generation = super().open(prompts)
        if not self.config.steering:
            return generation
        inputs = prompts.inputs
        refuse_prefilled_cache(inputs, self.name)
        refuse_chunked_prefill(self.model, inputs, self.name)
        seen = locate(self.model, inputs, prompts.vision_mask).mask.any(1)
        streams = [
            OtherImages(self.model, inputs, {}, self.name),
            text_only_stream(self, prompts),
        ]
        return SteeredGeneration(self, seen, streams) if seen.any() else generation


class SteeredGeneration(LayerLogitsGeneration):
    """Reads the prompts with and without their images first, then steers each pass.

    Args:
        seen: (P,) bool, which prompts have an image.
        streams: of the prompts with their images, and without them.
    """

    processor: VISTALogitsProcessor

    def __init__(
        self, processor: VISTALogitsProcessor, seen: Tensor, streams: list[SecondStream]
    ) -> None:
        super().__init__(processor)
        self.seen = seen
        self.streams = streams
        self.directions: Tensor | None = None  # (rows, layers, d) float32
        self._outputs: list[Tensor] | None = None  # of the layers, while directions are found

    def install(self, undo: ExitStack) -> None:
        super().install(undo)
        processor = self.processor
        model, layers = processor.model, processor.decoder.layers
        hook = model.register_forward_pre_hook(self._before_pass, with_kwargs=True)
        undo.callback(hook.remove)
        for number, (layer, mlp) in enumerate(zip(layers, processor.mlps(), strict=True)):
            undo.callback(layer.register_forward_hook(self._keep_output).remove)
            undo.callback(mlp.register_forward_hook(partial(self._steer, number)).remove)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.directions = None
        self.streams = []

    # Hooks. Other generations may run the model at the same time, or in between.

    def _before_pass(self, _model: nn.Module, args: Any, kwargs: Any = None) -> None:
        if self._runs() and self.directions is None and self._outputs is None:
            self.directions = self._find_directions(args, kwargs or {})

    def _find_directions(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """What the images add to each layer's output at the prompts' last position."""
        outputs = []
        for stream in self.streams:
            stream.record_call(args, kwargs)
            ids = stream.calls[0].get("input_ids")
            if ids is None:
                raise ValueError("VISTA needs the prompts' tokens: pass input_ids to generate")
            self._outputs = []
            try:
                stream.logits(ids)
                outputs.append(torch.stack([each.to(ids.device) for each in self._outputs], 1))
            finally:
                self._outputs = None
        self.streams = []  # their caches are not needed again
        rows = len(outputs[0]) // len(self.seen)
        seen = self.seen.to(outputs[0].device).repeat_interleave(rows)
        return vista.directions(*outputs) * seen[:, None, None]

    def _keep_output(self, _layer: nn.Module, _args: Any, output: Any) -> None:
        if self._outputs is not None and self._runs():
            hidden = output[0] if isinstance(output, tuple) else output
            self._outputs.append(hidden[:, -1].detach().clone())

    def _steer(self, number: int, _mlp: nn.Module, _args: Any, output: Any) -> Any:
        if self.directions is None or not self._runs():
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        direction = self.directions[:, number].to(hidden.device)
        if hidden.ndim != 3 or len(hidden) != len(direction):
            raise ValueError(
                f"an MLP's output has shape {tuple(hidden.shape)}, not ({len(direction)}, "
                "positions, d), so VISTA cannot steer it: steering=0 leaves that out"
            )
        steered = vista.steer(hidden, direction, self.processor.config.steering)
        return (steered, *output[1:]) if isinstance(output, tuple) else steered
