"""What vLLM loads in each of its processes (entry point `vllm.general_plugins`).

A process that admits requests (`InputProcessor`) checks them here; one that runs the model joins
its runner here, once the model is loaded; one that schedules lets requests wait for memory, and
ends those that failed. An engine without ReVisiT only refuses requests that ask for it.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from revisit.vllm.admission import (
    admit,
    check_engine,
    check_http,
    check_release,
    check_settings,
    has_processor,
    serves_revisit,
)
from revisit.vllm.failure import as_error, end_failed
from revisit.vllm.scheduling import wait_for_memory
from revisit.vllm.wrapping import wrap

Method = Callable[..., Any]


def install() -> None:
    """Wrap what admits requests, what loads a model and what ends requests; again is a no-op.

    Another release of vLLM is left alone, but for refusing an engine with ReVisiT.
    """
    try:
        check_release()
    except RuntimeError:
        with suppress(ImportError, AttributeError):
            from vllm.engine.arg_utils import EngineArgs

            wrap(EngineArgs, "create_engine_config", _refuse_release)
        return
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.worker.gpu_worker import Worker

    wrap(InputProcessor, "__init__", _begin_admission)
    wrap(InputProcessor, "process_inputs", _admit)
    wrap(Worker, "load_model", _join)
    wrap(Scheduler, "__init__", _begin_scheduling)
    wrap(Scheduler, "update_from_output", _end_failed)


def _refuse_release(create_engine_config: Method, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Say so in the process that the user has started, and before others are."""
    if has_processor(self.logits_processors):
        check_release()
    return create_engine_config(self, *args, **kwargs)


def _begin_admission(init: Method, self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
    from vllm.entrypoints.generate.base.serving import GenerateBaseServing
    from vllm.v1.engine.output_processor import RequestOutputCollector

    if serves_revisit(vllm_config):
        check_engine(vllm_config)
    # An engine without the processor refuses requests for ReVisiT.
    wrap(GenerateBaseServing, "_check_model", _check_early)
    wrap(RequestOutputCollector, "put", _raise_failure)
    init(self, vllm_config, *args, **kwargs)


async def _check_early(check_model: Method, self: Any, request: Any) -> Any:
    """Refuse a request over HTTP before its images are read, of which vLLM counts some as sent."""
    check_http(request, self.engine_client.vllm_config)
    return await check_model(self, request)


def _admit(
    process_inputs: Method,
    self: Any,
    request_id: str,
    prompt: Any,
    params: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    hashes = _image_hashes(prompt)
    try:
        check_settings(getattr(params, "extra_args", None), self.vllm_config)
        request = process_inputs(self, request_id, prompt, params, *args, **kwargs)
        features = request.mm_features or ()
        hashes = [each.mm_hash for each in features if each.data is not None]
        admit(request, self.vllm_config)
    except Exception:
        if serves_revisit(self.vllm_config):
            _forget(self.renderer.mm_processor_cache, hashes)
        raise
    return request


def _image_hashes(prompt: Any) -> list[str]:
    """Of the images that a prompt brings along; the engine has the others already."""
    if not isinstance(prompt, Mapping):
        return []
    hashes, items = prompt.get("mm_hashes", {}), prompt.get("mm_kwargs", {})
    return [
        name
        for modality, names in hashes.items()
        for name, item in zip(names, items.get(modality, ()), strict=False)
        if item is not None
    ]


def _forget(cache: Any, hashes: list[str]) -> None:
    """The images of a refused request never reach the engine: they must be sent when next asked.

    vLLM's cache counts an image as sent once it is read.
    """
    for name in hashes if cache is not None else ():
        cache.invalidate(name)


def _raise_failure(put: Method, self: Any, output: Any) -> None:
    """Raise where a request that lost a step is waited for, in place of what it decoded."""
    put(self, as_error(output) or output)


def _begin_scheduling(init: Method, self: Any, *args: Any, **kwargs: Any) -> None:
    init(self, *args, **kwargs)
    if serves_revisit(self.vllm_config):
        wait_for_memory(self)


def _end_failed(update_from_output: Method, self: Any, scheduled: Any, output: Any) -> Any:
    from vllm.v1.engine import EngineCoreOutputs

    failed = end_failed(self, output)
    outputs = update_from_output(self, scheduled, output)
    for client, ended in failed:
        outputs.setdefault(client, EngineCoreOutputs()).outputs.append(ended)
    return outputs


def _join(load_model: Method, self: Any, *args: Any, **kwargs: Any) -> None:
    load_model(self, *args, **kwargs)
    if serves_revisit(self.vllm_config):
        from revisit.vllm.join import join

        join(self)
