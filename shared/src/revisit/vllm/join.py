"""Joins a worker of vLLM whose model was just loaded: from then on its passes are read."""

from functools import wraps
from typing import Any

from revisit.vllm.admission import check_engine
from revisit.vllm.failure import add_failures
from revisit.vllm.memory import leave_room
from revisit.vllm.processor import ReVisiT
from revisit.vllm.runners import RunnerV1, RunnerV2
from revisit.vllm.serving import Serving


def join(worker: Any) -> None:
    """Let a worker's model runner call ReVisiT around its passes.

    Raises:
        ValueError: the model cannot be served with ReVisiT.
    """
    config, runner = worker.vllm_config, worker.model_runner
    reader = RunnerV2(runner) if config.use_v2_model_runner else RunnerV1(runner)
    serving = Serving(reader, check_engine(config))
    for processor in reader.processors():
        if isinstance(processor, ReVisiT):
            processor.serving = serving
    if serving.head.device.type == "cpu":
        leave_room(worker, serving.steps.bytes)
    execute, sample, profile = runner.execute_model, runner.sample_tokens, runner.profile_run

    @wraps(profile)
    def profile_run(*args: Any, **kwargs: Any) -> None:
        profile(*args, **kwargs)
        serving.steps.rehearse()

    @wraps(execute)
    def execute_model(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("dummy_run"):
            return execute(scheduled, *args, **kwargs)
        serving.before_pass(scheduled)
        output = execute(scheduled, *args, **kwargs)
        if output is None:  # there is something to sample
            serving.after_pass()
        return output

    @wraps(sample)
    def sample_tokens(*args: Any, **kwargs: Any) -> Any:
        output = sample(*args, **kwargs)
        return add_failures(output, serving.failed_on_any_rank(), serving.faults)

    def reload_weights(*_: Any, **__: Any) -> None:
        raise ValueError("ReVisiT has read the LM head: start the engine anew with other weights")

    runner.profile_run, runner.execute_model = profile_run, execute_model
    runner.sample_tokens, runner.reload_weights = sample_tokens, reload_weights
