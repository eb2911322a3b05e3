"""What vLLM's Model Runner V2 tells (vllm/v1/worker/gpu/model_runner.py)."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from revisit.vllm.runner import Span


class RunnerV2:
    """The face of a `GPUModelRunner`, or of what is derived from it."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner

    def processors(self) -> list[Any]:
        """The logits processors that the runner calls."""
        return list(self.runner.sampler.logits_processors)

    def hidden_states(self) -> tuple[Tensor, list[Tensor]]:
        """Of the pass that ran: (tokens, d) after the final norm, and those of the inner layers."""
        state = self.runner.execute_model_state
        return state.hidden_states, state.aux_hidden_states or []

    def spans(self) -> Iterator[Span]:
        """What the pass that ran has computed, request by request."""
        batch = self.runner.execute_model_state.input_batch
        bounds = batch.query_start_loc_np.tolist()
        starts = batch.num_computed_tokens_np.tolist()
        for row, (request, start) in enumerate(zip(batch.req_ids, starts, strict=True)):
            yield Span(request, start, bounds[row], bounds[row + 1] - bounds[row])

    def unfinished(self) -> set[str]:
        """Requests of which the pass that ran leaves tokens to read: what it samples is dropped."""
        batch = self.runner.execute_model_state.input_batch
        if not batch.has_prefill:
            return set()
        left = batch.num_computed_tokens_np + batch.num_scheduled_tokens < batch.prefill_len_np
        return {request for request, drop in zip(batch.req_ids, left, strict=True) if drop}

    def rows(self, count: int, context: Any) -> list[str]:
        """The request of each of `count` rows of logits: several of one beside its draft tokens."""
        slots = context.idx_mapping_np
        if len(slots) != count:
            slots = context.expanded_idx_mapping
        names = self.runner.req_states.index_to_req_id
        return [names[slot] for slot in slots.tolist()]
