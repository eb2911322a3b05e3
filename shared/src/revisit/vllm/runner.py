"""What ReVisiT reads of a pass, whichever of vLLM's two model runners runs it."""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor

from revisit.vllm.runner_v1 import RunnerV1
from revisit.vllm.runner_v2 import RunnerV2
from revisit.vllm.span import Span


class Runner(Protocol):
    """One of `RunnerV1` and `RunnerV2`. Nothing here waits for a GPU."""

    runner: Any

    def processors(self) -> list[Any]:
        """The logits processors that the runner calls."""

    def ran(self) -> None:
        """A pass has run and nothing was sampled yet: what follows is about this pass."""

    def hidden_states(self) -> tuple[Tensor, list[Tensor]]:
        """(tokens, d) after the final norm, and those of the inner layers; until it samples."""

    def spans(self) -> Iterator[Span]:
        """What the pass has computed, request by request."""

    def unfinished(self) -> set[str]:
        """Requests of which the pass leaves tokens to read: what it samples is dropped."""

    def rows(self, count: int, context: Any) -> list[str]:
        """The request of each of `count` rows of logits."""


def reader(runner: Any, v2: bool) -> Runner:
    """Reads vLLM's model runner."""
    return RunnerV2(runner) if v2 else RunnerV1(runner)
