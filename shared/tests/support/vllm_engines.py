"""Engines of vLLM that serve the tiny models, and what they generate."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams

from revisit import ReVisiTConfig
from vllm_models import STEPS, Question

OPTIONS = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 * 2**20,
    "max_model_len": 512,
    "max_num_seqs": 8,
    "disable_log_stats": True,
    "distributed_executor_backend": "uni",
    "limit_mm_per_prompt": {"image": 2},
    "skip_mm_profiling": True,
    "enable_prefix_caching": False,
}


def start(folder: Path, layers: str | Sequence[int] = "last", **options: Any) -> LLM:
    """An engine that serves ReVisiT."""
    settings = {"layers": layers, **options.pop("revisit", {})}
    return LLM(
        str(folder),
        logits_processors=["revisit.vllm:ReVisiT", *options.pop("processors", ())],
        additional_config={"revisit": settings},
        **{**OPTIONS, **options},
    )


def extra_args(config: ReVisiTConfig | None) -> dict[str, Any] | None:
    """Extra arguments of a request with these settings."""
    if config is None:
        return None
    names = ("alpha", "divergence", "selection", "seed")
    return {"revisit": {name: getattr(config, name) for name in names}}


def params(config: ReVisiTConfig | None, steps: int = STEPS, **settings: Any) -> SamplingParams:
    """Greedy, the same number of tokens whatever they are."""
    greedy = {"temperature": 0, "max_tokens": steps, "ignore_eos": True}
    return SamplingParams(**{"extra_args": extra_args(config), **greedy, **settings})


def outputs(
    llm: LLM,
    asked: Sequence[tuple[Question, ReVisiTConfig | None]],
    steps: int = STEPS,
    priority: list[int] | None = None,
    **settings: Any,
) -> list[Any]:
    """vLLM's output of each request, all sent at once."""
    prompts = [question.for_vllm() for question, _ in asked]
    each = [params(config, steps, **settings) for _, config in asked]
    return llm.generate(prompts, each, use_tqdm=False, priority=priority)


def outcomes(llm: LLM, *asked: Any, **settings: Any) -> list[tuple[list[int], str | None, Any]]:
    """Of all requests, sent at once: new tokens, finish_reason and stop_reason."""
    firsts = [output.outputs[0] for output in outputs(llm, *asked, **settings)]
    return [(list(one.token_ids), one.finish_reason, one.stop_reason) for one in firsts]


def generate(llm: LLM, *asked: Any, **settings: Any) -> list[list[int]]:
    """The new tokens of all requests, sent at once."""
    return [tokens for tokens, *_ in outcomes(llm, *asked, **settings)]


def serving(llm: LLM) -> Any:
    """What the worker of an engine in this process keeps of its requests."""
    runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
    if hasattr(runner, "sampler") and hasattr(runner.sampler, "logits_processors"):
        processors = runner.sampler.logits_processors
    else:
        processors = runner.input_batch.logitsprocs.non_argmax_invariant
    (found,) = [each.serving for each in processors if hasattr(each, "serving")]
    return found


def scheduler(llm: LLM) -> Any:
    """The scheduler of an engine in this process."""
    return llm.llm_engine.engine_core.engine_core.scheduler
