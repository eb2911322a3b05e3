"""Admission: the settings of an engine and of a request; what is refused, and why."""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from revisit.config import ReVisiTConfig
from revisit.core.layers import resolve_layers
from revisit.vllm.memory import longest_prompt, prompt_bytes

KEY = "revisit"
PROCESSOR = "revisit.vllm:ReVisiT"
# Tested with all of this: what is read of vLLM is not its public interface.
RELEASES = ("0.32.0", "0.33.0")

# `cache_bytes` of an engine that names none, for all requests together.
_BYTES = 2**30

# What `admit` adds to the settings of a request: the bytes that its prompt takes.
_PROMPT_BYTES = "prompt_bytes"

# Requests share the engine's forward pass and memory; vLLM has no way to return a trace.
_OF_ENGINE = ("layers", "cache_bytes")
_OF_REQUEST = tuple(
    field.name for field in fields(ReVisiTConfig) if field.name not in (*_OF_ENGINE, "trace")
)
_EXAMPLE = (
    'send {"revisit": {"alpha": 1e-05}} in SamplingParams.extra_args, or over HTTP, where all is '
    'JSON in a string, "vllm_xargs": {"revisit": "{\\"alpha\\": 1e-05}"} or {"revisit": "true"}'
)
_MODALITIES = ("image", "video")


def check_release() -> None:
    """Raise RuntimeError where vLLM is a release that was not tested."""
    import vllm

    if vllm.__version__.partition("+")[0] not in RELEASES:
        raise RuntimeError(
            f"ReVisiT was tested with vLLM {', '.join(RELEASES)} and reads what other releases may "
            f"keep elsewhere; this is {vllm.__version__}. Install one that was tested"
        )


def has_processor(processors: Any) -> bool:
    """Whether ReVisiT is among the logits processors of an engine, None if it has none."""
    return any(
        each == PROCESSOR or getattr(each, "__module__", "") == "revisit.vllm.processor"
        for each in processors or ()
    )


def serves_revisit(vllm_config: Any) -> bool:
    """Whether an engine has ReVisiT's logits processor."""
    return has_processor(getattr(vllm_config.model_config, "logits_processors", None))


def engine_settings(vllm_config: Any) -> ReVisiTConfig:
    """The settings under "revisit" of `additional_config`, which requests may narrow.

    Raises:
        ValueError: a setting is unknown or outside its range.
    """
    additional = vllm_config.additional_config
    settings = additional.get(KEY, {}) if isinstance(additional, Mapping) else {}
    if not isinstance(settings, Mapping):
        raise ValueError(f"additional_config['revisit'] must be an object, got {settings!r}")
    allowed = sorted((*_OF_ENGINE, *_OF_REQUEST))
    if unknown := sorted(set(map(str, settings)) - set(allowed)):
        raise ValueError(
            f"additional_config['revisit'] has no settings {unknown}; there are {allowed}"
        )
    return ReVisiTConfig(**{"cache_bytes": _BYTES, **settings})


def check_engine(vllm_config: Any) -> ReVisiTConfig:
    """Refuse an engine that cannot serve ReVisiT, or return its settings.

    Raises:
        ValueError: it cannot; the message says why.
    """
    from vllm.v1.core.sched.scheduler import Scheduler

    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    refused = {
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "prefill context parallelism": getattr(parallel, "prefill_context_parallel_size", 1) > 1,
        "a KV transfer (prompts must be read by this engine)": vllm_config.kv_transfer_config,
        "LoRA adapters (one may change the LM head)": vllm_config.lora_config,
        "an encoder-decoder": model.is_encoder_decoder,
        "a model that takes no images": not model.is_multimodal_model,
        "sleep mode (it takes the weights away)": model.enable_sleep_mode,
        "a weight transfer (it replaces the LM head)": vllm_config.weight_transfer_config,
        "batch-sharded sampling (a rank alone would see a step fail)": (
            getattr(parallel, "enable_batch_sharded_sampling", False)
        ),
        "a scheduler that is none of vLLM's (a request that fails could not be ended)": (
            not issubclass(vllm_config.scheduler_config.get_scheduler_cls(), Scheduler)
        ),
    }
    if reasons := [reason for reason, holds in refused.items() if holds]:
        raise ValueError(f"ReVisiT cannot be served with {', '.join(reasons)}")
    settings = engine_settings(vllm_config)
    resolve_layers(settings.layers, model.hf_text_config.num_hidden_layers, False)
    if not longest_prompt(vllm_config, settings):
        raise ValueError(
            f"cache_bytes={settings.cache_bytes} has room for no image: the least are "
            f"{prompt_bytes(1, vllm_config, settings)}, and ReVisiT's default {_BYTES}"
        )
    return settings


def asked_settings(asked: Any, engine: ReVisiTConfig) -> ReVisiTConfig | None:
    """The settings of a request; None where it does not ask for ReVisiT.

    Args:
        asked: what stands under "revisit": an object, or JSON of one; true takes the engine's.

    Raises:
        ValueError: it is not that, or a setting is unknown or outside its range.
    """
    if isinstance(asked, str):
        try:
            asked = json.loads(asked)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"it is not JSON ({str(error)[:100]})") from None
    if asked is None or asked is False:
        return None
    if asked is True:
        return engine
    if not isinstance(asked, Mapping):
        raise ValueError(f"it must be an object or true, got {repr(asked)[:200]}")
    for name in _OF_ENGINE:
        if name in asked and _as_list(asked[name]) != _as_list(getattr(engine, name)):
            raise ValueError(
                f"{name} is the engine's, for all requests, and here {getattr(engine, name)!r}: it "
                'stands under "revisit" in its --additional-config'
            )
    changed = {name: value for name, value in asked.items() if name not in _OF_ENGINE}
    if unknown := sorted(set(map(str, changed)) - set(_OF_REQUEST)):
        raise ValueError(f"no settings {repr(unknown)[:200]}; there are {sorted(_OF_REQUEST)}")
    settings = replace(engine, **changed)
    if not -(2**63) <= settings.seed < 2**63:
        raise ValueError("seed must fit 64 bits")
    return settings


def asks(params: Any) -> bool:
    """Whether sampling parameters name ReVisiT; after `admit`, whether a request decodes by it."""
    return KEY in (getattr(params, "extra_args", None) or {})


def check_settings(extra: Any, vllm_config: Any) -> ReVisiTConfig | None:
    """The settings that a request's extra arguments ask for; None where they ask for none.

    Raises:
        VLLMValidationError: they are wrong, or the engine does not serve ReVisiT; an HTTP server
            answers 400.
    """
    if KEY not in (extra or {}):
        return None
    try:
        settings = asked_settings(extra[KEY], engine_settings(vllm_config))
        if settings is not None and not serves_revisit(vllm_config):
            raise ValueError(f"this engine was started without --logits-processors {PROCESSOR}")
    except ValueError as error:
        raise _refusal(f"{error}; {_EXAMPLE}") from None
    return settings


def check_http(request: Any, vllm_config: Any) -> None:
    """`check_settings` for a request over HTTP, before its prompt is looked at.

    vLLM's beam search asks for one token at a time, with other sampling parameters.

    Raises:
        VLLMValidationError: as `check_settings`, or the request asks for beam search too.
    """
    settings = check_settings(getattr(request, "vllm_xargs", None), vllm_config)
    if settings is not None and getattr(request, "use_beam_search", False):
        raise _refusal("beam search is not supported; set use_beam_search to false")


def admit(request: Any, vllm_config: Any) -> None:
    """Complete the settings of a request, or refuse it; one that does not ask is left alone.

    Raises:
        VLLMValidationError: it is refused; an HTTP server answers 400 with the message.
    """
    params = request.sampling_params
    if not asks(params):
        return
    settings = check_settings(params.extra_args, vllm_config)
    extra_args = {name: value for name, value in params.extra_args.items() if name != KEY}
    needed = 0 if settings is None else _check_prompt(request, settings, vllm_config)
    if settings is not None and needed:
        of_request = {name: getattr(settings, name) for name in _OF_REQUEST}
        extra_args[KEY] = {**of_request, _PROMPT_BYTES: needed}
        # The hidden states of tokens in a prefix cache are not computed again.
        params.skip_reading_prefix_cache = True
    params.extra_args = extra_args


def _check_prompt(request: Any, settings: ReVisiTConfig, vllm_config: Any) -> int:
    """Bytes that a prompt takes with its vision tokens; 0 where it has none and none is needed."""
    if getattr(request, "resumable", False):
        raise _refusal("a prompt that is streamed in is not supported: send it whole")
    tokens = len(vision_positions(request.mm_features))
    if not tokens and settings.no_vision == "error":
        raise _refusal(
            "the prompt has no image or video to revisit: give it one, or ask for plain decoding "
            'with "no_vision": "plain"'
        )
    if (needed := prompt_bytes(tokens, vllm_config, settings)) > settings.cache_bytes:
        raise _refusal(
            f"the prompt has {tokens} vision tokens, which take {needed} bytes, and this engine "
            f"has cache_bytes={settings.cache_bytes} for all requests: send smaller images, or "
            "start it with more or with fewer layers"
        )
    return needed


def admitted_settings(params: Any, engine: ReVisiTConfig) -> ReVisiTConfig:
    """The settings that `admit` left in the sampling parameters of a request that asks."""
    admitted = params.extra_args[KEY]
    return replace(engine, **{name: admitted[name] for name in _OF_REQUEST})


def admitted_bytes(params: Any) -> int:
    """Bytes that the prompt of a request takes; 0 for one that does not ask for ReVisiT."""
    size: int = params.extra_args[KEY][_PROMPT_BYTES] if asks(params) else 0
    return size


def vision_positions(features: Any) -> list[int]:
    """The positions of a prompt's vision tokens, ascending, from vLLM's `mm_features`."""
    positions: set[int] = set()
    for feature in features or ():
        if feature.modality in _MODALITIES:
            found = feature.mm_position
            if found.is_embed is None:
                positions.update(range(found.offset, found.offset + found.length))
            else:
                positions.update((found.is_embed.nonzero().flatten() + found.offset).tolist())
    return sorted(positions)


def _refusal(message: str) -> Exception:
    from vllm.exceptions import VLLMValidationError

    refusal: Exception = VLLMValidationError(f"revisit: {message}", parameter=KEY)
    return refusal


def _as_list(setting: Any) -> Any:
    return list(setting) if isinstance(setting, tuple) else setting
