"""The engines of `revisit-eval` beside Transformers: vLLM in this process, and a server elsewhere.

Both batch by themselves: they are given many tasks at once, as concurrent requests.
"""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from revisit.commands.engines import requests
from revisit.evaluation import EvaluationError

if TYPE_CHECKING:
    from revisit.evaluation.answering import Captioner

ENGINES = ("transformers", "vllm", "openai")
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
    requests.check(args, engine)
    if engine == "vllm":
        if args.process.world_size > 1 or args.device not in ("cpu", "cuda"):
            raise EvaluationError(
                "--engine vllm is one process, and takes the first GPUs that it sees: leave out "
                "--device and torchrun, and choose by CUDA_VISIBLE_DEVICES"
            )
        from revisit.commands.engines.vllm import VllmCaptioner

        return VllmCaptioner(args)
    if args.dtype != THE_SERVERS:
        raise EvaluationError("--dtype: the server has loaded its model already; leave it out")
    from revisit.commands.engines.openai import ServerCaptioner

    assert base_url is not None
    return ServerCaptioner(args, base_url)
