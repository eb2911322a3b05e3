"""A second stream: the same model on the same tokens, with other images or none, beside the first.

The first stream is the generation itself. Its forward passes are overheard as they are called, and
made again with the second stream's inputs and its KV cache, when the decoder asks for the second
logits. So what a release, a family or a kind of cache does to the arguments of a pass holds for
both: positions, masks, caches, the images' place among the arguments.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from revisit.transformers.generation import CACHES, prompts_of, refuse_read_prompts, setting
from revisit.transformers.parts import Model

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
    """What is common to both kinds: the passes overheard, the KV cache, the rows.

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
        # Where a model keeps the offset of its positions: each stream has its own.
        self._turning = [part for part in model.modules() if "rope_deltas" in vars(part)]
        self._offsets: list[Any] = [None] * len(self._turning)

    def overhear(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Take a pass of the first stream, just before it is made."""
        names = list(inspect.signature(self.model.forward).parameters) if args else []
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        cache = next((call[key] for key in CACHES if call.get(key) is not None), None)
        if self.before is None and not self.calls:
            refuse_read_prompts(call, self.name)
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
        for call in self._told(calls, input_ids):
            output = self._pass(call)
        self.before = input_ids
        last: Tensor = output.logits[:, -1]
        return last

    def _told(self, calls: list[Call], input_ids: Tensor) -> Iterator[Call]:
        """The second stream's passes for these of the first."""
        raise NotImplementedError

    def _pass(self, call: Call) -> Any:
        for name in CACHES:
            if call.get(name) is not None:
                call[name] = self.cache
        for name in ("output_attentions", "output_hidden_states"):
            if call.get(name):
                call[name] = False
        with self._own_offsets():
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
                f"{self.name} was given tokens that do not go on with those of the step before"
            )
        rows = same.shape[1]
        start = torch.arange(0, len(now), rows, device=now.device).unsqueeze(1)
        order = (same.byte().argmax(-1) + start).flatten()
        if isinstance(self.cache, tuple):
            self.cache = self.model._reorder_cache(self.cache, order)
        else:
            self.cache.reorder_cache(order)

    @contextmanager
    def _own_offsets(self) -> Iterator[None]:
        first = [part.rope_deltas for part in self._turning]
        for part, own in zip(self._turning, self._offsets, strict=True):
            part.rope_deltas = own
        try:
            yield
        finally:
            self._offsets = [part.rope_deltas for part in self._turning]
            for part, kept in zip(self._turning, first, strict=True):
                part.rope_deltas = kept


class OtherImages(SecondStream):
    """The same prompts with other images of the same size: the same passes, other pixels.

    Args:
        inputs: what the first stream's model was given for its prompts.
        second: what takes the place of some of it, by the same names and in the same shapes.
    """

    def __init__(
        self, model: Model, inputs: Mapping[str, Any], second: Mapping[str, Any], name: str
    ) -> None:
        prompts = prompts_of(inputs)
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

    def _told(self, calls: list[Call], input_ids: Tensor) -> Iterator[Call]:
        if self.second and self._expanded is None:
            self._expanded = self._expand(calls, len(input_ids) // self.prompts)
        for call in calls:
            told = self._expanded or {}
            yield {**call, **{name: new for name, new in told.items() if _given(call, name)}}

    def _pass(self, call: Call) -> Any:
        if call.get(_READ_BEFORE) is not None and self.second:
            call[_READ_BEFORE] = self._read_before
        output = super()._pass(call)
        self._read_before = getattr(output, _READ_BEFORE, None)
        return output

    def _expand(self, calls: list[Call], rows: int) -> Call:
        """The second images as `generate` hands them on: encoded, and repeated for each row."""
        images = {**image_inputs(self.inputs), **self.second}
        if any(_given(call, _ENCODED) for call in calls):
            images = self.model._prepare_multimodal_encoder_kwargs_for_generation(images)
        if rows > 1:
            ids = self.inputs.get("input_ids")
            mask = self.inputs.get("attention_mask")
            text = {} if mask is None else {"attention_mask": mask}
            _, images = self.model._expand_inputs_for_generation(
                expand_size=rows, is_encoder_decoder=False, input_ids=ids, **text, **images
            )
        changed = {name: images[name] for name in images if name in self.second or name == _ENCODED}
        if not any(_given(call, name) for call in calls for name in changed):
            raise ValueError(
                f"{type(self.model).__name__} does not read {sorted(self.second)} in its own "
                f"forward, where {self.name} would exchange them: it encodes them beforehand"
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

    def _told(self, calls: list[Call], input_ids: Tensor) -> Iterator[Call]:
        """One pass a step: the first stream's settings, and the second's tokens and positions."""
        if self.before is None:
            self.length = input_ids.shape[1]
        rows = len(input_ids) // self.prompts
        new = input_ids[:, self.length :]
        ids = torch.cat([self.ids.repeat_interleave(rows, 0), new], 1)
        mask = torch.cat([self.mask.repeat_interleave(rows, 0), torch.ones_like(new)], 1)
        first = calls[-1]
        own: Call = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in first:
            own["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        if "cache_position" in first:
            own["cache_position"] = torch.arange(ids.shape[1], device=ids.device)
        if self.before is not None and self.cache is not None:
            own = {key: value[..., -1:] for key, value in own.items()}
            own["attention_mask"] = mask
        settings = {key: first[key] for key in first if type(first[key]) in (bool, int)}
        yield {**settings, **own, **{name: first[name] for name in CACHES if name in first}}


def image_inputs(inputs: Mapping[str, Any]) -> Call:
    """What of the inputs of `generate` may belong to images: tensors, or lists of them."""
    return {name: inputs[name] for name in inputs if name not in _TEXT and is_tensors(inputs[name])}


def is_tensors(value: object) -> bool:
    """Whether it is a tensor, or a list of tensors."""
    if isinstance(value, list | tuple):
        return bool(value) and all(is_tensors(each) for each in value)
    return isinstance(value, Tensor)


def _given(call: Call, name: str) -> bool:
    value = call.get(name)
    return bool(value) if isinstance(value, dict) else value is not None
