"""A request that lost a step of ReVisiT fails, and nobody else's: from the worker to the client.

worker      `failed_on_any_rank`: ranks decide together; `add_failures`: the output carries it
scheduler   `end_failed`: ends these requests with vLLM's finish reason "error", which it counts
front end   `as_error`: who waits for the answer gets an error, over HTTP with status 500
"""

from collections.abc import Mapping
from copy import copy
from http import HTTPStatus
from typing import Any

import torch
from torch import Tensor

from revisit.core.step import FAULTS

# The requests of some rows, and a fault (rows,) int32 of each: 0 or a key of `core.step.FAULTS`.
Faults = list[tuple[list[str], Tensor]]

_MARK = "revisit_failures"
_PREFIX = "ReVisiT failed in a worker, and this request was not decoded plainly instead: "


def failed_on_any_rank(failed: Mapping[str, str]) -> Mapping[str, str]:
    """Requests that lost a step on any rank of tensor parallelism, and why.

    A collective: all ranks must ask at the same step. It waits for their processes, for no GPU.
    """
    from vllm.distributed import get_tp_group

    group = get_tp_group()
    if group.world_size == 1:
        return failed
    some = torch.tensor(bool(failed), dtype=torch.int32)
    torch.distributed.all_reduce(some, group=group.cpu_group)
    if not some:
        return {}
    by_rank: list[Any] = [None] * group.world_size
    torch.distributed.all_gather_object(by_rank, dict(failed), group=group.cpu_group)
    return {request: why for of_rank in by_rank for request, why in of_rank.items()}


def add_failures(output: Any, failed: Mapping[str, str], faults: Faults) -> Any:
    """What a model runner returns, with the requests that lost a step.

    Args:
        failed: the requests that are known to have failed, and why.
        faults: of the rows of this step. They may be on their way to the host, where they are once
            the tokens of this step are.
    """
    from vllm.v1.outputs import AsyncModelRunnerOutput

    if not (failed or faults) or output is None:
        return output
    if isinstance(output, AsyncModelRunnerOutput):
        get_output = output.get_output
        output.get_output = lambda: add_failures(get_output(), failed, faults)
        return output
    failures = {
        request: FAULTS[fault]
        for requests, fault_of_row in faults
        for request, fault in zip(requests, fault_of_row.tolist(), strict=True)
        if fault
    }
    failures |= failed
    if failures:
        output = copy(output)  # vLLM shares the empty one
        setattr(output, _MARK, failures)
    return output


def end_failed(scheduler: Any, output: Any) -> list[tuple[int, Any]]:
    """End the requests that lost a step: for each the index of its client, and its output."""
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.request import RequestStatus

    failures = getattr(output, _MARK, None)
    if not failures:
        return []
    ended = scheduler.finish_requests(list(failures), RequestStatus.FINISHED_ERROR)
    return [
        (
            request.client_index,
            EngineCoreOutput(
                request_id=request.request_id,
                new_token_ids=[],
                finish_reason=request.get_finished_reason(),
                stop_reason=_PREFIX + failures[request.request_id],
                events=request.take_events(),
                trace_headers=request.trace_headers,
            ),
        )
        for request in ended
    ]


def as_error(output: Any) -> Exception | None:
    """The error to raise in place of a request's output; None where it did not fail by ReVisiT."""
    from vllm.exceptions import GracefulHTTPError

    for completion in getattr(output, "outputs", ()):
        reason = getattr(completion, "stop_reason", None)
        if isinstance(reason, str) and reason.startswith(_PREFIX):
            error: Exception = GracefulHTTPError(reason, HTTPStatus.INTERNAL_SERVER_ERROR)
            return error
    return None
