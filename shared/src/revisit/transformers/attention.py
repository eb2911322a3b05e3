"""Attention that a decoder changes in one of its two streams: PAI, SID.

Transformers' attention interface is intercepted for as long as a generation needs it.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from revisit.config import PAIConfig, SIDConfig
from revisit.transformers.contrastive import SecondStreamGeneration, SecondStreamLogitsProcessor
from revisit.transformers.generation import (
    Prompts,
    current_generation,
    refuse_chunked_prefill,
    refuse_prefilled_cache,
)
from revisit.transformers.model_parts import Model, text_decoder
from revisit.transformers.second_stream import SecondStream
from revisit.transformers.vision_positions import locate

_INTERFACE = "ALL_ATTENTION_FUNCTIONS"
_FUNCTION = "sdpa"  # the one that is intercepted: the kernels of a GPU take no mask

# What some attentions add to the scores, or to the softmax.
_NOT_COMPUTED = ("softcap", "s_aux", "position_bias")

Output = tuple[Tensor, Tensor | None]


class AttentionCall(NamedTuple):
    """The attention of one layer in a pass over Q positions.

    Attributes:
        function: of the interface.
        module: the layer's attention.
        query: (rows, heads, Q, d).
        key, value: (rows, heads or fewer, keys, d).
        mask: (rows or 1, heads or 1, Q, keys or more), bool and true at what a position sees, or
            numbers to add; None is causal.
        settings: the function's further arguments.
    """

    function: Callable[..., Output]
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    settings: Mapping[str, Any]

    def run(self) -> Output:
        """The output, (rows, Q, heads, d), and the weights or None."""
        inputs = (self.module, self.query, self.key, self.value, self.mask)
        return self.function(*inputs, **self.settings)

    def scores(self, count: int) -> Tensor:
        """Of the last positions, before the softmax: (rows, heads, count, keys) float32.

        What a position does not see has -inf, or about the least number of the mask's dtype.
        """
        scale = self.settings.get("scaling") or self.query.shape[-1] ** -0.5
        keys = self.for_each_head(self.key)
        scores: Tensor = self.query[:, :, -count:].float() @ keys.transpose(2, 3) * scale
        if self.mask is not None and self.mask.dtype != torch.bool:
            return scores + self.mask[:, :, -count:, : scores.shape[3]]
        return scores.masked_fill(~self._seen()[:, :, -count:], -torch.inf)

    def for_each_head(self, states: Tensor) -> Tensor:
        """Keys or values for each head of the query, float32."""
        return states.repeat_interleave(self.query.shape[1] // states.shape[1], 1).float()

    def hiding(self, hidden: Tensor) -> "AttentionCall":
        """The call with keys hidden where `hidden` (rows, Q, keys) is true.

        A position that would see no key at all sees what it saw.
        """
        seen = self._seen()
        hidden = hidden.unsqueeze(1) & seen
        hidden &= (seen & ~hidden).any(-1, keepdim=True)
        if self.mask is None or self.mask.dtype == torch.bool:
            mask = seen & ~hidden
        else:
            least = torch.finfo(self.mask.dtype).min
            mask = self.mask[..., : seen.shape[3]].masked_fill(hidden, least)
        return self._replace(mask=mask, settings={**self.settings, "is_causal": False})

    def _seen(self) -> Tensor:
        """(rows or 1, heads or 1, Q, keys) bool, true where a position sees a key."""
        queries, keys = self.query.shape[2], self.key.shape[2]
        if self.mask is None:
            seen = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=self.query.device)
            return seen if queries == 1 else seen.tril()
        mask = self.mask[..., :keys]
        return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


class AttentionLogitsProcessor(SecondStreamLogitsProcessor):
    """A decoder with a second stream that changes the attention of one of the streams.

    With alpha 0 it changes none, and works with every attention.

    Raises:
        ValueError: the release or the model has no attention that can be changed.
    """

    config: PAIConfig | SIDConfig
    generation_class: ClassVar[type["AttentionGeneration"]]
    without: ClassVar[str]  # what alpha 0 leaves of the decoder, for messages

    def __init__(self, model: Model, config: PAIConfig | SIDConfig) -> None:
        super().__init__(model, config)
        self.first = 0
        if config.alpha:  # what cannot work is refused now
            self.first = self.first_layer(len(self._attentions()))

    def first_layer(self, count: int) -> int:
        """The first of `count` layers, from 0, whose attention is read or changed."""
        raise NotImplementedError

    def open(self, prompts: Prompts) -> SecondStreamGeneration:
        if not self.config.alpha:
            return super().open(prompts)
        inputs = prompts.inputs
        refuse_prefilled_cache(inputs, self.name)
        refuse_chunked_prefill(self.model, inputs, self.name)
        vision = locate(self.model, inputs, prompts.vision_mask).mask
        attentions = self._attentions()[self.first :]
        return self.generation_class(self, self.stream(prompts), vision, attentions)

    def _attentions(self) -> list[nn.Module]:
        """The attention of each layer, all of which go through the interface."""
        attentions = []
        for layer in text_decoder(self.model).layers:
            attention: Any = getattr(layer, "self_attn", None)
            kind = type(layer if attention is None else attention)
            module = sys.modules[kind.__module__]
            has_interface = attention is not None and hasattr(module, _INTERFACE)
            function = getattr(getattr(attention, "config", None), "_attn_implementation", None)
            if has_interface and function == _FUNCTION:
                attentions.append(attention)
                continue
            what, advice = f"does not go through {_INTERFACE}", ""
            if has_interface:
                what = f"is {function!r}"
                advice = f"load the model with attn_implementation={_FUNCTION!r}, or "
            raise ValueError(
                f"{self.name} changes attention that Transformers computes by {_FUNCTION!r}, and "
                f"that of {kind.__name__} {what}: {advice}pass alpha=0, which leaves {self.without}"
            )
        return attentions


class AttentionGeneration(SecondStreamGeneration):
    """Changes the attention of some layers in each step of one stream.

    Args:
        vision: (P, S) bool, true at the vision tokens of the prompts as the layers read them.
        attentions: of these layers.
    """

    processor: AttentionLogitsProcessor
    changes_second: ClassVar[bool]  # whether it changes the second stream, and not the first

    def __init__(
        self,
        processor: AttentionLogitsProcessor,
        stream: SecondStream,
        vision: Tensor,
        attentions: list[nn.Module],
    ) -> None:
        super().__init__(processor, stream)
        self.vision = vision
        self.attentions = attentions
        self._called = 0  # how many of them were in this step

    def install(self, undo: ExitStack) -> None:
        super().install(undo)
        for interface in {id(each): each for each in map(_interface, self.attentions)}.values():
            undo.enter_context(_intercepted(interface))

    def step(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        decided = super().step(input_ids, scores)
        if self._called != len(self.attentions):
            raise ValueError(
                f"{self.processor.name} saw {self._called} layers attend in a step, not "
                f"{len(self.attentions)}: the model's passes must be those of this generation, in "
                "its thread and not compiled"
            )
        self._called = 0
        return decided

    def call(self, call: AttentionCall) -> Output:
        """What a layer's attention gives in this generation."""
        changes = self._running_second == self.changes_second
        if not changes or not any(call.module is each for each in self.attentions):
            return call.run()
        self._called += 1
        return self.attend(call)

    def attend(self, call: AttentionCall) -> Output:
        """The changed attention of a layer."""
        raise NotImplementedError

    def scores(self, call: AttentionCall) -> Tensor:
        """(rows, heads, count, keys) before the softmax, of the positions that end a step.

        These are the last position of a pass; without a KV cache, the last one of each step so far.
        """
        if others := [name for name in _NOT_COMPUTED if call.settings.get(name) is not None]:
            raise ValueError(
                f"{self.processor.name} cannot compute attention with {others}: pass alpha=0"
            )
        return call.scores(min(call.query.shape[2], self.steps + 1))

    def vision_tokens(self, rows: int) -> Tensor:
        """(rows, T) bool, true at the vision tokens of the sequences so far."""
        return pad(self.vision, (0, self.steps)).repeat_interleave(rows // len(self.vision), 0)


def at_keys(values: Tensor, keys: int) -> Tensor:
    """Values (..., T) of the sequences' positions, for the keys of a layer: (..., keys).

    Static caches have room behind the positions; sliding windows hold the latest positions alone.
    """
    return pad(values, (0, max(0, keys - values.shape[-1])))[..., -keys:]


def _interface(attention: nn.Module) -> Any:
    return getattr(sys.modules[type(attention).__module__], _INTERFACE)


class _Interception:
    """Asks the generation that runs about each attention, for as long as any needs it."""

    def __init__(self, function: Callable[..., Output]) -> None:
        self.function = function
        self.users = 0

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **settings: Any,
    ) -> Output:
        call = AttentionCall(self.function, module, query, key, value, attention_mask, settings)
        generation = current_generation()
        return generation.call(call) if isinstance(generation, AttentionGeneration) else call.run()


_lock = threading.Lock()


@contextmanager
def _intercepted(interface: Any) -> Iterator[None]:
    """The interface's function is intercepted; several generations may share that."""
    with _lock:
        function = interface[_FUNCTION]
        ours = function if isinstance(function, _Interception) else _Interception(function)
        interface[_FUNCTION] = ours
        ours.users += 1
    try:
        yield
    finally:
        with _lock:
            ours.users -= 1
            if not ours.users:
                del interface[_FUNCTION]  # what is registered for all interfaces counts again
                if interface[_FUNCTION] is not ours.function:
                    interface[_FUNCTION] = ours.function
