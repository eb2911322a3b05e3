"""What a worker takes is there when vLLM profiles, and requests wait for it or are refused."""

import logging
from types import SimpleNamespace

import psutil
import pytest
from vllm import SamplingParams
from vllm.v1.request import RequestStatus

import vllm_engines as engines
from revisit.core.columns import Columns
from revisit.vllm.scheduling import wait_for_memory
from vllm_models import VOCABULARY, mixed

# A prompt of one image has 64 vision tokens, of two 128; with "all" a token has 3 states, and each
# takes 512 bytes with its columns: 98,304 bytes an image.
IMAGE = 98_304


def worker(llm):
    return llm.llm_engine.model_executor.driver_worker.worker


@pytest.fixture
def small(started):
    """An engine with room for two images and a half: requests wait, and columns find no room."""
    return started("qwen", "all", revisit={"cache_bytes": 5 * IMAGE // 2})


def test_requests_wait_for_room_and_no_one_takes_more(small, references, monkeypatch, caplog):
    steps = engines.serving(small).steps
    assert steps.bytes == 5 * IMAGE // 2 + 8 * 8 * VOCABULARY
    size, most = steps.cache.size, []
    open_prompt, keep, opened = steps.open, Columns.keep, []
    monkeypatch.setattr(steps, "open", lambda *args: opened.append(1) or open_prompt(*args))
    running = engines.scheduler(small).running

    def watched(*args):
        most.append(len(running))
        assert 0 <= steps.cache.left <= size
        return keep(*args)

    monkeypatch.setattr(Columns, "keep", watched)
    asked = mixed("all")
    with caplog.at_level(logging.WARNING, "vllm.revisit"):
        assert engines.generate(small, asked) == references["qwen"].all(asked)
    assert sum("requests wait" in each.message for each in caplog.records) == 1
    assert len(opened) == sum(config is not None for _, config in asked)
    assert 1 < max(most) < 8  # plain requests beside two others
    small.llm_engine.step()
    assert steps.cache.left == size


class Manager:
    """Has blocks for everybody."""

    def allocate_slots(self, request):
        return "blocks"


def test_running_requests_get_blocks_and_waiting_ones_where_others_leave_room():
    settings = {"cache_bytes": 5 * IMAGE // 2}
    scheduler = SimpleNamespace(
        vllm_config=SimpleNamespace(additional_config={"revisit": settings}),
        kv_cache_manager=Manager(),
        running=[],
    )
    wait_for_memory(scheduler)

    def allocate(images, status):
        extra = {"revisit": {"prompt_bytes": images * IMAGE}} if images else {}
        request = SimpleNamespace(sampling_params=SamplingParams(extra_args=extra), status=status)
        blocks = scheduler.kv_cache_manager.allocate_slots(request)
        if blocks and status != RequestStatus.RUNNING:
            scheduler.running.append(request)
        return blocks is not None

    assert allocate(1, RequestStatus.WAITING)
    assert not allocate(2, RequestStatus.WAITING)
    assert allocate(0, RequestStatus.WAITING)
    assert allocate(1, RequestStatus.PREEMPTED)
    assert not allocate(1, RequestStatus.PREEMPTED)
    assert allocate(1, RequestStatus.RUNNING)
    del scheduler.running[0]
    assert allocate(1, RequestStatus.WAITING)


def test_the_kv_cache_of_a_cpu_gets_so_much_less(started, monkeypatch):
    llm = started("qwen", "last")
    cpu_worker, steps = worker(llm), engines.serving(llm).steps
    assert steps.bytes == 2**30 + 8 * 8 * VOCABULARY  # a gibibyte where no setting names more
    monkeypatch.setattr(cpu_worker.cache_config, "kv_cache_memory_bytes", None)
    resident = psutil.Process().memory_info().rss
    # No more than the machine has free, whatever else runs.
    monkeypatch.setattr(cpu_worker, "requested_cpu_memory", resident + 2**31)
    whole = type(cpu_worker).determine_available_memory(cpu_worker)
    left = cpu_worker.determine_available_memory()
    assert whole - left == pytest.approx(steps.bytes, abs=2**22)  # another look at the process
    monkeypatch.setattr(cpu_worker, "requested_cpu_memory", resident + 2**29)
    with pytest.raises(ValueError, match=r"ReVisiT needs 1\.00 GiB.* 0\.50 GiB are left: raise it"):
        cpu_worker.determine_available_memory()
    monkeypatch.setattr(cpu_worker.cache_config, "kv_cache_memory_bytes", 12345)
    assert cpu_worker.determine_available_memory() == 12345


def test_profiling_sees_a_step_in_which_every_token_is_plausible(small, monkeypatch):
    seen, keep = [], Columns.keep
    monkeypatch.setattr(
        Columns, "keep", lambda one, each: seen.append(len(each)) or keep(one, each)
    )
    worker(small).model_runner.profile_run()
    assert seen == [VOCABULARY]
