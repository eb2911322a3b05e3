"""Which requests wait: one with ReVisiT begins where its vision states find room beside others'.

The scheduler asks for blocks of the KV cache before it lets a request begin; here that is refused
while `cache_bytes` has no room. So no request ends by others' use of memory, and none is slowed.
"""

import logging
from functools import wraps
from typing import Any

from revisit.vllm.admission import asks, engine_settings, vision_tokens
from revisit.vllm.memory import prompt_bytes

log = logging.getLogger("vllm.revisit")


def hold_back(scheduler: Any) -> None:
    """Let a scheduler of vLLM count the memory of requests with ReVisiT."""
    from vllm.v1.request import RequestStatus

    config, manager = scheduler.vllm_config, scheduler.kv_cache_manager
    settings, allocate = engine_settings(config), manager.allocate_slots
    warned = False

    def takes(request: Any) -> int:
        params = request.sampling_params
        return prompt_bytes(vision_tokens(params), config, settings) if asks(params) else 0

    def has_room(request: Any) -> bool:
        coming = takes(request) if request.status != RequestStatus.RUNNING else 0
        return not coming or coming + sum(map(takes, scheduler.running)) <= settings.cache_bytes

    @wraps(allocate)
    def allocate_slots(request: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal warned
        if has_room(request):
            return allocate(request, *args, **kwargs)
        if not warned:
            log.warning(
                "ReVisiT: requests wait until others leave room for their vision states in %d MiB: "
                "raise cache_bytes, or choose fewer layers",
                settings.cache_bytes >> 20,
            )
        warned = True
        return None  # as where the KV cache has no block

    manager.allocate_slots = allocate_slots
