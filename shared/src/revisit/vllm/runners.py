"""What is read of vLLM's two model runners around a pass. Nothing here waits for a GPU."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor


class Chunk(NamedTuple):
    """The tokens of one request that a pass computes."""

    request: str
    start: int  # position of the first one in the request
    row: int  # of the first one in the hidden states of the pass
    length: int


class RunnerV1:
    """Reads `GPUModelRunner` of vllm/v1/worker/gpu_model_runner.py, or a class derived from it."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner

    def processors(self) -> list[Any]:
        """The logits processors that the runner calls."""
        return list(self.runner.input_batch.logitsprocs.non_argmax_invariant)

    def after_pass(self) -> None:
        """A pass has run and nothing was sampled yet: what follows is about this pass."""

    def hidden_states(self) -> tuple[Tensor, list[Tensor]]:
        """(tokens, d) after the final norm, and those of the inner layers; until it samples."""
        state = self.runner.execute_model_state
        return state.hidden_states, state.aux_hidden_states or []

    def chunks(self) -> Iterator[Chunk]:
        """What the pass has computed, request by request."""
        batch = self.runner.input_batch
        rows = self.runner.query_start_loc.np[: batch.num_reqs + 1]
        return _chunks(batch.req_ids, batch.num_computed_tokens_cpu[: batch.num_reqs], rows)

    def unfinished(self) -> set[str]:
        """Requests of which the pass leaves prompt tokens: what it samples for them is dropped."""
        batch = self.runner.input_batch
        return _selected(batch.req_ids, self.runner.discard_request_mask.np[: batch.num_reqs])

    def requests(self, rows: int, context: Any) -> list[str]:
        """The request of each row of logits."""
        return list(self.runner.input_batch.req_ids)  # vLLM changes its list


class RunnerV2(RunnerV1):
    """Reads `GPUModelRunner` of vllm/v1/worker/gpu/model_runner.py (Model Runner V2)."""

    batch: Any = None  # vLLM's `InputBatch` of the pass

    def processors(self) -> list[Any]:
        return list(self.runner.sampler.logits_processors)

    def after_pass(self) -> None:
        self.batch = self.runner.execute_model_state.input_batch

    def chunks(self) -> Iterator[Chunk]:
        batch = self.batch
        return _chunks(batch.req_ids, batch.num_computed_tokens_np, batch.query_start_loc_np)

    def unfinished(self) -> set[str]:
        batch = self.batch
        if not batch.has_prefill:
            return set()
        computed = batch.num_computed_tokens_np + batch.num_scheduled_tokens
        return _selected(batch.req_ids, computed < batch.prefill_len_np)

    def requests(self, rows: int, context: Any) -> list[str]:
        """The request of each row of logits: one beside draft tokens has several rows."""
        slots = context.idx_mapping_np.tolist()
        if len(slots) != rows and getattr(self.runner, "adaptive_verification", None):
            slots = context.expanded_idx_mapping.tolist()  # the GPU alone knows how many
        elif len(slots) != rows:
            counts = np.diff(self.batch.cu_num_logits_np).tolist()
            rows_of = dict(zip(self.batch.idx_mapping_np.tolist(), counts, strict=True))
            slots = [slot for slot in slots for _ in range(rows_of[slot])]
        names = self.runner.req_states.index_to_req_id
        return [names[slot] for slot in slots]


def _chunks(requests: Sequence[str], starts: Any, rows: Any) -> Iterator[Chunk]:
    """`starts` (requests,) are positions; `rows`, padded, the first row of each request."""
    rows = rows[: len(requests) + 1]
    lengths, first_rows = np.diff(rows).tolist(), rows[:-1].tolist()
    each = zip(requests, starts.tolist(), first_rows, lengths, strict=True)
    return (Chunk(*chunk) for chunk in each)


def _selected(requests: Sequence[str], mask: Any) -> set[str]:
    if not mask.any():
        return set()
    return {request for request, selected in zip(requests, mask, strict=True) if selected}
