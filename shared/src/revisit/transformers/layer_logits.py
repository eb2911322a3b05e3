"""Logits of the layers below the last, at the last position of each step: DoLa, DeCo."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from revisit.config import DeCoConfig, DoLaConfig
from revisit.core.head import LMHead, without_autocast
from revisit.decoders import deco, dola
from revisit.decoders.scaled import scaled
from revisit.transformers.generation import (
    Generation,
    HiddenStatesLogitsProcessor,
    Prompts,
    current_generation,
    normalized_like,
    refuse_second_inputs,
)
from revisit.transformers.model_parts import calibrated, final_norm, modules_with_logits
from revisit.transformers.recorder import eager, layer_inputs, product_dtype

_TOKENS = 2**14  # whose rows of the LM head are in memory a second time


class LayerLogitsProcessor(HiddenStatesLogitsProcessor):
    """Combines the model's logits with those of hidden states below the last one.

    Args:
        model, lm_head, decoder: as `ReVisiTLogitsProcessor` takes them.
        config: the settings.

    Raises:
        ValueError: a layer is out of range, none is left below the last hidden state, or the
            model's decoder, LM head or final norm cannot be found.
    """

    def combine(self, logits: Tensor, inner: Tensor) -> Tensor:
        """The decoder's scores (rows, V) from the model's logits and J layers' (rows, J, V)."""
        raise NotImplementedError

    def norm(self) -> nn.Module | None:
        """What hidden states go through before the LM head reads them."""
        return None

    def open(self, prompts: Prompts) -> "LayerLogitsGeneration":
        refuse_second_inputs(prompts, self.name)
        return LayerLogitsGeneration(self)


class DoLaLogitsProcessor(LayerLogitsProcessor):
    """Contrasts the model's logits with those of the layer that differs most."""

    name = "DoLa"
    config: DoLaConfig

    def chosen_layers(self) -> tuple[int, ...]:
        count = self.decoder.depth
        below = tuple(layer for layer in super().chosen_layers() if layer != count)
        if not below:
            raise ValueError(
                f"layers={self.config.layers!r} names no hidden state below the last one "
                f"({count}), which DoLa's candidates are held against"
            )
        return below

    def combine(self, logits: Tensor, inner: Tensor) -> Tensor:
        return dola.combine(logits, inner, self.config.relative_top)


class DeCoLogitsProcessor(LayerLogitsProcessor):
    """Adds the logits of the layer that is surest of a candidate."""

    name = "DeCo"
    config: DeCoConfig

    def chosen_layers(self) -> tuple[int, ...]:
        return below_last(self.config.layers, deco.LAYERS, self.decoder.depth, self.name)

    def norm(self) -> nn.Module:
        return final_norm(self.decoder, self.name)

    def combine(self, logits: Tensor, inner: Tensor) -> Tensor:
        config = self.config
        return deco.combine(logits, inner, config.alpha, config.top_p, config.top_k)


class LayerLogitsGeneration(Generation):
    """Hooks the candidate layers for as long as it lasts, and keeps their last position."""

    processor: LayerLogitsProcessor

    def __init__(self, processor: LayerLogitsProcessor) -> None:
        super().__init__(processor)
        self.norm = processor.norm()
        # Of the latest forward pass, at its last position: (rows, d) by layer, the decoder's
        # output, and the model's logits (rows, V).
        self.states: dict[int, Tensor] = {}
        self.final: Tensor | None = None
        self.logits: Tensor | None = None
        self.head: LMHead | None = None
        self._precision: torch.dtype | None = None
        self._normed: Tensor | None = None  # what the final norm gave at the last position
        self._undo = ExitStack()

    def __enter__(self) -> "LayerLogitsGeneration":
        with ExitStack() as undo:
            self.install(undo)
            self._undo = undo.pop_all()
        return self

    def install(self, undo: ExitStack) -> None:
        """Install the hooks of the generation, which `undo` takes off."""
        decoder = self.processor.decoder
        undo.enter_context(eager)
        undo.enter_context(layer_inputs(decoder, self._runs, self._keep))
        if self.norm is not None:
            undo.callback(self.norm.register_forward_hook(self._after_norm).remove)
        undo.callback(decoder.module.register_forward_hook(self._after_pass).remove)
        for owner in modules_with_logits(self.processor.model):
            undo.callback(owner.register_forward_hook(self._keep_logits).remove)

    def __exit__(self, *error: object) -> None:
        self._undo.close()
        self.states.clear()
        self.head = self.final = self.logits = self._normed = None

    def step(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.head is None:
            self.head = self._complete()
        if len(self.states) != len(self.processor.layers):
            raise ValueError(
                f"{self.processor.name} did not see the model read this step's tokens: its forward "
                "passes must be those of this generation, in its thread and not compiled"
            )
        logits = scores.float()
        states = [self.states.pop(layer) for layer in self.processor.layers]
        if len(states[0]) != len(logits):
            raise ValueError(
                f"the model read {len(states[0])} rows in this step, the scores have {len(logits)}"
            )
        assert self.final is not None
        inner = torch.stack([state.to(self.final.device) for state in states], 1)
        if self.norm is not None:
            inner = self.norm(inner)
        inner = _layer_logits(self.head, inner).to(logits.device, torch.float32)
        return normalized_like(self.processor.combine(logits, inner), scores)

    def _complete(self) -> LMHead:
        """The LM head with the scale or cap of this model's logits."""
        if self.final is None or self.logits is None:
            raise ValueError(
                f"{self.processor.name} did not see the prompts being read: they must be read in "
                "this generation, by the model itself, with return_dict=True"
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

    def _after_norm(self, _module: nn.Module, _args: Any, output: Tensor) -> None:
        if self._runs():
            self._normed = output[:, -1].detach()

    def _after_pass(self, module: nn.Module, _args: Any, output: Any) -> None:
        if self._runs():
            self.final = output[0][:, -1].detach()
            if self.norm is not None and not _equal(self._normed, self.final):
                raise ValueError(
                    f"the last hidden state of {type(module).__name__} is not what its "
                    f"{type(self.norm).__name__} gives, so {self.processor.name} does not know how "
                    "the LM head would read those below it"
                )
            self._precision = product_dtype(self.final, self.processor.head().dtype)

    def _keep_logits(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if self._runs() and self.head is None:
            logits = getattr(output, "logits", None)
            if isinstance(logits, Tensor):
                self.logits = logits[:, -1].detach().to(self._precision)


def below_last(
    layers: str | Sequence[int], published: range, count: int, name: str
) -> tuple[int, ...]:
    """The hidden states that a decoder's settings name, all below the last one, n = `count`."""
    if isinstance(layers, str):
        return scaled(published, count, name)
    if outside := [layer for layer in layers if not 0 <= layer < count]:
        raise ValueError(
            f"layers {outside} are out of range: below the last one, this model has hidden states "
            f"0 (embedding) to {count - 1}"
        )
    return tuple(layers)


def _layer_logits(head: LMHead, states: Tensor) -> Tensor:
    """The logits (rows, J, V) at J layers' hidden states (rows, J, d), some tokens at a time."""
    inner = states.to(head.device, head.dtype).flatten(0, 1)
    tokens = torch.split(torch.arange(head.size, device=head.device), _TOKENS)
    with without_autocast(head.device):
        product = torch.cat([head.project(some, inner) for some in tokens])
    return product.T.reshape(*states.shape[:2], -1)


def _equal(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.shape == other.shape and torch.equal(one.to(other), other)
