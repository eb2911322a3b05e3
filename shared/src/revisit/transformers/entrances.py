"""Where a call of a model's `generate` becomes a generation of a decoder.

While a model is enabled or attached, three methods of it, and of the models inside it, are replaced
in the instance: `generate` opens the generation, `_get_logits_processor` puts the decoder's
processor first, and `init_continuous_batching` is refused.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial, wraps
from typing import Any

from torch import Tensor
from transformers import GenerationMixin

from revisit.transformers.blocks import attached_processors
from revisit.transformers.generation import (
    DecoderLogitsProcessor,
    current_generation,
    holds,
    setting,
)
from revisit.transformers.model_parts import Model
from revisit.transformers.refusals import refuse_dropped_cache, refuse_other_decodings


def generate(
    processor: DecoderLogitsProcessor,
    original: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    trace_returned: bool,
) -> Any:
    """Call `original`, a `generate` with these arguments, as a generation of the processor.

    `trace_returned`: whether the trace can be read from the return value alone.
    """
    vision_mask: Tensor | None = kwargs.pop("vision_mask", None)
    second_inputs: Mapping[str, Any] | None = kwargs.pop("second_inputs", None)
    arguments = _by_name(original, *args, **kwargs)
    refuse_other_decodings(processor.model, arguments, processor.name)
    refuse_dropped_cache(processor.model, arguments)
    traced = trace_returned and getattr(processor.config, "trace", False)
    if traced and not setting(processor.model, arguments, "return_dict_in_generate"):
        raise ValueError("a trace needs return_dict_in_generate=True: it is in what is returned")
    inputs = arguments.get("inputs")
    arguments["input_ids"] = arguments.get("input_ids") if inputs is None else inputs
    with processor.generation(arguments, vision_mask, second_inputs) as generation:
        output = original(*args, **kwargs)
        generation.end(output)
    return output


def _by_name(function: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of a call of a `generate` by name, also the ones that it passes on."""
    signature = inspect.signature(function)
    arguments = signature.bind(*args, **kwargs).arguments
    names = list(inspect.signature(GenerationMixin.generate).parameters)[1:]
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(name, {}))
        elif parameter.kind is parameter.VAR_POSITIONAL:
            arguments.update(zip(names, arguments.pop(name, ()), strict=False))
    return arguments


class _Entrance:
    """Replaces a method of a module, in the instance, for as long as a model uses it.

    A class and no closure, so that a copy of the module, also a pickled one, gets a separate one.
    """

    def __init__(self, module: Any, name: str) -> None:
        self.module = module
        self.name = name
        self.replaced = module.__dict__.get(name)  # somebody else may have replaced it too
        self.users = 0
        self.enabled: tuple[DecoderLogitsProcessor, ...] = ()  # of models that hold the module

    @property
    def original(self) -> Callable[..., Any]:
        if self.replaced is not None:
            return self.replaced  # type: ignore[no-any-return]
        return partial(getattr(type(self.module), self.name), self.module)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original)

    def processors(self) -> list[DecoderLogitsProcessor]:
        """The processors of the module's model, or of one around it; the first counts."""
        attached = [each for each in attached_processors() if holds(each.model, self.module)]
        return [*attached, *reversed(self.enabled)]

    def refuse_plain(self) -> None:
        """Refuse a decoding that would call no processor though one counts here."""
        generation = current_generation()
        if generation is not None and holds(generation.processor.model, self.module):
            return
        for processor in self.processors():
            name, model = processor.name, type(processor.model).__name__
            raise ValueError(
                f"{name} is enabled, and this decoding would not call it: call model.generate of "
                f"the {model} itself (no continuous batching), or end revisit.enable or "
                "revisit.attach first"
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.refuse_plain()
        return self.original(*args, **kwargs)


class _Generate(_Entrance):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for processor in self.processors():
            if processor.model is self.module:
                enabled = processor in self.enabled
                return generate(processor, self.original, args, kwargs, trace_returned=enabled)
        return super().__call__(*args, **kwargs)


class _LogitsProcessors(_Entrance):
    """Of the model, or of the language model inside that its `generate` calls: the processor of
    the current generation comes first."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        processors = super().__call__(*args, **kwargs)
        generation = current_generation()
        if generation is None or not holds(generation.processor.model, self.module):
            return processors
        if not generation.in_processors:
            generation.in_processors = True
            first = generation.processor
            processors[:] = [first, *(each for each in processors if each is not first)]
        return processors


_METHODS: dict[str, type[_Entrance]] = {
    "generate": _Generate,
    "_get_logits_processor": _LogitsProcessors,
    "init_continuous_batching": _Entrance,  # its thread decodes without our processor
}


def install(model: Model) -> None:
    """Replace the methods, or count one more use of them."""
    _guard_start()
    for module, name, entrance in _entrances(model):
        if entrance is None:
            entrance = module.__dict__[name] = _METHODS[name](module, name)
        entrance.users += 1


def remove(model: Model) -> None:
    """End one use; the end of the last one restores the methods."""
    for module, name, entrance in _entrances(model):
        if entrance is None:
            continue
        entrance.users -= 1
        if not entrance.users:
            del module.__dict__[name]
            if entrance.replaced is not None:
                module.__dict__[name] = entrance.replaced


def set_enabled(model: Model, processor: DecoderLogitsProcessor | None) -> None:
    """Let every call of the model's methods use this processor; None: no longer."""
    for _, _, entrance in _entrances(model):
        if entrance is not None:
            others = tuple(each for each in entrance.enabled if each.model is not model)
            entrance.enabled = others if processor is None else (*others, processor)


def is_enabled(model: Model) -> bool:
    enabled = getattr(model.__dict__.get("generate"), "enabled", ())
    return any(each.model is model for each in enabled)


def _entrances(model: Model) -> Iterator[tuple[Any, str, _Entrance | None]]:
    """The modules that generate, their methods, and what replaces each now."""
    for module in model.modules():
        if hasattr(module, "_get_logits_processor"):
            for name, kind in _METHODS.items():
                if hasattr(module, name):
                    now = module.__dict__.get(name)
                    yield module, name, now if isinstance(now, kind) else None


@cache
def _guard_start() -> None:
    """Check a model when a batching manager starts, which may be older than the entrances."""
    try:
        from transformers.generation.continuous_batching import ContinuousBatchingManager
    except ImportError:  # an older release
        return
    start = ContinuousBatchingManager.start

    @wraps(start)
    def guarded(manager: Any, *args: Any, **kwargs: Any) -> Any:
        entrance = vars(manager.model).get("init_continuous_batching")
        if isinstance(entrance, _Entrance):
            entrance.refuse_plain()
        return start(manager, *args, **kwargs)

    ContinuousBatchingManager.start = guarded
