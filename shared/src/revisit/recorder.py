"""Records the hidden states of the vision tokens during prefill."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from revisit.vision import Model, VisionPositions, decoder, locate


class Recorder:
    """Keeps the vision positions of the chosen layers of each prefill of a model.

    A context manager: inside it, each forward pass that starts a generation is recorded, and the
    hooks on the layers stay for that one pass. On leaving, also by an exception, no hook is left.

    Args:
        model: a causal language model of Transformers.
        layers: indices of hidden states; 0 is the embedding, n the output after the final norm.
        device: where the states are kept.
        vision_mask: (rows, prompt length) bool, where the model cannot tell (see
            `revisit.vision.locate`).
        once: record the first prefill only, and take off every hook after it. Forward passes that
            other processors make (guidance) then go unseen.

    Attributes:
        states: for each row of the prefill, (len(layers) * N, d) hidden states, layer by layer.
            Rows with the same states (beams of one prompt) share one tensor.
        positions: where the vision tokens stood.
        prefills: how many prefills were recorded so far.
    """

    def __init__(
        self,
        model: Model,
        layers: tuple[int, ...],
        device: torch.device,
        vision_mask: Tensor | None = None,
        once: bool = False,
    ) -> None:
        self.model = model
        self.layers = layers
        self.device = device
        self.vision_mask = vision_mask
        self.once = once
        self.states: list[Tensor] = []
        self.positions: VisionPositions | None = None
        self.prefills = 0
        self._buffer: Tensor | None = None
        self._prompt: Tensor | None = None
        self._length = 0
        self._forward_hooks: list[RemovableHandle] = []
        self._layer_hooks: list[RemovableHandle] = []

    def __enter__(self) -> "Recorder":
        self._forward_hooks = [
            self.model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            self.model.register_forward_hook(self._after_forward),
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove(self._layer_hooks)
        self._remove(self._forward_hooks)

    @staticmethod
    def _remove(hooks: list[RemovableHandle]) -> None:
        while hooks:
            hooks.pop().remove()

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        self._remove(self._layer_hooks)
        inputs = {**kwargs, "input_ids": args[0]} if args else kwargs
        if _cached_length(inputs.get("past_key_values")) or self._continues(inputs):
            return
        positions = locate(module, inputs) if self.vision_mask is None else self._given(inputs)
        self.positions = positions
        self._buffer = None
        index = positions.mask.flatten().nonzero().squeeze(1)
        text = decoder(module)
        for slot, layer in enumerate(self.layers):
            self._layer_hooks.append(self._hook(text, layer, slot, index))

    def _continues(self, inputs: Mapping[str, Any]) -> bool:
        """Whether a forward pass without cache repeats the recorded prompt, one token longer."""
        input_ids = inputs.get("input_ids")
        if self._prompt is not None and input_ids is not None:
            start = self._prompt.shape[1]
            grown = (self._prompt.shape[0], self._length + 1)
            if input_ids.shape == grown and torch.equal(input_ids[:, :start], self._prompt):
                self._length += 1
                return True
        self._prompt = input_ids
        self._length = 0 if input_ids is None else input_ids.shape[1]
        return False

    def _given(self, inputs: Mapping[str, Any]) -> VisionPositions:
        """The caller's mask, its rows repeated as `generate` repeats prompts for beams."""
        mask = self.vision_mask
        assert mask is not None
        given = inputs.get("input_ids")
        rows = (given if given is not None else inputs["inputs_embeds"]).shape[0]
        if mask.ndim != 2 or mask.dtype != torch.bool or rows % mask.shape[0]:
            raise ValueError(
                f"vision_mask must be bool of shape (rows, prompt length) with {rows} rows, "
                f"got {mask.dtype} of shape {tuple(mask.shape)}"
            )
        return VisionPositions(mask.repeat_interleave(rows // mask.shape[0], 0), lambda: None)

    def _hook(self, text: nn.Module, layer: int, slot: int, index: Tensor) -> RemovableHandle:
        layers = text.layers
        assert isinstance(layers, nn.ModuleList)
        if layer == len(layers):
            return text.register_forward_hook(
                lambda _module, _args, output: self._store(slot, index, output[0])
            )
        return layers[layer].register_forward_pre_hook(
            lambda _module, args, kwargs: self._store(
                slot, index, args[0] if args else kwargs["hidden_states"]
            ),
            with_kwargs=True,
        )

    def _store(self, slot: int, index: Tensor, hidden: Tensor) -> None:
        assert self.positions is not None
        if hidden.shape[:2] != self.positions.mask.shape:
            raise ValueError(
                f"the vision tokens were located in prompts of shape "
                f"{tuple(self.positions.mask.shape)}, but the decoder reads "
                f"{tuple(hidden.shape[:2])}: pass vision_mask for the sequence it reads"
            )
        if self._buffer is None:
            shape = (len(self.layers), index.shape[0], hidden.shape[2])
            self._buffer = torch.empty(shape, dtype=hidden.dtype, device=self.device)
        rows = hidden.detach().flatten(0, 1)
        self._buffer[slot].copy_(rows.index_select(0, index.to(rows.device)))

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._layer_hooks:
            return
        self._remove(self._layer_hooks)
        assert self.positions is not None and self._buffer is not None
        self.states = []
        end = 0
        for count in self.positions.mask.sum(1).tolist():
            states = self._buffer[:, end : end + count].flatten(0, 1)
            end += count
            last = self.states[-1] if self.states else None
            same = last is not None and torch.equal(last, states)
            self.states.append(last if same and last is not None else states)
        self._buffer = None
        self.prefills += 1
        if self.once:
            self._remove(self._forward_hooks)


def _cached_length(past: Any) -> int:
    """How many positions a cache of any Transformers release holds."""
    if past is None:
        return 0
    if hasattr(past, "get_seq_length"):
        return int(past.get_seq_length())
    return int(past[0][0].shape[-2]) if len(past) else 0
