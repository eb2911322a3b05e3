"""Requests to vLLM in this process or to a server, which batch them by themselves."""

import base64
import io
import os
from typing import Any

from PIL import Image

from revisit.config import ReVisiTConfig
from revisit.evaluation import EvaluationError
from revisit.evaluation.run import Run, decoder_name

SERVED = ("greedy", "revisit")
"""The decoders of vLLM, here and behind a server."""

AT_ONCE = 256
"""Tasks in flight at a time; a run that is cut short has lost as many at most."""

WHOLE = ("stop", "length")
"""The finish reasons of an answer; by any other it was cut off."""


def connect(base_url: str, **options: Any) -> Any:
    """A client of the server; `OPENAI_API_KEY` is sent where it is set.

    Raises ImportError where the package `openai` is not installed.
    """
    import openai

    key = os.environ.get("OPENAI_API_KEY") or "none"  # vLLM asks for none by default
    return openai.OpenAI(base_url=base_url, api_key=key, **options)


def png_url(image: Image.Image) -> str:
    """The image itself, without a loss."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def check(run: Run) -> None:
    """Raises `EvaluationError` where an engine that takes requests cannot decode as a run says."""
    engine, name = run.place.engine, decoder_name(run.decoder)
    if name not in SERVED:
        raise EvaluationError(
            f"--engine {engine} has the decoders {' and '.join(SERVED)}: {name} needs "
            "passes or hidden states that vLLM does not give; use --engine transformers"
        )
    if run.generation.num_beams > 1:
        raise EvaluationError(
            f"--num_beams {run.generation.num_beams}: --engine {engine} has no beam search, since "
            "vLLM's chooses tokens without logits processors; use --engine transformers"
        )


def sampling(run: Run) -> dict[str, Any]:
    """Sampling parameters, by the names that vLLM and its server have in common."""
    generation = run.generation
    parameters: dict[str, Any] = {"max_tokens": generation.max_new_tokens, "temperature": 0.0}
    if generation.do_sample:
        names = ("temperature", "top_p", "top_k")
        parameters |= {name: getattr(generation, name) for name in names}
    if generation.repetition_penalty is not None:
        parameters["repetition_penalty"] = generation.repetition_penalty
    return parameters


def settings(run: Run, seed: int) -> dict[str, Any] | None:
    """What a request says under "revisit"; None for greedy decoding.

    Args:
        seed: the request's, of `selection="random"`.
    """
    config = run.decoder
    if not isinstance(config, ReVisiTConfig):
        return None
    found: dict[str, Any] = {"alpha": float(config.alpha), "divergence": config.divergence}
    found |= {"selection": config.selection, "seed": seed}
    return {**found, "no_vision": "plain"} if run.benchmark.without_images else found
