"""What an engine that takes requests is asked: vLLM in this process, or a server elsewhere.

Both batch by themselves: they are given many tasks at once, as concurrent requests.
"""

from argparse import Namespace
from typing import Any

from revisit.evaluation import EvaluationError

SERVED = ("greedy", "revisit")
"""The decoders of vLLM, here and behind a server."""

AT_ONCE = 256
"""Tasks that an engine is given at a time; a run that is cut short has lost as many at most."""

WHOLE = ("stop", "length")
"""The finish reasons of an answer; by any other it was cut off."""


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
