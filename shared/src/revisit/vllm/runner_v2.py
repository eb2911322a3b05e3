"""What vLLM's Model Runner V2 holds (vllm/v1/worker/gpu/model_runner.py)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from revisit.vllm.span import Span


class RunnerV2:
    """Reads a `GPUModelRunner`, or a class derived from it. Nothing here waits for a GPU."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.batch: Any = None  # vLLM's `InputBatch` of the pass

    def processors(self) -> list[Any]:
        """The logits processors that the runner calls."""
        return list(self.runner.sampler.logits_processors)

    def ran(self) -> None:
        """A pass has run and nothing was sampled yet: what follows is about this pass."""
        self.batch = self.runner.execute_model_state.input_batch

    def hidden_states(self) -> tuple[Tensor, list[Tensor]]:
        """(tokens, d) after the final norm, and those of the inner layers; until it samples."""
        state = self.runner.execute_model_state
        return state.hidden_states, state.aux_hidden_states or []

    def spans(self) -> Iterator[Span]:
        """What the pass has computed, request by request."""
        batch = self.batch
        bounds = batch.query_start_loc_np.tolist()
        starts = batch.num_computed_tokens_np.tolist()
        for row, (request, start) in enumerate(zip(batch.req_ids, starts, strict=True)):
            yield Span(request, start, bounds[row], bounds[row + 1] - bounds[row])

    def unfinished(self) -> set[str]:
        """Requests of which the pass leaves tokens to read: what it samples is dropped."""
        batch = self.batch
        if not batch.has_prefill:
            return set()
        left = batch.num_computed_tokens_np + batch.num_scheduled_tokens < batch.prefill_len_np
        return {request for request, drop in zip(batch.req_ids, left, strict=True) if drop}

    def rows(self, count: int, context: Any) -> list[str]:
        """The request of each of `count` rows of logits: several of one beside its draft tokens."""
        slots = context.idx_mapping_np.tolist()
        if len(slots) != count and getattr(self.runner, "adaptive_verification", None):
            slots = context.expanded_idx_mapping.tolist()  # the GPU alone knows how many
        elif len(slots) != count:
            counts = np.diff(self.batch.cu_num_logits_np).tolist()
            rows = dict(zip(self.batch.idx_mapping_np.tolist(), counts, strict=True))
            slots = [slot for slot in slots for _ in range(rows[slot])]
        names = self.runner.req_states.index_to_req_id
        return [names[slot] for slot in slots]
