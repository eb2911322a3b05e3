"""A second stream: the same model on the same tokens, with other images or none, beside the first.

The first stream is the generation itself. The arguments of its forward passes are recorded, and the
passes repeated with the second stream's inputs and KV cache when the decoder needs the second
logits. So whatever a release, a family or a kind of cache does to the arguments of a pass, both
streams get: positions, masks, caches, the names of the images' arguments.
"""

import copy
import inspect
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from revisit.transformers.generation import CACHES, prompt_count, refuse_prefilled_cache, setting
from revisit.transformers.model_parts import Model

Call = dict[str, Any]

# Inputs that are no image's, though they are tensors too.
_TEXT = (
    {"input_ids", "inputs", "attention_mask", "position_ids", "inputs_embeds", "cache_position"}
    | {"labels", "negative_prompt_ids", "negative_prompt_attention_mask"}
    | set(CACHES)
)

_POSITIONS = ("position_ids", "cache_position")

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
        self._read_before: Any = None  # images that the last pass has encoded
        self.calls: list[Call] = []  # of the first stream since the last step
        self.before: Tensor | None = None  # the tokens of the last step, (rows, t)
        # Modules that keep an offset of positions, which differs between the streams.
        self._with_offsets = [part for part in model.modules() if "rope_deltas" in vars(part)]
        self._offsets: list[Any] = [None] * len(self._with_offsets)

    def record_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Record a forward pass of the first stream, just before it runs."""
        call = self._named(args, kwargs)
        cache = next((call[key] for key in CACHES if call.get(key) is not None), None)
        if self.before is None and not self.calls:
            refuse_prefilled_cache(call, self.name)
            self.cache = self._new_cache(cache)
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

    def _named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        names = list(inspect.signature(self.model.forward).parameters) if args else []
        return {**dict(zip(names, args, strict=False)), **kwargs}

    def _new_cache(self, cache: Any) -> Any:
        """The second stream's cache, like the first's, which is empty."""
        return copy.deepcopy(cache)

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
        if call.get(_READ_BEFORE) is not None:
            call[_READ_BEFORE] = self._read_before
        with self._swapped_offsets():
            output = self.model(**{**call, "return_dict": True})
        self._read_before = getattr(output, _READ_BEFORE, None)
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

    def _second_calls(self, calls: list[Call], input_ids: Tensor) -> Iterator[Call]:
        if self.second and self._expanded is None:
            self._expanded = self._expand(calls, len(input_ids) // self.prompts)
        for call in calls:
            new = self._expanded or {}
            yield {**call, **{name: new[name] for name in new if _has(call, name)}}

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
    """Other prompts, of any length and maybe with images, that go on with the same tokens.

    They are read with the arguments by which `generate` would call the model. Later passes have
    the first stream's arguments, except tokens, masks and positions.

    Args:
        second: what `generate` would be given for the prompts, `input_ids` (P, T) among it.
        mask: (P, S) where the decoder layers read a token of the prompts, and no padding.
    """

    def __init__(self, model: Model, second: Mapping[str, Any], mask: Tensor, name: str) -> None:
        super().__init__(model, len(mask), name)
        self.second = dict(second)
        self.mask = mask.long()
        self.length = 0  # of the first stream's prompts, in tokens of `generate`
        self.prompt: Call = {}  # the arguments with which the second prompts are read
        self._last: Call = {}  # positions of the last token of the first stream's prompts

    def _new_cache(self, cache: Any) -> Any:
        """Of a length that may grow: a static one is as long as the first stream's sequences."""
        if not getattr(cache, "is_compileable", False):
            return super()._new_cache(cache)
        from transformers import DynamicCache

        try:
            return DynamicCache(config=self.model.config)
        except TypeError:  # an older release
            return DynamicCache()

    def _second_calls(self, calls: list[Call], input_ids: Tensor) -> Iterator[Call]:
        first = calls[-1]
        if self.before is None:
            rows = len(input_ids) // self.prompts
            self.length = input_ids.shape[1]
            self._last = {key: first[key][..., -1:] for key in _POSITIONS if _has(first, key)}
            with self._swapped_offsets():
                self.prompt = self._prompt_call(rows)
            self.mask = self.mask.repeat_interleave(rows, 0)
            same = {key: first[key] for key in ("use_cache", *CACHES) if key in first}
            yield {**self.prompt, **same}
        else:
            yield self._next_call(first, input_ids[:, self.length :])

    def _prompt_call(self, rows: int) -> Call:
        """The arguments with which `generate` would call the model first."""
        thread = threading.get_ident()

        def stop(_module: Any, args: Any, kwargs: Any = None) -> None:
            if threading.get_ident() == thread:
                raise _Called(self._named(args, kwargs or {}))

        hook = self.model.register_forward_pre_hook(stop, with_kwargs=True)
        settings: Call = {"max_new_tokens": 1, "num_beams": 1, "use_cache": False}
        settings |= {"do_sample": rows > 1, "num_return_sequences": rows}
        if hasattr(self.model.generation_config, "prefill_chunk_size"):
            settings["prefill_chunk_size"] = None
        try:
            type(self.model).generate(self.model, **self.second, **settings)
        except _Called as called:
            return called.call
        finally:
            hook.remove()
        raise AssertionError("generate did not call the model")

    def _next_call(self, first: Call, new: Tensor) -> Call:
        """The first stream's arguments for the pass that reads the last of the tokens (rows, t)."""
        cached = self.cache is not None
        mask = self.mask if cached else self.prompt.get("attention_mask", self.mask)
        mask = torch.cat([mask.long(), torch.ones_like(new)], 1)
        ids = new[:, -1:] if cached else torch.cat([self.prompt["input_ids"], new], 1)
        call: Call = {"input_ids": ids, "attention_mask": mask}
        for name, value in first.items():
            prompt = self.prompt.get(name)
            if name in call:
                continue
            if name in _POSITIONS and value is not None:
                call[name] = self._positions(name, value, mask, cached)
            elif value is None or name in (*CACHES, _READ_BEFORE) or type(value) in (bool, int):
                call[name] = value
            elif isinstance(prompt, Tensor) and prompt.shape == self.prompt["input_ids"].shape:
                # Of each token, such as its type: new ones have what they have in the first stream.
                single = cached and value.shape[-1] == 1
                call[name] = value if single else torch.cat([prompt, value[:, self.length :]], 1)
            elif prompt is not None:
                call[name] = prompt
        return call

    def _positions(self, name: str, first: Tensor, mask: Tensor, cached: bool) -> Tensor:
        """New tokens are as far behind the second prompt's last as they are behind the first's."""
        prompt = self.prompt.get(name)
        if prompt is None or name not in self._last:
            positions = torch.arange(mask.shape[1], device=mask.device)
            if name == "position_ids":
                positions = (mask.cumsum(1) - 1).clamp(min=0)
            return positions[..., -1:] if cached else positions
        new = prompt[..., -1:] + first[..., -1 if cached else self.length :] - self._last[name]
        return new if cached else torch.cat([prompt, new], -1)


class _Called(Exception):
    """Ends a `generate` where it calls the model."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


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
