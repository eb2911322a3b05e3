"""Logits of the layers below the last, at the last position of each step; DoLa in `generate`."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from revisit.config import DoLaConfig
from revisit.core.head import LMHead, without_autocast
from revisit.decoders import dola
from revisit.transformers.generation import (
    Generation,
    HiddenStatesLogitsProcessor,
    current_generation,
    normalized_like,
)
from revisit.transformers.model_parts import Model, calibrated, modules_with_logits
from revisit.transformers.recorder import eager, layer_inputs, product_dtype

_TOKENS = 2**14  # whose rows of the LM head are in memory a second time


class DoLaLogitsProcessor(HiddenStatesLogitsProcessor):
    """Contrasts the model's logits with those of the layer that differs most.

    Args:
        model, lm_head, decoder: as `ReVisiTLogitsProcessor` takes them.
        config: the settings.

    Raises:
        ValueError: a layer is out of range, none is left below the last hidden state, or the
            model's decoder or LM head cannot be found.
    """

    name = "DoLa"
    config: DoLaConfig

    def __init__(
        self,
        model: Model,
        config: DoLaConfig,
        *,
        lm_head: LMHead | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__(model, config, lm_head=lm_head, decoder=decoder)
        count = self.decoder.depth
        self.layers = tuple(layer for layer in self.layers if layer != count)
        if not self.layers:
            raise ValueError(
                f"layers={config.layers!r} names no hidden state below the last one ({count}), "
                "which DoLa's candidates are held against"
            )

    def open(
        self,
        inputs: Mapping[str, Any],
        vision_mask: Tensor | None,
        second_inputs: Mapping[str, Any] | None,
    ) -> "LayerLogitsGeneration":
        if second_inputs is not None:
            raise ValueError("DoLa has no second stream: leave out second_inputs")
        return LayerLogitsGeneration(self)


class LayerLogitsGeneration(Generation):
    """Hooks the candidate layers for as long as it lasts, and keeps their last position."""

    processor: DoLaLogitsProcessor

    def __init__(self, processor: DoLaLogitsProcessor) -> None:
        super().__init__(processor)
        # Of the latest forward pass, at its last position: (rows, d) by layer, the decoder's
        # output, and the model's logits (rows, V).
        self.states: dict[int, Tensor] = {}
        self.final: Tensor | None = None
        self.logits: Tensor | None = None
        self.head: LMHead | None = None
        self._precision: torch.dtype | None = None
        self._undo = ExitStack()

    def __enter__(self) -> "LayerLogitsGeneration":
        decoder = self.processor.decoder
        with ExitStack() as undo:
            undo.enter_context(eager)
            undo.enter_context(layer_inputs(decoder, self._runs, self._keep))
            undo.callback(decoder.module.register_forward_hook(self._after_pass).remove)
            for owner in modules_with_logits(self.processor.model):
                undo.callback(owner.register_forward_hook(self._keep_logits).remove)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()
        self.states.clear()
        self.head = self.final = self.logits = None

    def step(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.head is None:
            self.head = self._complete()
        if len(self.states) != len(self.processor.layers):
            raise ValueError(
                "DoLa did not see the model read this step's tokens: its forward passes must be "
                "those of this generation, in its thread and not compiled"
            )
        logits = scores.float()
        states = [self.states.pop(layer) for layer in self.processor.layers]
        if len(states[0]) != len(logits):
            raise ValueError(
                f"the model read {len(states[0])} rows in this step, the scores have {len(logits)}"
            )
        premature = _layer_logits(self.head, states).to(logits.device, torch.float32)
        decided = dola.combine(logits, premature, self.processor.config.relative_top)
        return normalized_like(decided, scores)

    def _complete(self) -> LMHead:
        """The LM head with the scale or cap of this model's logits."""
        if self.final is None or self.logits is None:
            raise ValueError(
                "DoLa did not see the prompts being read: they must be read in this generation, "
                "by the model itself, with return_dict=True"
            )
        processor = self.processor
        name = type(processor.model).__name__
        config = processor.model.config
        return calibrated(processor.head(), config, self.final[0], self.logits[0], name)

    # Hooks. Other generations may run the model at the same time, or in between.

    def _runs(self) -> bool:
        return current_generation() is self

    def _keep(self, layer: int, hidden: Tensor) -> None:
        if layer not in self.processor.layers:
            return
        width = self.processor.head().width
        if hidden.ndim != 3 or hidden.shape[2] != width:
            raise ValueError(
                f"hidden state {layer} has shape {tuple(hidden.shape)}, not (rows, positions, "
                f"{width}), so the LM head cannot read it: choose other layers"
            )
        self.states[layer] = hidden[:, -1].detach().clone()

    def _after_pass(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if self._runs():
            self.final = output[0][:, -1].detach()
            self._precision = product_dtype(self.final, self.processor.head().dtype)

    def _keep_logits(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if self._runs() and self.head is None:
            logits = getattr(output, "logits", None)
            if isinstance(logits, Tensor):
                self.logits = logits[:, -1].detach().to(self._precision)


def _layer_logits(head: LMHead, states: list[Tensor]) -> Tensor:
    """The logits (rows, J, V) at J layers' hidden states (rows, d), some tokens at a time."""
    inner = torch.stack([state.to(head.device, head.dtype) for state in states], 1)
    tokens = torch.split(torch.arange(head.size, device=head.device), _TOKENS)
    with without_autocast(head.device):
        product = torch.cat([head.project(some, inner.flatten(0, 1)) for some in tokens])
    return product.T.reshape(*inner.shape[:2], -1)
