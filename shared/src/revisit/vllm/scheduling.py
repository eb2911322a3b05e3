"""In vLLM's scheduler: a request with ReVisiT waits until `cache_bytes` has room beside others'.

The scheduler asks for blocks of the KV cache before it lets a request begin; here that is refused
while there is no room. So no request fails by others' use of memory, and none is slowed.
"""

import logging
from functools import wraps
from typing import Any

from revisit.vllm.admission import admitted_bytes, engine_settings

log = logging.getLogger("vllm.revisit")


def wait_for_memory(scheduler: Any) -> None:
    """Let a scheduler of vLLM count the memory of requests with ReVisiT."""
    from vllm.v1.request import RequestStatus

    manager, allocate = scheduler.kv_cache_manager, scheduler.kv_cache_manager.allocate_slots
    cache_bytes = engine_settings(scheduler.vllm_config).cache_bytes
    warned = False

    def has_room(request: Any) -> bool:
        running = request.status == RequestStatus.RUNNING
        if running or not (needed := admitted_bytes(request.sampling_params)):
            return True
        taken = sum(admitted_bytes(other.sampling_params) for other in scheduler.running)
        return bool(needed + taken <= cache_bytes)

    @wraps(allocate)
    def allocate_slots(request: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal warned
        if has_room(request):
            return allocate(request, *args, **kwargs)
        if not warned:
            log.warning(
                "ReVisiT: requests wait until others leave room for their vision states in %d MiB: "
                "raise cache_bytes, or choose fewer layers",
                cache_bytes >> 20,
            )
        warned = True
        return None  # as where the KV cache has no block

    manager.allocate_slots = allocate_slots
