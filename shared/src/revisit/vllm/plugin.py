"""What vLLM loads in each of its processes (entry point `vllm.general_plugins`).

A process that admits requests (`InputProcessor`) checks them here; one that runs the model joins
its runner here, once the model is loaded; one that schedules lets requests wait for room, and ends
what failed. An engine without ReVisiT stays as it is, but for refusing who asks for it.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from revisit.vllm.admission import (
    admit,
    check_engine,
    check_http,
    check_release,
    check_settings,
    gives_processor,
    is_served,
)
from revisit.vllm.failure import as_error, finish
from revisit.vllm.room import hold_back
from revisit.vllm.wrapping import wrap


def install() -> None:
    """Wrap what admits requests, what loads a model and what ends requests; again is a no-op.

    Another release of vLLM is left alone, but for refusing an engine that is given ReVisiT.
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
    wrap(Scheduler, "__init__", _hold_back)
    wrap(Scheduler, "update_from_output", _finish)


def _refuse_release(original: Any) -> Any:
    """Say so in the process that the user has started, and before others are."""

    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        if gives_processor(self.logits_processors):
            check_release()
        return original(self, *args, **kwargs)

    return create_engine_config


def _begin_admission(original: Any) -> Any:
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        from vllm.entrypoints.generate.base.serving import GenerateBaseServing
        from vllm.v1.engine.output_processor import RequestOutputCollector

        if is_served(vllm_config):
            check_engine(vllm_config)
        # An engine without the processor refuses requests for ReVisiT.
        wrap(GenerateBaseServing, "_check_model", _check_early)
        wrap(RequestOutputCollector, "put", _raise)
        original(self, vllm_config, *args, **kwargs)

    return __init__


def _check_early(original: Any) -> Any:
    """Refuse a request over HTTP before its images are read, of which vLLM counts some as sent."""

    async def _check_model(self: Any, request: Any) -> Any:
        check_http(request, self.engine_client.vllm_config)
        return await original(self, request)

    return _check_model


def _admit(original: Any) -> Any:
    def process_inputs(
        self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        hashes = _carried(prompt)
        try:
            check_settings(getattr(params, "extra_args", None), self.vllm_config)
            request = original(self, request_id, prompt, params, *args, **kwargs)
            features = request.mm_features or ()
            hashes = [each.mm_hash for each in features if each.data is not None]
            admit(request, self.vllm_config)
        except Exception:
            if is_served(self.vllm_config):
                _forget(self.renderer.mm_processor_cache, hashes)
            raise
        return request

    return process_inputs


def _carried(prompt: Any) -> list[str]:
    """The images that a prompt brings along; the engine has the others already."""
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


def _raise(original: Any) -> Any:
    """Raise for who waits for a request that lost a step, in place of what it decoded."""

    def put(self: Any, output: Any) -> None:
        original(self, as_error(output) or output)

    return put


def _hold_back(original: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if is_served(self.vllm_config):
            hold_back(self)

    return __init__


def _finish(original: Any) -> Any:
    def update_from_output(self: Any, scheduled: Any, output: Any) -> Any:
        from vllm.v1.engine import EngineCoreOutputs

        failed = finish(self, output)
        outputs = original(self, scheduled, output)
        for client, ended in failed:
            outputs.setdefault(client, EngineCoreOutputs()).outputs.append(ended)
        return outputs

    return update_from_output


def _join(original: Any) -> Any:
    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if is_served(self.vllm_config):
            from revisit.vllm.join import join

            join(self)

    return load_model
