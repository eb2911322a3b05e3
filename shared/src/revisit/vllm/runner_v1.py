"""What vLLM's first model runner holds (vllm/v1/worker/gpu_model_runner.py)."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from revisit.vllm.span import Span


class RunnerV1:
    """Reads a `GPUModelRunner`, or a class derived from it. Nothing here waits for a GPU."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner

    def processors(self) -> list[Any]:
        """The logits processors that the runner calls."""
        return list(self.runner.input_batch.logitsprocs.non_argmax_invariant)

    def ran(self) -> None:
        """A pass has run and nothing was sampled yet: what follows is about this pass."""

    def hidden_states(self) -> tuple[Tensor, list[Tensor]]:
        """(tokens, d) after the final norm, and those of the inner layers; until it samples."""
        state = self.runner.execute_model_state
        return state.hidden_states, state.aux_hidden_states or []

    def spans(self) -> Iterator[Span]:
        """What the pass has computed, request by request."""
        batch = self.runner.input_batch
        bounds = self.runner.query_start_loc.np[: batch.num_reqs + 1].tolist()
        starts = batch.num_computed_tokens_cpu[: batch.num_reqs].tolist()
        for row, (request, start) in enumerate(zip(batch.req_ids, starts, strict=True)):
            yield Span(request, start, bounds[row], bounds[row + 1] - bounds[row])

    def unfinished(self) -> set[str]:
        """Requests of which the pass leaves tokens to read: what it samples is dropped."""
        batch = self.runner.input_batch
        mask = self.runner.discard_request_mask.np[: batch.num_reqs]
        if not mask.any():
            return set()
        return {request for request, drop in zip(batch.req_ids, mask, strict=True) if drop}

    def rows(self, count: int, context: Any) -> list[str]:
        """The request of each of `count` rows of logits."""
        return list(self.runner.input_batch.req_ids)  # vLLM changes its list
