"""The ways into `generate`: attached to a model, as `custom_generate`, and from the forks."""

import copy
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, LogitsProcessorList

from revisit.columns import LMHead
from revisit.config import NamedLayers, ReVisiTConfig
from revisit.decoder import Model, is_tied, text_decoder
from revisit.layers import resolve_layers
from revisit.processor import ReVisiTLogitsProcessor

# The decoding loops that ReVisiT joins, by the names of generation modes.
_LOOPS = {
    "greedy_search": "_sample",
    "sample": "_sample",
    "beam_search": "_beam_search",
    "beam_sample": "_beam_search",
}

# What `generate` was given for its own loops and keeps from a callable.
_WITHHELD = ("streamer", "synced_gpus", "assistant_model")


@contextmanager
def attach(
    model: Model,
    config: ReVisiTConfig | None = None,
    *,
    vision_mask: Tensor | None = None,
    lm_head: LMHead | None = None,
    decoder: nn.Module | None = None,
) -> Iterator[ReVisiTLogitsProcessor]:
    """Prepare a model of Transformers for ReVisiT: the value is a logits processor for `generate`.

        with revisit.attach(model, ReVisiTConfig(alpha=1e-3)) as processor:
            model.generate(**inputs, logits_processor=[processor])

    Inside it, each call of the model's `generate` that is given the processor is decoded with
    ReVisiT, and other calls are not; threads may share the model. Transformers applies its own
    penalties (such as `repetition_penalty`) before the processors it is given: `revisit.generate`
    and the forks put ReVisiT first.

    Args:
        model: a causal vision-language model whose prompt holds its vision tokens.
        config: the settings; the published defaults if left out.
        vision_mask: (rows, prompt length) bool, true at the vision tokens, where the model's config
            cannot tell them.
        lm_head: the LM head's weights, where the model has none in memory as floating point, or
            changes its logits by more than a scale or cap of its config.
        decoder: the module that holds the text decoder's layers, where it cannot be found.

    Raises:
        ValueError: a layer is out of range, or the model's decoder, LM head or vision tokens cannot
            be found; the message says what to pass.
    """
    model = getattr(model, "_orig_mod", model)  # of a torch.compile'd one
    settings = config if config is not None else ReVisiTConfig()
    processor = ReVisiTLogitsProcessor(model, settings, vision_mask, lm_head, decoder)
    with _entrance(model) as attached:
        attached.append(processor)
        try:
            yield processor
        finally:
            attached.remove(processor)


class _Entrance:
    """Stands before a model's `generate` while processors are attached to it."""

    changes = threading.Lock()

    def __init__(self, generate: Callable[..., Any], before: Any) -> None:
        self.generate = generate
        self.before = before  # the model's own attribute of that name, or None
        self.attached: list[ReVisiTLogitsProcessor] = []
        self.users = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = _arguments(self.generate, *args, **kwargs)
        asked = given.get("logits_processor") or []
        with ExitStack() as stack:
            for processor in self.attached.copy():
                if any(processor is one for one in asked):
                    refuse_other_decodings(processor.model, given)
                    stack.enter_context(processor.generation(_inputs(given)))
            return self.generate(*args, **kwargs)


@contextmanager
def _entrance(model: Model) -> Iterator[list[ReVisiTLogitsProcessor]]:
    with _Entrance.changes:
        entrance = model.__dict__.get("generate")
        if not isinstance(entrance, _Entrance):
            entrance = _Entrance(model.generate, entrance)
            model.__dict__["generate"] = entrance
        entrance.users += 1
    try:
        yield entrance.attached
    finally:
        with _Entrance.changes:
            entrance.users -= 1
            if not entrance.users and model.__dict__.get("generate") is entrance:
                del model.__dict__["generate"]
                if entrance.before is not None:
                    model.__dict__["generate"] = entrance.before


def generate(
    model: Model,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: Any,
    generation_config: Any,
    revisit_config: ReVisiTConfig | None = None,
    vision_mask: Tensor | None = None,
    lm_head: LMHead | None = None,
    decoder: nn.Module | None = None,
    **model_kwargs: Any,
) -> Any:
    """Decoding with ReVisiT as the `custom_generate` of an unpatched Transformers.

        model.generate(
            **inputs, custom_generate=revisit.generate, revisit_config=ReVisiTConfig(alpha=1e-3)
        )

    `generate` prepares the inputs and calls this; ReVisiT comes first among the logits processors,
    and the decoding loop (greedy, sampling or beams) is the installed version's own.

    Args:
        revisit_config: the settings; the published defaults if left out. With `trace`, the output
            object's attribute `revisit_trace` holds the steps of each row.
        vision_mask, lm_head, decoder: as `attach` takes them.

    Returns:
        What `generate` returns.

    Raises:
        ValueError: a setting is out of range or asks for a decoding that ReVisiT cannot join, or a
            part of the model cannot be found; the message says what to pass.
    """
    config = revisit_config if revisit_config is not None else ReVisiTConfig()
    if config.trace and not generation_config.return_dict_in_generate:
        raise ValueError("a trace needs return_dict_in_generate=True: it is in what is returned")
    call = _call()
    withheld = {name: call[name] for name in _WITHHELD if call.get(name) is not None}
    refuse_other_decodings(model, {"generation_config": generation_config, **withheld})
    mode = generation_config.get_generation_mode(withheld.pop("assistant_model", None))
    if mode.value not in _LOOPS:
        raise ValueError(
            f"ReVisiT joins greedy decoding, sampling and beam search, not {mode.value}"
        )
    processor = ReVisiTLogitsProcessor(model, config, vision_mask, lm_head, decoder)
    with processor.generation(_inputs(call)):
        output = getattr(model, _LOOPS[mode.value])(
            input_ids,
            logits_processor=LogitsProcessorList([processor, *logits_processor]),
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            **withheld,
            **model_kwargs,
        )
        if config.trace:
            output.revisit_trace = processor.trace
    return output


def _call() -> dict[str, Any]:
    """The arguments of the `generate` that called: it withholds some from a callable.

    A streamer would stay silent for ever, and an assistant be ignored, without a word. Newer
    releases run the vision tower beforehand and keep its inputs, the images' grids among them.
    """
    own = inspect.unwrap(GenerationMixin.generate).__code__
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not own:
        frame = frame.f_back
    if frame is None:
        raise ValueError("revisit.generate is for custom_generate=: call model.generate with it")
    given = frame.f_locals
    return {**given["kwargs"], **{name: given.get(name) for name in ("inputs", *_WITHHELD)}}


def decode(
    model: Model,
    inputs: Tensor | None,
    generation_config: Any,
    logits_processor: list[Any] | None = None,
    **arguments: Any,
) -> Any:
    """What the forks' decoding method does: `model.generate` with ReVisiT as its first processor.

    Greedy decoding, sampling and beam search, warpers, penalties, streaming, stopping criteria and
    scores are those of the installed Transformers.

    Args:
        model: of a fork, or of any Transformers whose `generate` moves processors marked
            `is_revisit` to the front.
        inputs: the prompt, as `generate` takes it.
        generation_config: with `early_exit_layers`, `relative_top`, the `revisit_*` settings, and
            `image_tokens`: None where the model tells its vision tokens, else a bool mask (rows,
            prompt length as the decoder reads it) that is true at them.
        logits_processor: the caller's own processors; they read the refined scores.
        **arguments: everything else that `generate` takes.

    Returns:
        What `generate` returns; with `revisit_trace`, the output object's attribute
        `revisit_trace` holds the steps of each row.

    Raises:
        ValueError: a setting is out of range, or asks for a decoding that ReVisiT cannot join.
    """
    settings = generation_config
    if settings.revisit_trace and not settings.return_dict_in_generate:
        raise ValueError("revisit_trace needs return_dict_in_generate=True: the trace is in there")
    given = {"inputs": inputs, "generation_config": settings, **arguments}
    refuse_other_decodings(model, given)
    config = ReVisiTConfig(
        layers=settings.early_exit_layers,
        alpha=settings.relative_top,
        divergence=settings.revisit_divergence,
        selection=settings.revisit_selection,
        no_vision=settings.revisit_no_vision,
        trace=settings.revisit_trace,
    )
    config = replace(config, layers=published_layers(model, config.layers))
    plain = copy.deepcopy(settings)
    plain.use_revisit = False
    mask = settings.image_tokens
    vision_mask = None if mask is None else torch.as_tensor(mask, dtype=torch.bool)
    processor = ReVisiTLogitsProcessor(model, config, vision_mask)
    with processor.generation(_inputs(given)):
        output = model.generate(
            inputs, plain, logits_processor=[processor, *(logits_processor or [])], **arguments
        )
        if config.trace:
            output.revisit_trace = processor.trace
    return output


def published_layers(
    model: Model, layers: NamedLayers | Sequence[int]
) -> NamedLayers | Sequence[int]:
    """`early_exit_layers` as the published flag reads it: a list without the last hidden state.

    Raises:
        ValueError: a layer is out of the model's range, or none is left.
    """
    last = len(text_decoder(model).layers)
    resolve_layers(layers, last, is_tied(model))
    if isinstance(layers, str):
        return layers
    kept = [layer for layer in layers if layer != last]
    if not kept:
        raise ValueError(
            f"early_exit_layers={layers} names only the last hidden state ({last}), which the "
            "published flag leaves out of a list: say 'last'"
        )
    return kept


def refuse_other_decodings(model: Model, given: Mapping[str, Any]) -> None:
    """Refuse what takes more forward passes a step, drafts tokens that may be dropped, or asks no
    logits processor.

    Args:
        given: the arguments of `generate`.

    Raises:
        ValueError: such a decoding is asked for; the message names the argument.
    """
    config = given.get("generation_config") or getattr(model, "generation_config", None)

    def value(name: str) -> Any:
        return given[name] if name in given else getattr(config, name, None)

    others = {
        "penalty_alpha": value("penalty_alpha") and not value("do_sample"),
        "dola_layers": value("dola_layers") is not None,
        "num_beam_groups": (value("num_beam_groups") or 1) > 1,
        "prompt_lookup_num_tokens": value("prompt_lookup_num_tokens"),
        "assistant_early_exit": value("assistant_early_exit"),
        "assistant_model": value("assistant_model") is not None,
        "cache_implementation='paged'": value("cache_implementation") == "paged",
    }
    if named := [name for name, asked in others.items() if asked]:
        raise ValueError(
            "ReVisiT works with greedy decoding, sampling and beam search; "
            f"take out {', '.join(named)}, which asks for another decoding"
        )


def _arguments(function: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of a call by name, those of its `**kwargs` among them."""
    signature = inspect.signature(function)
    named = signature.bind(*args, **kwargs).arguments
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            named.update(named.pop(name, {}))
    return named


def _inputs(given: Mapping[str, Any]) -> dict[str, Any]:
    """The model's inputs among the arguments of `generate`."""
    inputs = given.get("inputs")
    return {**given, "input_ids": given.get("input_ids") if inputs is None else inputs}
