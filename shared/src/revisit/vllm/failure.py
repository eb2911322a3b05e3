"""A request that lost a step of ReVisiT fails, and nobody else's: from the worker to the client.

worker      `agreed`: the ranks decide together; `marked`: what they decided goes with the output
scheduler   `finish`: ends those requests with vLLM's finish reason "error", which it counts
front end   `as_error`: who waits for the answer gets an error, over HTTP with status 500
"""

from collections.abc import Mapping
from copy import copy
from http import HTTPStatus
from typing import Any

import torch
from torch import Tensor

from revisit.core.step import FAULTS

# The requests of some rows, and a fault (rows,) int32 of each.
Faults = list[tuple[list[str], Tensor]]

_MARK = "revisit_lost"
_PREFIX = "ReVisiT failed in a worker, and this request was not decoded plainly instead: "


def agreed(lost: Mapping[str, str]) -> Mapping[str, str]:
    """Requests that lost a step on any rank of tensor parallelism, and why.

    A collective: all ranks must ask at the same step. It waits for their processes, for no GPU.
    """
    from vllm.distributed import get_tp_group

    group = get_tp_group()
    if group.world_size == 1:
        return lost
    some = torch.tensor(bool(lost), dtype=torch.int32)
    torch.distributed.all_reduce(some, group=group.cpu_group)
    if not some:
        return {}
    every: list[Any] = [None] * group.world_size
    torch.distributed.all_gather_object(every, dict(lost), group=group.cpu_group)
    return {request: why for each in every for request, why in each.items()}


def marked(output: Any, lost: Mapping[str, str], faults: Faults) -> Any:
    """What a model runner returns, with the requests that lost a step.

    Args:
        lost: known now.
        faults: of the rows of this step, 0 or a key of `core.step.FAULTS`. They may be on their way
            to the host, where they are once the tokens of this step are.
    """
    from vllm.v1.outputs import AsyncModelRunnerOutput

    if not (lost or faults) or output is None:
        return output
    if isinstance(output, AsyncModelRunnerOutput):
        original = output.get_output
        output.get_output = lambda: marked(original(), lost, faults)
        return output
    bad = {
        request: FAULTS[fault]
        for requests, of_rows in faults
        for request, fault in zip(requests, of_rows.tolist(), strict=True)
        if fault
    }
    if bad or lost:
        output = copy(output)  # vLLM shares the empty one
        setattr(output, _MARK, {**bad, **lost})
    return output


def finish(scheduler: Any, output: Any) -> list[tuple[int, Any]]:
    """End the requests that lost a step: for each the index of its client, and its output."""
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.request import RequestStatus

    lost = getattr(output, _MARK, None)
    if not lost:
        return []
    ended = scheduler.finish_requests(list(lost), RequestStatus.FINISHED_ERROR)
    return [
        (
            request.client_index,
            EngineCoreOutput(
                request_id=request.request_id,
                new_token_ids=[],
                finish_reason=request.get_finished_reason(),
                stop_reason=_PREFIX + lost[request.request_id],
                events=request.take_events(),
                trace_headers=request.trace_headers,
            ),
        )
        for request in ended
    ]


def as_error(output: Any) -> Exception | None:
    """The error to raise in place of a request's output; None where it did not fail by ReVisiT."""
    from vllm.exceptions import GracefulHTTPError

    for each in getattr(output, "outputs", ()):
        reason = getattr(each, "stop_reason", None)
        if isinstance(reason, str) and reason.startswith(_PREFIX):
            error: Exception = GracefulHTTPError(reason, HTTPStatus.INTERNAL_SERVER_ERROR)
            return error
    return None
