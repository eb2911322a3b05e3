"""The one way in: a model's `generate` decodes with ReVisiT or another decoder, whoever calls it.

The instance's `generate` opens a generation with what it was given, and the instance's
`_get_logits_processor` puts the processor first. Everything else is the installed release's own:
greedy decoding, sampling, beams, streaming, stopping criteria, caches.
"""

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import GenerationMixin

from revisit.config import (
    DecoderConfig,
    DoLaConfig,
    M3IDConfig,
    ReVisiTConfig,
    RITUALConfig,
    VCDConfig,
)
from revisit.core.head import LMHead
from revisit.transformers.generation import (
    DecoderLogitsProcessor,
    ReadingLogitsProcessor,
    running_generation,
)
from revisit.transformers.inner import DoLaLogitsProcessor
from revisit.transformers.parts import Model
from revisit.transformers.processor import ReVisiTLogitsProcessor
from revisit.transformers.second import (
    M3IDLogitsProcessor,
    RITUALLogitsProcessor,
    VCDLogitsProcessor,
)

_DECODERS: dict[type, type[DecoderLogitsProcessor]] = {
    ReVisiTConfig: ReVisiTLogitsProcessor,
    VCDConfig: VCDLogitsProcessor,
    RITUALConfig: RITUALLogitsProcessor,
    M3IDConfig: M3IDLogitsProcessor,
    DoLaConfig: DoLaLogitsProcessor,
}

# The processors of this thread's (or task's) `attach` blocks, the innermost last.
_attached: ContextVar[tuple[DecoderLogitsProcessor, ...]] = ContextVar("attached", default=())

_changes = threading.Lock()

# By model and seed, how many prompts `decode` has decoded: each call has a processor of its own.
_prompts: WeakKeyDictionary[nn.Module, dict[int, int]] = WeakKeyDictionary()


def enable(
    model: Model,
    config: DecoderConfig | None = None,
    *,
    lm_head: LMHead | None = None,
    decoder: nn.Module | None = None,
) -> None:
    """From now on every `generate` of this model decodes with ReVisiT, or with the decoder whose
    settings are given, whoever calls it.

        revisit.enable(model, revisit.ReVisiTConfig(alpha=1e-3))
        model.generate(**inputs)

    A pipeline, a harness, a server or a training loop that holds the model is served too, in any
    thread. `generate` also takes `vision_mask`, (rows, prompt length) bool, true at the vision
    tokens, where the model's config cannot tell them. With `config.trace` the output object's
    attribute `revisit_trace` holds the steps of each sequence. A second call changes the settings,
    also to another decoder's; a copy of the model, also a pickled one, is enabled as the model is.

    VCD, RITUAL and M3ID run the model twice a step, on its second stream with other inputs: what
    `generate` is given as `second_inputs`, by the names of the model's own. For RITUAL it is the
    pixel values of the transformed images; for VCD it may be those of images with other noise, and
    for M3ID other `input_ids` (and `attention_mask`) than the prompts without their vision tokens
    and the marks around these.

    Args:
        model: a causal vision-language model of Transformers whose prompt holds its vision tokens.
        config: the settings, by their class also which decoder; ReVisiT's defaults if left out.
        lm_head, decoder: as `ReVisiTLogitsProcessor` takes them, where they cannot be found; for
            ReVisiT and DoLa, which read the model's inside.

    Raises:
        ValueError: a layer is out of range, or the model's decoder or LM head cannot be found; the
            message says what to pass. Nothing was changed.
    """
    model = _unwrapped(model)
    processor = _processor(model, config, lm_head, decoder)
    with _changes:
        if _enabled(model) is None:
            _install(model)
        model.__dict__["generate"].enabled = processor


def disable(model: Model) -> None:
    """End what `enable` began; a model that is not enabled stays as it is."""
    model = _unwrapped(model)
    with _changes:
        if _enabled(model) is not None:
            model.__dict__["generate"].enabled = None
            _remove(model)


@contextmanager
def attach(
    model: Model,
    config: DecoderConfig | None = None,
    *,
    lm_head: LMHead | None = None,
    decoder: nn.Module | None = None,
) -> Iterator[Any]:
    """`enable` for the calls that this thread makes inside the block; others are not touched.

        with revisit.attach(model, revisit.ReVisiTConfig(trace=True)) as run:
            output = model.generate(**inputs)
        run.trace

    A thread that the block starts is another thread: to stream from one, use `enable`. Inside
    another `attach`, or of an enabled model, the innermost settings count.

    Args:
        model, config, lm_head, decoder: as `enable` takes them.

    Raises:
        ValueError: as `enable`.
    """
    model = _unwrapped(model)
    processor = _processor(model, config, lm_head, decoder)
    with _changes:
        _install(model)
    inside = _attached.set((*_attached.get(), processor))
    try:
        yield processor
    finally:
        _attached.reset(inside)
        with _changes:
            _remove(model)


def decode(
    model: Model,
    config: ReVisiTConfig,
    *args: Any,
    lm_head: LMHead | None = None,
    decoder: nn.Module | None = None,
    **kwargs: Any,
) -> Any:
    """One call of the class's own `generate` with ReVisiT: what a replaced `generate` does.

    Args:
        config: with `trace`, the output object's attribute `revisit_trace` holds the steps.
        *args, **kwargs: what `generate` takes, and `vision_mask`.

    Raises:
        ValueError: as `enable`, or the settings ask for a decoding that ReVisiT cannot join.
    """
    outer = running_generation()
    if outer is not None and outer.processor.model is model and not outer.joined:
        # The model's own `generate` was replaced by what calls us, and is enabled besides.
        return type(model).generate(model, *args, **kwargs)
    with attach(model, config, lm_head=lm_head, decoder=decoder) as processor:
        decoded = _prompts.setdefault(model, {})
        processor.prompts = decoded.get(config.seed, 0)
        plain = partial(type(model).generate, model)
        output = _generate(processor, plain, args, kwargs, returned=True)
        decoded[config.seed] = processor.prompts
        return output


def _processor(
    model: Model, config: DecoderConfig | None, lm_head: LMHead | None, decoder: nn.Module | None
) -> DecoderLogitsProcessor:
    """The logits processor that decodes by these settings."""
    config = config if config is not None else ReVisiTConfig()
    decoder_class = _DECODERS.get(type(config))
    if decoder_class is None:
        known = ", ".join(each.__name__ for each in _DECODERS)
        raise ValueError(f"config must be one of {known}, got {config!r}")
    if issubclass(decoder_class, ReadingLogitsProcessor):
        return decoder_class(model, config, lm_head=lm_head, decoder=decoder)
    if lm_head is not None or decoder is not None:
        raise ValueError(f"{decoder_class.name} reads only logits: leave out lm_head and decoder")
    return decoder_class(model, config)


def _generate(
    processor: DecoderLogitsProcessor,
    plain: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    returned: bool,
) -> Any:
    """Call `plain`, a `generate`, as a generation of the processor.

    `returned`: whether a trace can be had from what it returns alone.
    """
    vision_mask: Tensor | None = kwargs.pop("vision_mask", None)
    second_inputs: Mapping[str, Any] | None = kwargs.pop("second_inputs", None)
    given = _arguments(plain, *args, **kwargs)
    refuse_other_decodings(processor.model, given, processor.name)
    if (
        returned
        and getattr(processor.config, "trace", False)
        and not _setting(processor.model, given)("return_dict_in_generate")
    ):
        raise ValueError("a trace needs return_dict_in_generate=True: it is in what is returned")
    with processor.generation(_inputs(given), vision_mask, second_inputs) as generation:
        output = plain(*args, **kwargs)
        generation.end(output)
    return output


class _Entrance:
    """Stands in a module's own attributes before a method of its class, for as long as it is used.

    It is no closure, so that a copy of the module, also a pickled one, gets one of its own.
    """

    def __init__(self, module: Any, name: str) -> None:
        self.module = module
        self.name = name
        self.before = module.__dict__.get(name)  # somebody else's replacement
        self.users = 0

    @property
    def plain(self) -> Callable[..., Any]:
        """The method without us."""
        own = partial(getattr(type(self.module), self.name), self.module)
        return own if self.before is None else self.before

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.plain)


class _Generate(_Entrance):
    """`generate` of a model that is enabled or attached."""

    enabled: DecoderLogitsProcessor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        attached = reversed(_attached.get())
        own = next((each for each in attached if each.model is self.module), None)
        processor = own if own is not None else self.enabled
        if processor is None:
            return self.plain(*args, **kwargs)
        return _generate(processor, self.plain, args, kwargs, returned=own is None)


class _LogitsProcessors(_Entrance):
    """`_get_logits_processor` of such a model, and of the language model that it may hand over to:
    the processor of the generation that runs comes first among all."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        processors = self.plain(*args, **kwargs)
        generation = running_generation()
        if generation is None or not _holds(generation.processor.model, self.module):
            if (enabled := _enabled(self.module)) is not None:
                raise ValueError(
                    f"{enabled.name} is enabled, and this decoding would not ask it: call "
                    "model.generate (no continuous batching), or revisit.disable(model) first"
                )
        elif not generation.joined:
            generation.joined = True
            own = generation.processor
            processors[:] = [own, *(each for each in processors if each is not own)]
        return processors


def _holds(model: Model, module: Any) -> bool:
    return any(part is module for part in model.modules())


def _entrances(model: Model) -> list[tuple[Any, str, type[_Entrance]]]:
    name = "_get_logits_processor"
    inner = [(part, name, _LogitsProcessors) for part in model.modules() if hasattr(part, name)]
    return [(model, "generate", _Generate), *inner]


def _install(model: Model) -> None:
    for module, name, kind in _entrances(model):
        entrance = module.__dict__.get(name)
        if not isinstance(entrance, kind):
            entrance = module.__dict__[name] = kind(module, name)
        entrance.users += 1


def _remove(model: Model) -> None:
    for module, name, kind in _entrances(model):
        entrance = module.__dict__.get(name)
        if not isinstance(entrance, kind):
            continue
        entrance.users -= 1
        if not entrance.users:
            del module.__dict__[name]
            if entrance.before is not None:
                module.__dict__[name] = entrance.before


def _enabled(model: Any) -> DecoderLogitsProcessor | None:
    return getattr(model.__dict__.get("generate"), "enabled", None)


def _unwrapped(model: Model) -> Model:
    model = getattr(model, "_orig_mod", model)  # of a torch.compile'd one
    if not hasattr(type(model), "_get_logits_processor"):
        raise ValueError(
            f"{type(model).__name__} is no model of Transformers that generates: pass the model "
            "itself (of a PEFT model, model.get_base_model())"
        )
    return model


def refuse_other_decodings(model: Model, given: Mapping[str, Any], name: str = "ReVisiT") -> None:
    """Refuse what takes more forward passes a step, drafts tokens that may be dropped, or asks no
    logits processor.

    Args:
        given: the arguments of `generate`.
        name: of the decoder that is asked for.

    Raises:
        ValueError: such a decoding is asked for; the message names the argument.
    """
    value = _setting(model, given)
    others = {
        "penalty_alpha": value("penalty_alpha") and not value("do_sample"),
        "dola_layers": value("dola_layers") is not None,
        "num_beam_groups": (value("num_beam_groups") or 1) > 1,
        "prompt_lookup_num_tokens": value("prompt_lookup_num_tokens"),
        "assistant_early_exit": value("assistant_early_exit"),
        "assistant_model": value("assistant_model") is not None,
        "guidance_scale": (value("guidance_scale") or 1) != 1,
        "custom_generate": isinstance(value("custom_generate"), str),
        "use_revisit": value("use_revisit"),
        "cache_implementation='paged'": value("cache_implementation") == "paged",
    }
    if named := [name for name, asked in others.items() if asked]:
        raise ValueError(
            f"{name} works with greedy decoding, sampling and beam search; "
            f"take out {', '.join(named)}, which asks for another decoding"
        )


def _setting(model: Model, given: Mapping[str, Any]) -> Callable[[str], Any]:
    """How `generate` reads a setting: the argument, else the generation config."""
    config = given.get("generation_config") or getattr(model, "generation_config", None)
    return lambda name: given[name] if name in given else getattr(config, name, None)


def _arguments(function: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of a call of a `generate` by name, those that it hands on among them."""
    signature = inspect.signature(function)
    named = signature.bind(*args, **kwargs).arguments
    own = list(inspect.signature(GenerationMixin.generate).parameters)[1:]
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            named.update(named.pop(name, {}))
        elif parameter.kind is parameter.VAR_POSITIONAL:
            named.update(zip(own, named.pop(name, ()), strict=False))
    return named


def _inputs(given: Mapping[str, Any]) -> dict[str, Any]:
    """The model's inputs among the arguments of `generate`."""
    inputs = given.get("inputs")
    return {**given, "input_ids": given.get("input_ids") if inputs is None else inputs}
