"""What a worker takes is there when vLLM profiles, is what was said, and nothing comes on top."""

import logging

import pytest
import torch

import engines
from revisit import ReVisiTConfig
from revisit.core.columns import Columns
from revisit.vllm.memory import Arena, reserve
from tiny_models import QUESTIONS, VOCABULARY, mixed

CONFIG = ReVisiTConfig(alpha=1e-3)


def worker(llm):
    return llm.llm_engine.model_executor.driver_worker.worker


def test_memory_is_counted_before_profiling_and_is_enough(started, references, monkeypatch):
    llm = started("qwen", "all", revisit={"cache_bytes": 2**22}, max_num_seqs=8)
    serving = engines.serving(llm)
    cache, arena = serving.cache, serving.arena
    assert arena.table.nbytes == cache.size == 2**21
    assert serving.bytes == 2**22 + 8 * 8 * VOCABULARY
    assert reserve(70, torch.device("meta")).nbytes == 70
    assert serving.reserved is reserve(70, torch.device("cpu")) is None
    left, keep = [], Columns.keep
    monkeypatch.setattr(Columns, "keep", lambda *given: left.append(cache.left) or keep(*given))
    asked = mixed("all")
    assert engines.generate(llm, asked) == references["qwen"].all(asked)
    assert 0 <= min(left) < 2**21
    llm.llm_engine.step()
    assert arena.free == [range(2**19)] and cache.left == 2**21


def test_an_engine_has_a_gibibyte_where_nobody_says_otherwise(started):
    serving = engines.serving(started("qwen", "last"))
    assert serving.arena.table.nbytes == 2**29
    assert serving.cache.size == 2**29


def test_the_kv_cache_of_a_cpu_gets_so_much_less(started, monkeypatch):
    llm = started("qwen", "last")
    mine, serving = worker(llm), engines.serving(llm)
    monkeypatch.setattr(mine.cache_config, "kv_cache_memory_bytes", None)
    monkeypatch.setattr(mine, "requested_cpu_memory", 2**33)
    whole = type(mine).determine_available_memory(mine)
    left = mine.determine_available_memory()
    assert whole - left == pytest.approx(serving.bytes, abs=2**22)  # another look at the process
    monkeypatch.setattr(mine, "requested_cpu_memory", 2**33 - whole + 2**29)
    with pytest.raises(ValueError, match=r"ReVisiT needs 1\.00 GiB.* 0\.50 GiB are left: raise it"):
        mine.determine_available_memory()
    monkeypatch.setattr(mine.cache_config, "kv_cache_memory_bytes", 12345)
    assert mine.determine_available_memory() == 12345


def test_profiling_sees_a_step_in_which_every_token_is_plausible(started, monkeypatch):
    llm = started("qwen", "last", max_num_seqs=5)  # its own: profiling forgets images
    serving, runner = engines.serving(llm), worker(llm).model_runner
    seen, keep = [], Columns.keep
    monkeypatch.setattr(
        Columns, "keep", lambda one, each: seen.append(len(each)) or keep(one, each)
    )
    runner.profile_run()
    assert seen == [VOCABULARY]
    assert serving.cache.left == serving.cache.size


def test_vision_states_that_find_no_room_lie_in_the_hosts_memory(started, references, caplog):
    """A prompt has 64 vision tokens, or with two images 128, of 5 * 64 numbers: two find room."""
    llm = started("qwen", "all", revisit={"cache_bytes": 400_000})
    asked = [(question, CONFIG) for question in QUESTIONS]
    with caplog.at_level(logging.WARNING, "vllm.revisit"):
        assert engines.generate(llm, asked) == references["qwen"].all(
            [(question, ReVisiTConfig(layers="all", alpha=1e-3)) for question in QUESTIONS]
        )
    assert [each.message for each in caplog.records if "find no room" in each.message]
    llm.llm_engine.step()
    assert engines.serving(llm).arena.free == [range(50_000)]


def test_an_arena_gives_the_first_run_that_is_long_enough_and_takes_it_back():
    arena = Arena(100 * 4, torch.float32, torch.device("cpu"))
    first, second, third = (arena.take(2, 3, 5) for _ in range(3))
    assert arena.free == [range(90, 100)]
    for number, one in enumerate((first, second, third)):
        one.fill_(number)
    assert [float(one.sum()) for one in (first, second, third)] == [0, 30, 60]
    arena.give(second)
    assert arena.free == [range(30, 60), range(90, 100)]
    assert arena.take(1, 4, 5).data_ptr() == second.data_ptr()
    elsewhere = arena.take(11)
    assert not arena.table.data_ptr() <= elsewhere.data_ptr() < arena.table.data_ptr() + 400
    arena.give(elsewhere)
    assert arena.free == [range(50, 60), range(90, 100)]
    arena.give(arena.take(10))
    arena.give(first.flatten(0, 1))
    assert arena.free == [range(30), range(50, 60), range(90, 100)]
