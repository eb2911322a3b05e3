"""What vLLM loads in each of its processes (entry point `vllm.general_plugins`).

A process that admits requests (`InputProcessor`) checks them here; one that runs the model joins
its runner here, once the model is loaded. An engine that was not given ReVisiT stays as it is.
"""

import logging
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from revisit.vllm.admission import (
    RELEASES,
    admit,
    check_engine,
    check_release,
    is_served,
    refuse_beams,
)

log = logging.getLogger("vllm.revisit")

_MARK = "_revisit"


def install() -> None:
    """Wrap what admits requests, and what loads a model; again is a no-op."""
    try:
        check_release()
    except RuntimeError:
        log.debug("ReVisiT is not available: it was tested with vLLM %s", RELEASES)
        return
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.worker.gpu_worker import Worker

    _wrap(InputProcessor, "__init__", _begin_admission)
    _wrap(InputProcessor, "process_inputs", _admit)
    _wrap(Worker, "load_model", _join)


def installed() -> bool:
    """Whether this process has loaded the plugin."""
    from vllm.v1.worker.gpu_worker import Worker

    return hasattr(Worker.load_model, _MARK)


def _wrap(owner: type, name: str, wrapper: Callable[[Any], Any]) -> None:
    original = getattr(owner, name)
    if not hasattr(original, _MARK):
        wrapped = wraps(original)(wrapper(original))
        setattr(wrapped, _MARK, True)
        setattr(owner, name, wrapped)


def _begin_admission(original: Any) -> Any:
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        if is_served(vllm_config):
            check_engine(vllm_config)
            from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
            from vllm.entrypoints.openai.completion.protocol import CompletionRequest

            for request in (ChatCompletionRequest, CompletionRequest):
                _wrap(request, "to_beam_search_params", _without_beams)
        original(self, vllm_config, *args, **kwargs)

    return __init__


def _admit(original: Any) -> Any:
    def process_inputs(self: Any, request_id: str, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        hashes = dict(prompt).get("mm_hashes", {}) if isinstance(prompt, Mapping) else {}
        names = [name for each in hashes.values() for name in each]
        try:
            request = original(self, request_id, prompt, *args, **kwargs)
            names = [feature.mm_hash for feature in request.mm_features or ()]
            admit(request, self.vllm_config)
        except Exception:
            if is_served(self.vllm_config):
                _forget(self.renderer.mm_processor_cache, names)
            raise
        return request

    return process_inputs


def _forget(cache: Any, hashes: list[str]) -> None:
    """The images of a refused request never reach the engine: they must be sent when next asked.

    vLLM's cache counts an image as sent once it is read.
    """
    for name in hashes if cache is not None else ():
        cache.invalidate(name)


def _without_beams(original: Any) -> Any:
    def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        refuse_beams(self)
        return original(self, *args, **kwargs)

    return to_beam_search_params


def _join(original: Any) -> Any:
    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if is_served(self.vllm_config):
            join(self)

    return load_model


def join(worker: Any) -> None:
    """Let a worker's model runner, its model just loaded, tell of its passes.

    Raises:
        ValueError: the model cannot be served with ReVisiT.
    """
    from revisit.vllm.memory import leave_room
    from revisit.vllm.processor import ReVisiT
    from revisit.vllm.runner import face
    from revisit.vllm.serving import Serving

    config, runner = worker.vllm_config, worker.model_runner
    serving = Serving(face(runner, config.use_v2_model_runner), check_engine(config))
    for processor in serving.runner.processors():
        if isinstance(processor, ReVisiT):
            processor.serving = serving
    if serving.head.device.type == "cpu":
        leave_room(worker, serving.bytes)
    execute, profile = runner.execute_model, runner.profile_run

    @wraps(profile)
    def profile_run(*args: Any, **kwargs: Any) -> None:
        profile(*args, **kwargs)
        serving.rehearse()

    @wraps(execute)
    def execute_model(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("dummy_run"):
            return execute(scheduled, *args, **kwargs)
        serving.before(scheduled)
        output = execute(scheduled, *args, **kwargs)
        if output is None:  # there is something to sample
            serving.after()
        return output

    runner.profile_run, runner.execute_model = profile_run, execute_model
