"""What a model runner of vLLM tells of the pass that it ran, whichever of the two it is."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Span(NamedTuple):
    """Tokens of one request in a pass: they are computed side by side with other requests'."""

    request: str
    start: int  # the first one's place in the request
    begin: int  # its row in the hidden states of the pass
    length: int


class Runner(Protocol):
    """One of `RunnerV1` and `RunnerV2`; all but `rows` is asked between pass and sampling."""

    runner: Any

    def processors(self) -> list[Any]:
        """The logits processors that the runner calls."""

    def hidden_states(self) -> tuple[Tensor, list[Tensor]]:
        """Of the pass that ran: (tokens, d) after the final norm, and those of the inner layers."""

    def spans(self) -> Iterator[Span]:
        """What the pass that ran has computed, request by request."""

    def unfinished(self) -> set[str]:
        """Requests of which the pass that ran leaves tokens to read: what it samples is dropped."""

    def rows(self, count: int, context: Any) -> list[str]:
        """The request of each of `count` rows of logits."""


def face(runner: Any, v2: bool) -> Runner:
    """The face of vLLM's model runner."""
    if v2:
        from revisit.vllm.runner_v2 import RunnerV2

        return RunnerV2(runner)
    from revisit.vllm.runner_v1 import RunnerV1

    return RunnerV1(runner)
