"""The engines of `revisit-eval` beside Transformers: vLLM in this process, and a server elsewhere.

Both batch by themselves: they are given many tasks at once, as concurrent requests.
"""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from revisit.evaluation import EvaluationError

if TYPE_CHECKING:
    from revisit.evaluation.answering import Captioner

ENGINES = ("transformers", "vllm", "openai")
SERVED = ("greedy", "revisit")
"""The decoders of vLLM, here and behind a server."""

AT_ONCE = 256
"""Tasks that an engine is given at a time; a run that is cut short has lost as many at most."""

WHOLE = ("stop", "length")
"""The finish reasons of an answer; by any other it was cut off."""

THE_SERVERS = "the server's"
"""The dtype of a model behind a server."""


def add_flags(parser: ArgumentParser) -> None:
    """`--engine` and `--base_url`."""
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="transformers",
        help="what runs the model: Transformers, vLLM in this process, or a server that speaks "
        "OpenAI's protocol, such as vllm serve, where --model is the name of the served model "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--base_url", help="of the server, as http://localhost:8000/v1; for --engine openai"
    )


def load(args: Namespace, engine: str, base_url: str | None) -> "Captioner":
    """The captioner of an engine other than Transformers.

    Raises:
        EvaluationError: the engine cannot do what the settled flags ask for.
        OSError, ValueError: see `revisit.evaluation.answering.Load`.
    """
    check(args, engine)
    if engine == "vllm":
        if args.process.world_size > 1 or args.device not in ("cpu", "cuda"):
            raise EvaluationError(
                "--engine vllm is one process, and takes the first GPUs that it sees: leave out "
                "--device and torchrun, and choose by CUDA_VISIBLE_DEVICES"
            )
        from revisit.commands.engine_vllm import VllmCaptioner

        return VllmCaptioner(args)
    if args.dtype != THE_SERVERS:
        raise EvaluationError("--dtype: the server has loaded its model already; leave it out")
    from revisit.commands.engine_openai import ServerCaptioner

    assert base_url is not None
    return ServerCaptioner(args, base_url)


def check(args: Namespace, engine: str) -> None:
    """Raises `EvaluationError` where an engine cannot decode as the settled flags say."""
    if args.decoder not in SERVED:
        raise EvaluationError(
            f"--engine {engine} has the decoders {' and '.join(SERVED)}: {args.decoder} needs "
            "passes or hidden states that vLLM does not give; use --engine transformers"
        )
    if args.num_beams > 1:
        raise EvaluationError(
            f"--num_beams {args.num_beams}: --engine {engine} has no beam search, since vLLM's "
            "chooses tokens without logits processors; use --engine transformers"
        )


def sampling(args: Namespace) -> dict[str, Any]:
    """Sampling parameters, by the names that vLLM and its server have in common."""
    chosen: dict[str, Any] = {"max_tokens": args.max_new_tokens, "temperature": 0.0}
    if args.do_sample:
        chosen |= {name: getattr(args, name) for name in ("temperature", "top_p", "top_k")}
    if args.repetition_penalty is not None:
        chosen["repetition_penalty"] = args.repetition_penalty
    return chosen


def asked(args: Namespace, seed: int) -> dict[str, Any] | None:
    """What a request says under "revisit"; None for greedy decoding.

    Args:
        seed: the request's own, of `selection="random"`.
    """
    if args.decoder != "revisit":
        return None
    settings = {"alpha": args.relative_top, "divergence": args.revisit_divergence}
    return {**settings, "selection": args.revisit_selection, "seed": seed}
