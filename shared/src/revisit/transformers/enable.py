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
from functools import cache, partial, wraps
from types import FrameType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
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
from revisit.transformers.contrastive import (
    M3IDLogitsProcessor,
    RITUALLogitsProcessor,
    VCDLogitsProcessor,
)
from revisit.transformers.generation import (
    DecoderLogitsProcessor,
    HiddenStatesLogitsProcessor,
    current_generation,
    setting,
)
from revisit.transformers.layer_logits import DoLaLogitsProcessor
from revisit.transformers.model_parts import Model
from revisit.transformers.processor import ReVisiTLogitsProcessor

_DECODERS: dict[type, type[DecoderLogitsProcessor]] = {
    ReVisiTConfig: ReVisiTLogitsProcessor,
    VCDConfig: VCDLogitsProcessor,
    RITUALConfig: RITUALLogitsProcessor,
    M3IDConfig: M3IDLogitsProcessor,
    DoLaConfig: DoLaLogitsProcessor,
}


class _Block(NamedTuple):
    """An open `attach` block."""

    processor: DecoderLogitsProcessor
    frame: FrameType  # of the code inside it, which may go on in another context


# The open blocks of all threads, the innermost last, and those opened by this thread (or task).
_blocks: list[_Block] = []
_opened: ContextVar[tuple[_Block, ...]] = ContextVar("opened", default=())

# A generator that is thrown away closes its block wherever that happens, also inside a change.
_changes = threading.RLock()

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
        if not _is_enabled(model):
            _install(model)
        _set_enabled(model, processor)


def disable(model: Model) -> None:
    """End what `enable` began; a model that is not enabled stays as it is."""
    model = _unwrapped(model)
    with _changes:
        if _is_enabled(model):
            _set_enabled(model, None)
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

    A thread that the block starts is another thread: to stream from one, use `enable`. A generator
    or coroutine that holds the block open decodes so wherever it goes on. Inside another `attach`,
    or of an enabled model, the innermost settings count.

    Args:
        model, config, lm_head, decoder: as `enable` takes them.

    Raises:
        ValueError: as `enable`.
    """
    model = _unwrapped(model)
    processor = _processor(model, config, lm_head, decoder)
    block = _Block(processor, _caller())
    with _changes:
        _install(model)
        _blocks.append(block)
        _opened.set((*(each for each in _opened.get() if each in _blocks), block))
    try:
        yield processor
    finally:
        # Maybe in another context than that in which it was opened.
        _opened.set(tuple(each for each in _opened.get() if each is not block))
        with _changes:
            _blocks.remove(block)
            _remove(model)


def _caller() -> FrameType:
    """The frame of who called into this module."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") in (__name__, "contextlib"):
        frame = frame.f_back
    assert frame is not None
    return frame


def _attached() -> list[DecoderLogitsProcessor]:
    """Those of the open blocks of this thread, or that the running code is inside of; the innermost
    first."""
    blocks, opened = tuple(_blocks), _opened.get()  # other threads open and close some
    inside = [block for block in blocks if block in opened]
    frame = inspect.currentframe() if len(inside) < len(blocks) else None
    while frame is not None:
        inside += [block for block in blocks if block.frame is frame and block not in inside]
        frame = frame.f_back
    inside.sort(key=blocks.index)
    return [block.processor for block in reversed(inside)]


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
    outer = current_generation()
    if outer is not None and outer.processor.model is model and not outer.in_processors:
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
    _refuse_open_batching(model)
    config = config if config is not None else ReVisiTConfig()
    decoder_class = _DECODERS.get(type(config))
    if decoder_class is None:
        known = ", ".join(each.__name__ for each in _DECODERS)
        raise ValueError(f"config must be one of {known}, got {config!r}")
    if issubclass(decoder_class, HiddenStatesLogitsProcessor):
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
    _refuse_dropped_cache(processor.model, given)
    if (
        returned
        and getattr(processor.config, "trace", False)
        and not setting(processor.model, given, "return_dict_in_generate")
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
        self.enabled: tuple[DecoderLogitsProcessor, ...] = ()  # of models that hold the module

    @property
    def plain(self) -> Callable[..., Any]:
        """The method without us."""
        own = partial(getattr(type(self.module), self.name), self.module)
        return own if self.before is None else self.before

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.plain)

    def asked(self) -> list[DecoderLogitsProcessor]:
        """The processors that count here, of the module's model or of one around it."""
        attached = [each for each in _attached() if _holds(each.model, self.module)]
        return [*attached, *reversed(self.enabled)]

    def refuse_plain(self) -> None:
        """Refuse a decoding that asks no processor though one counts here."""
        generation = current_generation()
        if generation is not None and _holds(generation.processor.model, self.module):
            return
        for processor in self.asked():
            name, model = processor.name, type(processor.model).__name__
            raise ValueError(
                f"{name} is enabled, and this decoding would not ask it: call model.generate of "
                f"the {model} itself (no continuous batching), or end revisit.enable or "
                "revisit.attach first"
            )


class _Generate(_Entrance):
    """`generate` of a model that is enabled or attached, and of the models inside it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own = next((each for each in self.asked() if each.model is self.module), None)
        if own is None:
            self.refuse_plain()
            return self.plain(*args, **kwargs)
        return _generate(own, self.plain, args, kwargs, returned=own in self.enabled)


class _Batching(_Entrance):
    """`init_continuous_batching`: a manager's thread decodes without our processor."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.refuse_plain()
        return self.plain(*args, **kwargs)


class _LogitsProcessors(_Entrance):
    """`_get_logits_processor` of such a model, and of the language model that it may hand over to:
    the processor of the generation that runs comes first among all."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.refuse_plain()
        processors = self.plain(*args, **kwargs)
        generation = current_generation()
        if generation is None or not _holds(generation.processor.model, self.module):
            return processors
        if not generation.in_processors:
            generation.in_processors = True
            own = generation.processor
            processors[:] = [own, *(each for each in processors if each is not own)]
        return processors


@cache
def _guard_start() -> None:
    """Let a batching manager ask its model when it starts: it may be older than our entrances."""
    try:
        from transformers.generation.continuous_batching import ContinuousBatchingManager
    except ImportError:  # an older release
        return
    start = ContinuousBatchingManager.start

    @wraps(start)
    def guarded(manager: Any, *args: Any, **kwargs: Any) -> Any:
        entrance = vars(manager.model).get("init_continuous_batching")
        if isinstance(entrance, _Batching):
            entrance.refuse_plain()
        return start(manager, *args, **kwargs)

    ContinuousBatchingManager.start = guarded


def _holds(model: Model, module: Any) -> bool:
    return any(part is module for part in model.modules())


def _entrances(model: Model) -> list[tuple[Any, str, type[_Entrance]]]:
    ways = {
        "generate": _Generate,
        "_get_logits_processor": _LogitsProcessors,
        "init_continuous_batching": _Batching,
    }
    parts = [part for part in model.modules() if hasattr(part, "_get_logits_processor")]
    return [(part, name, ways[name]) for part in parts for name in ways if hasattr(part, name)]


def _install(model: Model) -> None:
    _guard_start()
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


def _set_enabled(model: Model, processor: DecoderLogitsProcessor | None) -> None:
    for module, name, kind in _entrances(model):
        entrance = module.__dict__.get(name)
        if isinstance(entrance, kind):
            others = tuple(each for each in entrance.enabled if each.model is not model)
            entrance.enabled = others if processor is None else (*others, processor)


def _is_enabled(model: Model) -> bool:
    enabled = getattr(model.__dict__.get("generate"), "enabled", ())
    return any(each.model is model for each in enabled)


def _unwrapped(model: Model) -> Model:
    model = getattr(model, "_orig_mod", model)  # of a torch.compile'd one
    if not hasattr(type(model), "_get_logits_processor"):
        raise ValueError(
            f"{type(model).__name__} is no model of Transformers that generates: pass the model "
            "itself (of a PEFT model, model.get_base_model())"
        )
    return model


def _refuse_open_batching(model: Model) -> None:
    for thread in threading.enumerate():
        manager = getattr(getattr(thread, "_target", None), "__self__", None)
        batching = type(manager).__name__ == "ContinuousBatchingManager"
        if batching and _holds(model, getattr(manager, "model", None)):
            raise ValueError(
                f"a continuous batching manager of this {type(model).__name__} is open, and would "
                "go on decoding plainly: stop it first"
            )


def _refuse_dropped_cache(model: Model, given: Mapping[str, Any]) -> None:
    """Refuse to generate in training mode where layers with gradient checkpointing get no cache."""
    training = model.training and getattr(model, "is_gradient_checkpointing", False)
    if training and setting(model, given, "use_cache") is not False and _drops_cache():
        raise ValueError(
            f"this Transformers drops the KV cache of a {type(model).__name__} that trains with "
            "gradient checkpointing, so that it generates without what came before, whatever the "
            "decoder: call model.eval() first, or pass use_cache=False"
        )


@cache
def _drops_cache() -> bool:
    """Whether a layer with gradient checkpointing gets no cache, as seen by one that has none."""
    try:
        from transformers.modeling_layers import GradientCheckpointingLayer
    except ImportError:  # in these releases each model has its own, and the cache is kept
        return False

    class Layer(GradientCheckpointingLayer):  # type: ignore[misc]
        gradient_checkpointing = True

        def forward(self, **given: Any) -> bool:
            return given["past_key_values"] is None

    layer = Layer()
    layer._gradient_checkpointing_func = lambda forward: forward()
    with torch.no_grad():
        return bool(layer(past_key_values=()))


def refuse_other_decodings(model: Model, given: Mapping[str, Any], name: str = "ReVisiT") -> None:
    """Refuse what takes more forward passes a step, drafts tokens that may be dropped, or asks no
    logits processor.

    Args:
        given: the arguments of `generate`.
        name: of the decoder that is asked for.

    Raises:
        ValueError: such a decoding is asked for; the message names the argument.
    """
    value = partial(setting, model, given)
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
    if (value("num_beams") or 1) > 1 and value("early_stopping") is True:
        # Transformers takes any such token among the best 2 * num_beams, also of probability 0.
        raise ValueError(
            f"with early_stopping=True a beam may end by a token that {name} left out: use "
            "early_stopping=False or 'never'"
        )


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
