"""PAI in `generate`: what the last position attends to of the image, through Transformers' own
attention interface."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from revisit.config import PAIConfig
from revisit.decoders import pai
from revisit.decoders.scaled import within
from revisit.transformers.contrastive import (
    SecondStreamGeneration,
    TextOnlyLogitsProcessor,
)
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
_FUNCTION = "sdpa"  # the one that is intercepted: those of a GPU's kernels have no mask to read


class PAILogitsProcessor(TextOnlyLogitsProcessor):
    """The second stream reads the prompts without their images; the first attends to them more.

    Raises:
        ValueError: the release or the model has no attention that can be raised.
    """

    name = "PAI"
    config: PAIConfig

    def __init__(self, model: Model, config: PAIConfig) -> None:
        super().__init__(model, config)
        if config.alpha:
            self.attentions()  # what cannot work is refused now

    def attentions(self) -> list[nn.Module]:
        """The attention of each layer, all of which the interface serves."""
        attentions: list[Any] = [
            getattr(layer, "self_attn", None) for layer in text_decoder(self.model).layers
        ]
        for attention in attentions:
            kind = type(attention)
            served = hasattr(sys.modules[kind.__module__], _INTERFACE)
            function = getattr(getattr(attention, "config", None), "_attn_implementation", None)
            if not served or function != _FUNCTION:
                what = f"is {function!r}" if served else f"does not go through {_INTERFACE}"
                advice = f"load the model with attn_implementation={_FUNCTION!r}, or " * served
                raise ValueError(
                    f"PAI raises attention that Transformers computes by {_FUNCTION!r}, and that "
                    f"of {kind.__name__} {what}: {advice}pass alpha=0, which leaves the logits half"
                )
        return attentions

    def open(self, prompts: Prompts) -> SecondStreamGeneration:
        if not self.config.alpha:
            return super().open(prompts)
        inputs = prompts.inputs
        refuse_prefilled_cache(inputs, self.name)
        refuse_chunked_prefill(self.model, inputs, self.name)
        stream = self.stream(prompts)
        return RaisedGeneration(self, stream, locate(self.model, inputs, prompts.vision_mask).mask)

    def combine(self, logits: Tensor, second: Tensor, step: int) -> Tensor:
        return pai.combine(logits, second, self.config.gamma, self.config.beta)


class RaisedGeneration(SecondStreamGeneration):
    """Raises what the last position attends to of the image, in each step of the first stream.

    Args:
        vision: (P, S) bool, true at the vision tokens of the prompts as the layers read them.
    """

    processor: PAILogitsProcessor

    def __init__(self, processor: PAILogitsProcessor, stream: SecondStream, vision: Tensor) -> None:
        super().__init__(processor, stream)
        self.vision = vision
        attentions = processor.attentions()
        first = within(pai.FIRST_LAYER, len(attentions), processor.name)
        self._raised = attentions[first:]
        self._seen = 0  # how many of them attended since the last step

    def __enter__(self) -> "RaisedGeneration":
        super().__enter__()
        with ExitStack() as undo:
            undo.push(self._undo.pop_all())
            for interface in {id(each): each for each in map(_interface, self._raised)}.values():
                undo.enter_context(_intercepted(interface))
            self._undo = undo.pop_all()
        return self

    def step(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._seen != len(self._raised):
            raise ValueError(
                f"PAI saw {self._seen} layers attend in a step, not {len(self._raised)}: the "
                "model's passes must be those of this generation, in its thread and not compiled"
            )
        self._seen = 0
        return super().step(input_ids, scores)

    def attend(
        self,
        function: Callable[..., Any],
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **settings: Any,
    ) -> Any:
        """The attention function's output, with the last position's attention raised."""
        output, weights = function(module, query, key, value, attention_mask, **settings)
        if self._running_second or not any(module is each for each in self._raised):
            return output, weights
        if others := [name for name in _OTHERS if settings.get(name) is not None]:
            raise ValueError(f"PAI cannot raise attention with {others}: pass alpha=0")
        self._seen += 1
        groups = query.shape[1] // key.shape[1]
        keys, values = (each.repeat_interleave(groups, 1).float() for each in (key, value))
        # One position of a pass, but without a KV cache all that were the last one of a step.
        count = min(query.shape[2], self.steps + 1)
        scale = settings.get("scaling") or query.shape[-1] ** -0.5
        scores = query[:, :, -count:].float() @ keys.transpose(2, 3) * scale
        scores = _masked(scores, attention_mask, query.shape[2])
        vision = self._vision_keys(len(query), keys.shape[2]).to(scores.device)
        raised = pai.boost(scores.flatten(1, 2), vision, self.processor.config.alpha)
        last = raised.view_as(scores).softmax(-1) @ values
        last = last.transpose(1, 2).to(output.dtype)
        return torch.cat([output[:, :-count], last], 1), weights

    def _vision_keys(self, rows: int, length: int) -> Tensor:
        """(rows, length) bool, true at the keys of vision tokens.

        Static caches have room behind the keys, those of a sliding window hold the latest alone.
        """
        vision = pad(self.vision, (0, self.steps)).repeat_interleave(rows // len(self.vision), 0)
        return pad(vision, (0, max(0, length - vision.shape[1])))[:, -length:]


# What some attentions add to the scores, or to the softmax.
_OTHERS = ("softcap", "s_aux", "position_bias")


def _masked(scores: Tensor, mask: Tensor | None, queries: int) -> Tensor:
    """The scores (rows, heads, c, keys) of a pass's last positions, with -inf or a dtype's least
    number where its mask hides a key."""
    count, length = scores.shape[2:]
    if mask is None:  # causal: a single position sees all keys
        if queries == 1:
            return scores
        places = torch.arange(queries - count, queries, device=scores.device)
        seen = torch.arange(length, device=scores.device) <= places.unsqueeze(1)
        return scores.masked_fill(~seen, -torch.inf)
    last = mask[:, :, -count:, :length]
    return scores.masked_fill(~last, -torch.inf) if last.dtype == torch.bool else scores + last


def _interface(attention: nn.Module) -> Any:
    return getattr(sys.modules[type(attention).__module__], _INTERFACE)


class _Interception:
    """Asks the generation that runs about each attention, for as long as any needs it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.users = 0

    def __call__(self, *args: Any, **settings: Any) -> Any:
        generation = current_generation()
        if isinstance(generation, RaisedGeneration):
            return generation.attend(self.function, *args, **settings)
        return self.function(*args, **settings)


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
