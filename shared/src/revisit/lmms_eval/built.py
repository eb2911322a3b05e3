"""The decoder on the model that lmms-eval built, and a look at what its `generate` did.

Some models of lmms-eval catch what `generate` raises and go on with an empty answer, or generate by
another way than `model.generate`: both would give results that are not the decoder's.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

import revisit
from revisit.config import DecoderConfig

_VLLM = "runs in vLLM, not in this process (ReVisiT in vLLM: docs/vllm.md)"
_SGLANG = "runs in SGLang, not in this process"
_SERVICE = "asks a service, and holds no model in this process"
_WORKERS = "holds a model in each of its workers (--model huggingface holds one)"
_EMBEDDINGS = (
    "generates by code of its own, which hands embeddings to language_model.generate, where they "
    "do not tell the image's tokens; --model internvl_hf has InternVL in Transformers' format"
)
ELSEWHERE = {
    **dict.fromkeys(
        ("vllm", "vllm_generate", "whisper_vllm", "aero_realtime_vllm", "longvila"), _VLLM
    ),
    **dict.fromkeys(("sglang", "llava_sglang", "srt_api"), _SGLANG),
    **dict.fromkeys(("openai", "async_openai", "litellm", "gemini", "claude", "reka"), _SERVICE),
    **dict.fromkeys(("gpt4v", "batch_gpt4", "gpt4o_audio", "qwen_vl_api"), _SERVICE),
    **dict.fromkeys(("generation_api", "from_log", "dummy"), "holds no model in this process"),
    **dict.fromkeys(("async_hf_model", "nanovlm"), _WORKERS),
    **dict.fromkeys(("internvl", "internvl2", "internvl3", "internvl3_5"), _EMBEDDINGS),
}
"""Models of lmms-eval, by id, that are refused before they are built, and why."""

_GENERATING = ("generate_until", "generate_until_multi_round", "generate_visual_cot")


@dataclass
class Watch:
    """What the model's `generate` did."""

    calls: int = 0
    failed: int = 0
    error: Exception | None = None


def refuse_elsewhere(model_id: str) -> None:
    """Refuse models that no decoder can join.

    Raises:
        ValueError: it is one of them; the message says why, and what to take instead.
    """
    if model_id in ELSEWHERE:
        raise ValueError(
            f"--model {model_id} {ELSEWHERE[model_id]}. A decoder joins models that call "
            "Transformers' `generate` here; decoder=greedy runs this one as lmms-eval does"
        )


def join(lm: Any, config: DecoderConfig) -> None:
    """Enable the decoder on the model of `lm`, and refuse its answers where they are not its own.

    Args:
        lm: a model of lmms-eval, as it was built.
        config: what `revisit.enable` takes.

    Raises:
        ValueError: it holds no model of Transformers, or one that cannot decode so. Later, from
            its methods: an answer is not the decoder's.
    """
    name = type(lm).__name__
    model = getattr(lm, "model", None)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"{name} of lmms-eval holds no model of Transformers as its `model`, but "
            f"{type(model).__name__}: no decoder can join it; decoder=greedy runs it as it is"
        )
    try:
        revisit.enable(model, config)
    except ValueError as error:
        raise ValueError(f"{name} of lmms-eval: {error}") from error
    watch = _watched(model)
    for method in _GENERATING:
        setattr(lm, method, _checked(getattr(lm, method), watch, name))
    lm.loglikelihood = _no_likelihood


def _watched(model: Any) -> Watch:
    """Count the calls of `model.generate`, and what it raises."""
    model = getattr(model, "_orig_mod", model)  # of a torch.compile'd one
    watch, decode = Watch(), model.generate

    @functools.wraps(decode)
    def generate(*args: Any, **kwargs: Any) -> Any:
        watch.calls += 1
        try:
            return decode(*args, **kwargs)
        except Exception as error:
            watch.failed += 1
            watch.error = error
            raise

    model.generate = generate
    return watch


def _checked(
    answer: Callable[[Sequence[Any]], Any], watch: Watch, name: str
) -> Callable[[Sequence[Any]], Any]:
    """`answer`, a method of lmms-eval's model that is given requests, or an error if what it
    returns is not the decoder's."""

    @functools.wraps(answer)
    def checked(requests: Sequence[Any]) -> Any:
        calls, failed = watch.calls, watch.failed
        answers = answer(requests)
        if watch.failed > failed:
            raise ValueError(
                f"{watch.failed - failed} of {watch.calls - calls} calls of generate failed, and "
                f"{name} of lmms-eval went on without their answers: {watch.error}"
            ) from watch.error
        if requests and watch.calls == calls:
            raise ValueError(
                f"{name} of lmms-eval answered without calling its model's generate, so that the "
                "answers are those of plain decoding; decoder=greedy says so"
            )
        return answers

    return checked


def _no_likelihood(requests: Sequence[Any]) -> Any:
    raise ValueError(
        "the task asks how probable given answers are (loglikelihood), where nothing is decoded; "
        "run it with decoder=greedy"
    )
