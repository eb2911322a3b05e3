"""A second stream: the same model on the same tokens, with other images or none, beside the first.

The first stream is the generation itself. The arguments of its forward passes are recorded, and the
passes repeated with the second stream's inputs and KV cache when the decoder needs the second
logits. So whatever a release, a family or a kind of cache does to the arguments of a pass, both
streams get: positions, masks, caches, the names of the images' arguments.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from revisit.transformers.generation import CACHES, prompt_count, refuse_prefilled_cache, setting
from revisit.transformers.model_parts import Model

Call = dict[str, Any]

# Inputs that are no image's, though they are tensors too.
_TEXT = {
    *("input_ids", "inputs", "attention_mask", "position_ids", "inputs_embeds", "cache_position"),
    *("labels", "negative_prompt_ids", "negative_prompt_attention_mask", *CACHES),
}

# Images that were encoded before the prefill, as newer releases do, or in an earlier pass.
_ENCODED = "mm_encoder_outputs"
_READ_BEFORE = "image_hidden_states"


class SecondStream:
    """What both kinds share: recorded passes, the KV cache, the order of its rows.

    Args:
        model: the model that generates.
        prompts: P, how many prompts the generation has; rows of one prompt are neighbours.
        name: of the decoder, for messages.
    """

    def __init__(self, model: Model, prompts: int, name: str) -> None:
        self.model = model
        self.prompts = prompts
        self.name = name
        self.cache: Any = None
        self.calls: list[Call] = []  # of the first stream since the last step
        self.before: Tensor | None = None  # the tokens of the last step, (rows, t)
        # Modules that keep an offset of positions, which differs between the streams.
        self._with_offsets = [part for part in model.modules() if "rope_deltas" in vars(part)]
        self._offsets: list[Any] = [None] * len(self._with_offsets)

    def record_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Record a forward pass of the first stream, just before it runs."""
        names = list(inspect.signature(self.model.forward).parameters) if args else []
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        cache = next((call[key] for key in CACHES if call.get(key) is not None), None)
        if self.before is None and not self.calls:
            refuse_prefilled_cache(call, self.name)
            self.cache = copy.deepcopy(cache)
        elif cache is None and call.get("use_cache"):
            raise ValueError(
                f"{self.name} finds no KV cache among {sorted(call)}, which "
                f"{type(self.model).__name__} goes on with: pass use_cache=False to generate"
            )
        self.calls.append(call)

    def logits(self, input_ids: Tensor) -> Tensor:
        """The second stream's logits (rows, V) after the tokens (rows, t) so far.

        Raises:
            ValueError: the first stream's passes are not one for each step.
        """
        calls, self.calls = self.calls, []
        if not calls or (self.before is not None and len(calls) > 1):
            model = type(self.model).__name__
            raise ValueError(
                f"{self.name} reads the tokens of each step a second time, and {model}.forward was "
                f"called {len(calls)} times for one: its `generate` hands the prompt over to "
                "another model, or something else calls it in between"
            )
        if self.before is not None:
            self._follow(input_ids)
        for call in self._second_calls(calls, input_ids):
            output = self._pass(call)
        self.before = input_ids
        last: Tensor = output.logits[:, -1]
        return last

    def _second_calls(self, calls: list[Call], input_ids: Tensor) -> Iterator[Call]:
        """The arguments of the second stream's passes, from the first stream's `calls`."""
        raise NotImplementedError

    def _pass(self, call: Call) -> Any:
        for name in CACHES:
            if call.get(name) is not None:
                call[name] = self.cache
        for name in ("output_attentions", "output_hidden_states"):
            if call.get(name):
                call[name] = False
        with self._swapped_offsets():
            output = self.model(**{**call, "return_dict": True})
        kept = (output[name] for name in CACHES if name in output)
        self.cache = next(kept, self.cache)
        return output

    def _follow(self, input_ids: Tensor) -> None:
        """Put the cache's rows where beam search has put theirs: it follows from the tokens.

        Rows of one prompt with the same tokens have the same cache, so any of them is the one.
        """
        before, now = self.before, input_ids[:, :-1]
        assert before is not None
        if self.cache is None or torch.equal(before, now):
            return
        shape = (self.prompts, -1, now.shape[1])
        same = (now.view(shape).unsqueeze(2) == before.view(shape).unsqueeze(1)).all(-1)
        if not same.any(-1).all():
            raise ValueError(
                f"{self.name} got tokens that do not continue those of the previous step"
            )
        rows = same.shape[1]
        start = torch.arange(0, len(now), rows, device=now.device).unsqueeze(1)
        order = (same.byte().argmax(-1) + start).flatten()
        if isinstance(self.cache, tuple):
            self.cache = self.model._reorder_cache(self.cache, order)
        else:
            self.cache.reorder_cache(order)

    @contextmanager
    def _swapped_offsets(self) -> Iterator[None]:
        first = [part.rope_deltas for part in self._with_offsets]
        for part, second in zip(self._with_offsets, self._offsets, strict=True):
            part.rope_deltas = second
        try:
            yield
        finally:
            self._offsets = [part.rope_deltas for part in self._with_offsets]
            for part, kept in zip(self._with_offsets, first, strict=True):
                part.rope_deltas = kept


class OtherImages(SecondStream):
    """The same prompts with other images of the same size: the same passes, other pixels.

    Args:
        inputs: the first stream's inputs for its prompts.
        second: replacements for some of them, by the same names and in the same shapes.
    """

    def __init__(
        self, model: Model, inputs: Mapping[str, Any], second: Mapping[str, Any], name: str
    ) -> None:
        prompts = prompt_count(inputs)
        if prompts is None:
            raise ValueError(f"{name} needs the prompts: pass input_ids to generate")
        chunk, ids = setting(model, inputs, "prefill_chunk_size"), inputs.get("input_ids")
        if second and chunk and ids is not None and chunk < ids.shape[1]:
            raise ValueError(
                f"{name} cannot read images in chunks of the prompt: leave out prefill_chunk_size"
            )
        super().__init__(model, prompts, name)
        self.inputs = inputs
        self.second = second
        self._expanded: Call | None = None
        self._read_before: Any = None

    def _second_calls(self, calls: list[Call], input_ids: Tensor) -> Iterator[Call]:
        if self.second and self._expanded is None:
            self._expanded = self._expand(calls, len(input_ids) // self.prompts)
        for call in calls:
            new = self._expanded or {}
            yield {**call, **{name: new[name] for name in new if _has(call, name)}}

    def _pass(self, call: Call) -> Any:
        if call.get(_READ_BEFORE) is not None and self.second:
            call[_READ_BEFORE] = self._read_before
        output = super()._pass(call)
        self._read_before = getattr(output, _READ_BEFORE, None)
        return output

    def _expand(self, calls: list[Call], rows: int) -> Call:
        """The second images as `generate` hands them on: encoded, and repeated for each row."""
        images = {**image_inputs(self.inputs), **self.second}
        if any(_has(call, _ENCODED) for call in calls):
            images = self.model._prepare_multimodal_encoder_kwargs_for_generation(images)
        if rows > 1:
            ids = self.inputs.get("input_ids")
            mask = self.inputs.get("attention_mask")
            text = {} if mask is None else {"attention_mask": mask}
            _, images = self.model._expand_inputs_for_generation(
                expand_size=rows, is_encoder_decoder=False, input_ids=ids, **text, **images
            )
        changed = {name: images[name] for name in images if name in self.second or name == _ENCODED}
        if not any(_has(call, name) for call in calls for name in changed):
            raise ValueError(
                f"{type(self.model).__name__} does not read {sorted(self.second)} in its "
                f"forward, where {self.name} would replace them: it encodes them beforehand"
            )
        return changed


class OtherPrompt(SecondStream):
    """Other prompts, of text alone, that go on with the same tokens.

    Args:
        ids, mask: (P, S) the prompts, padded on the left, and where they are not padding.
    """

    def __init__(self, model: Model, ids: Tensor, mask: Tensor, name: str) -> None:
        super().__init__(model, len(ids), name)
        self.ids = ids
        self.mask = mask
        self.length = 0  # of the first stream's prompts

    def _second_calls(self, calls: list[Call], input_ids: Tensor) -> Iterator[Call]:
        """One pass a step: the first stream's settings, and the second's tokens and positions."""
        if self.before is None:
            self.length = input_ids.shape[1]
        rows = len(input_ids) // self.prompts
        new = input_ids[:, self.length :]
        ids = torch.cat([self.ids.repeat_interleave(rows, 0), new], 1)
        mask = torch.cat([self.mask.repeat_interleave(rows, 0), torch.ones_like(new)], 1)
        first = calls[-1]
        second: Call = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in first:
            second["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        if "cache_position" in first:
            second["cache_position"] = torch.arange(ids.shape[1], device=ids.device)
        if self.before is not None and self.cache is not None:
            second = {key: value[..., -1:] for key, value in second.items()}
            second["attention_mask"] = mask
        settings = {key: first[key] for key in first if type(first[key]) in (bool, int)}
        yield {**settings, **second, **{name: first[name] for name in CACHES if name in first}}


def image_inputs(inputs: Mapping[str, Any]) -> Call:
    """What of the inputs of `generate` may belong to images: tensors, or lists of them."""
    return {
        name: inputs[name] for name in inputs if name not in _TEXT and holds_tensors(inputs[name])
    }


def holds_tensors(value: object) -> bool:
    """Whether it is a tensor, or a list of tensors."""
    if isinstance(value, list | tuple):
        return bool(value) and all(holds_tensors(each) for each in value)
    return isinstance(value, Tensor)


def _has(call: Call, name: str) -> bool:
    value = call.get(name)
    return bool(value) if isinstance(value, dict) else value is not None
