"""Which engine runs a model; only that one is imported."""

from revisit.commands.engines import requests
from revisit.evaluation import EvaluationError
from revisit.evaluation.captioner import Captioner
from revisit.evaluation.run import Run


def load(run: Run) -> Captioner:
    """The captioner of a run's engine, for any model.

    Raises:
        EvaluationError: the engine cannot do what the run asks for.
        OSError, ValueError: see `revisit.evaluation.captioner.Load`.
    """
    if run.place.engine == "transformers":
        from revisit.commands.engines.transformers import StockCaptioner

        return StockCaptioner(run)
    requests.check(run)
    if run.place.engine == "openai":
        from revisit.commands.engines.openai import ServerCaptioner

        return ServerCaptioner(run)
    if run.process.world_size > 1 or run.place.device not in ("cpu", "cuda"):
        raise EvaluationError(
            "--engine vllm is one process, and takes the first GPUs that it sees: leave out "
            "--device and torchrun, and choose by CUDA_VISIBLE_DEVICES"
        )
    from revisit.commands.engines.vllm import VllmCaptioner

    return VllmCaptioner(run)
