"""Enable a decoder on the model that lmms-eval built, and check that its answers come from it.

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

_REASONS = {
    "runs in vLLM, not in this process (ReVisiT in vLLM: docs/vllm.md)": """
        vllm vllm_generate whisper_vllm aero_realtime_vllm longvila""",
    "runs in SGLang, not in this process": "sglang llava_sglang srt_api",
    "asks a service, and holds no model in this process": """
        openai async_openai litellm gemini claude reka gpt4v batch_gpt4 gpt4o_audio qwen_vl_api""",
    "holds no model in this process": "generation_api from_log dummy",
    "holds a model in each of its workers (--model huggingface holds one)": """
        async_hf_model nanovlm""",
    "generates by its own code, which hands embeddings to language_model.generate, where they do "
    "not show which tokens are the image's; --model internvl_hf has InternVL in the format of "
    "Transformers": "internvl internvl2 internvl3 internvl3_5",
}
REFUSED = {name: reason for reason, names in _REASONS.items() for name in names.split()}
"""Models of lmms-eval, by id, that are refused before they are built, and why."""

_GENERATING = ("generate_until", "generate_until_multi_round", "generate_visual_cot")


@dataclass
class Calls:
    """How often the model's `generate` was called and failed, and its last error."""

    all: int = 0
    failed: int = 0
    error: Exception | None = None


def refuse_model(model_id: str) -> None:
    """Refuse models that no decoder can join.

    Raises:
        ValueError: it is one of them; the message says why, and what to take instead.
    """
    if model_id in REFUSED:
        raise ValueError(
            f"--model {model_id} {REFUSED[model_id]}. A decoder joins models that call "
            "Transformers' `generate` here; decoder=greedy runs this one as lmms-eval does"
        )


def join(lm: Any, config: DecoderConfig) -> None:
    """Enable the decoder on the model of `lm`, and refuse answers that are not the decoder's.

    Args:
        lm: a model of lmms-eval, as it was built.
        config: as `revisit.enable` takes it.

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
    calls = _counted(model)
    for method in _GENERATING:
        setattr(lm, method, _checked(getattr(lm, method), calls, name))
    lm.loglikelihood = _no_likelihood


def _counted(model: Any) -> Calls:
    """Count the calls of `model.generate` from now on."""
    model = getattr(model, "_orig_mod", model)  # of a torch.compile'd one
    calls, decode = Calls(), model.generate

    @functools.wraps(decode)
    def generate(*args: Any, **kwargs: Any) -> Any:
        calls.all += 1
        try:
            return decode(*args, **kwargs)
        except Exception as error:
            calls.failed += 1
            calls.error = error
            raise

    model.generate = generate
    return calls


def _checked(
    answer: Callable[[Sequence[Any]], Any], calls: Calls, name: str
) -> Callable[[Sequence[Any]], Any]:
    """`answer`, a method of lmms-eval's model from requests to answers; it raises ValueError where
    these are not the decoder's."""

    @functools.wraps(answer)
    def checked(requests: Sequence[Any]) -> Any:
        before, failed_before = calls.all, calls.failed
        answers = answer(requests)
        if calls.failed > failed_before:
            raise ValueError(
                f"{calls.failed - failed_before} of {calls.all - before} calls of generate failed, "
                f"and {name} of lmms-eval went on without their answers: {calls.error}"
            ) from calls.error
        if requests and calls.all == before:
            raise ValueError(
                f"{name} of lmms-eval answered without calling its model's generate, so that the "
                "answers are of plain decoding; run it with decoder=greedy"
            )
        return answers

    return checked


def _no_likelihood(requests: Sequence[Any]) -> Any:
    raise ValueError(
        "the task asks how probable some answers are (loglikelihood), where nothing is decoded; "
        "run it with decoder=greedy"
    )
