"""Every sequence equals Transformers' with the package's own binding, however vLLM runs it."""

import os
import random
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

import engines
import revisit
from revisit import ReVisiTConfig
from revisit.core.step import step
from tiny_models import QUESTIONS, Question, mixed

FAMILIES = ("qwen", "llava")


def nothing_left(llm):
    """No request, and none of their columns."""
    llm.llm_engine.step()  # tells the worker which requests have ended
    serving = engines.serving(llm)
    assert not serving.prompts and not serving.reading
    assert serving.arena.free == [range(serving.arena.table.numel())]
    assert serving.cache.left == serving.cache.size


@pytest.mark.parametrize("layers", ["last", "all", [0, 1, 3, 4]], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_equals_transformers(family, layers, started, references):
    asked = mixed(layers)
    expected = references[family].all(asked)
    assert len({tuple(tokens) for tokens in expected}) > len(asked) * 0.9
    llm = started(family, layers)
    assert engines.generate(llm, asked) == expected
    nothing_left(llm)


@pytest.mark.parametrize("alpha", [0.0, 1e-5, 1e-4, 1e-2, 1e-1, 1.0])
@pytest.mark.parametrize("divergence", ["ag", "js"])
def test_every_alpha_and_divergence(alpha, divergence, started, references):
    config = ReVisiTConfig(layers="all", alpha=alpha, divergence=divergence)
    asked = [(question, config) for question in QUESTIONS]
    assert engines.generate(started("qwen", "all"), asked) == references["qwen"].all(asked)


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_that_split_an_image(family, layers, started, references):
    llm = started(family, layers, max_num_batched_tokens=13)
    asked = mixed(layers)
    serving = engines.serving(llm)
    spans, original = [], serving.runner.spans
    serving.runner.spans = lambda: [spans.append(span) or span for span in original()]
    assert engines.generate(llm, asked) == references[family].all(asked)
    serving.runner.spans = original
    places = [span.start for span in spans if span.start]
    assert len(places) > len(asked)  # prompts that went on in a later pass


@pytest.mark.parametrize("family", FAMILIES)
def test_preempted_requests_go_on(family, started, references):
    blocks = {"block_size": 32, "num_gpu_blocks_override": 12, "max_model_len": 256}
    llm = started(family, "all", **blocks, max_num_batched_tokens=64)
    scheduler, preempted = engines.scheduler(llm), []
    original = scheduler._preempt_request
    scheduler._preempt_request = lambda request, *args, **kwargs: (
        preempted.append(request.num_output_tokens) or original(request, *args, **kwargs)
    )
    asked = mixed("all", QUESTIONS[:4])
    steps = 60
    assert engines.generate(llm, asked, steps) == references[family].all(asked, steps)
    assert sum(tokens > 0 for tokens in preempted) >= 3
    nothing_left(llm)


def test_a_warm_prefix_cache_is_left_to_plain_requests(started, references):
    llm = started("qwen", "last", enable_prefix_caching=True, block_size=32)
    asked = mixed("last")
    expected = references["qwen"].all(asked)
    assert engines.generate(llm, asked) == expected
    outputs = llm.generate(
        [question.for_vllm() for question, _ in asked],
        [engines.params(config) for _, config in asked],
        use_tqdm=False,
    )
    assert [list(output.outputs[0].token_ids) for output in outputs] == expected
    for (_, config), output in zip(asked, outputs, strict=True):
        assert (output.num_cached_tokens > 0) == (config is None)


@pytest.fixture
def asynchronous(monkeypatch):
    """vLLM turns asynchronous scheduling off on a CPU: let it be as on a GPU."""
    from vllm.platforms.cpu import CpuPlatform

    original = CpuPlatform.check_and_update_config.__func__

    def check(cls, config):
        original(cls, config)
        config.scheduler_config.async_scheduling = True

    monkeypatch.setattr(CpuPlatform, "check_and_update_config", classmethod(check))


def test_asynchronous_scheduling(asynchronous, started, references):
    llm = started("qwen", "all", async_scheduling=True)
    assert llm.llm_engine.vllm_config.scheduler_config.async_scheduling
    asked = mixed("all")
    assert engines.generate(llm, asked) == references["qwen"].all(asked)


def test_in_half_precision_every_step_is_that_of_the_formulas(started):
    """Transformers rounds elsewhere: so compared with what this engine's own logits give."""
    llm = started("qwen", "all", dtype="bfloat16")
    serving, seen = engines.serving(llm), []

    def watch(logits, context, original=serving.refine):
        names, before = serving.runner.rows(logits.shape[0], context), logits.clone()
        refined = original(logits, context)
        for name, row, mine in zip(names, before, refined, strict=True):
            if prompt := serving.prompts.get(name):
                states = prompt.session.columns.states
                assert states.dtype == torch.bfloat16
                alone = step(row, states, serving.head, prompt.config)
                assert torch.equal(mine > -torch.inf, alone.scores > -torch.inf)
                seen.append(int(mine.argmax()) == int(alone.scores.argmax()))
        return refined

    serving.refine = watch
    asked = [each for each in mixed("all") if each[1] is None or each[1].selection != "random"]
    try:
        engines.generate(llm, asked)
    finally:
        del serving.refine
    assert len(seen) == 16 * sum(config is not None for _, config in asked)
    assert sum(seen) > 0.99 * len(seen)  # near ties of the rounding aside


@pytest.mark.parametrize("layers", ["last", "all"])
def test_a_video_equals_transformers(layers, started, references):
    frames = np.stack([np.asarray(each) for each in Question("", (0, 1, 2, 3)).opened()])
    told = {"fps": 2.0, "duration": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3]}
    prompt = "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>And?<|im_end|>\n"
    reference = references["qwen"]
    inputs = reference.processor(
        text=[prompt],
        videos=[frames],
        video_metadata=[told],
        do_sample_frames=False,
        return_tensors="pt",
    )
    assert (inputs["input_ids"] == reference.model.config.video_token_id).sum() > 64
    expected = []
    settings = [None, *(ReVisiTConfig(layers=layers, alpha=alpha) for alpha in (1e-5, 1e-2))]
    for config in settings:
        attached = revisit.attach(reference.model, config) if config else nullcontext()
        with attached:
            output = reference.model.generate(
                **inputs, max_new_tokens=16, do_sample=False, eos_token_id=None
            )
        expected.append(output[0, inputs["input_ids"].shape[1] :].tolist())
    llm = started("qwen", layers, limit_mm_per_prompt={"image": 0, "video": 1})
    asked = {
        "prompt": prompt,
        "multi_modal_data": {"video": [(frames, {**told, "do_sample_frames": False})]},
        "mm_processor_kwargs": {"do_sample_frames": False},
    }
    outputs = llm.generate(
        [asked] * 3, [engines.params(config) for config in settings], use_tqdm=False
    )
    assert [list(output.outputs[0].token_ids) for output in outputs] == expected
    assert len({tuple(tokens) for tokens in expected}) == 3


def test_several_sequences_of_a_request(started, references):
    config = ReVisiTConfig(alpha=1e-3)
    llm = started("qwen", "last")
    (output,) = llm.generate(
        [QUESTIONS[0].for_vllm()],
        [engines.params(config, n=3, temperature=1.0, top_k=1)],
        use_tqdm=False,
    )
    expected = references["qwen"](QUESTIONS[0], config)
    assert [list(each.token_ids) for each in output.outputs] == [expected] * 3
    nothing_left(llm)


def test_penalties_come_after_and_masks_before(started):
    """V1's order: bias and bans change what ReVisiT is given, penalties what it gives."""
    llm = started("qwen", "last")
    config = ReVisiTConfig(alpha=1e-3)
    plain = engines.generate(llm, [(QUESTIONS[0], config)])[0]
    (output,) = llm.generate(
        [QUESTIONS[0].for_vllm()],
        [engines.params(config, logit_bias={plain[0]: -100.0}, presence_penalty=2.0)],
        use_tqdm=False,
    )
    tokens = output.outputs[0].token_ids
    assert plain[0] not in tokens


def test_settings_of_the_engine_are_those_of_a_request_that_names_none(started, references):
    llm = started("qwen", "all", revisit={"alpha": 1e-2, "divergence": "js"})
    config = ReVisiTConfig(layers="all", alpha=1e-2, divergence="js")
    for asked in (True, {}, "{}", "true"):
        params = engines.params(None)
        params.extra_args = {"revisit": asked}
        (output,) = llm.generate([QUESTIONS[1].for_vllm()], [params], use_tqdm=False)
        assert list(output.outputs[0].token_ids) == references["qwen"](QUESTIONS[1], config)


def test_columns_that_find_no_room_are_computed_again(started, references):
    llm = started("qwen", "all", revisit={"cache_bytes": 20_000})
    asked = mixed("all")
    assert engines.generate(llm, asked) == references["qwen"].all(asked)


def test_logits_without_a_possible_token_end_nothing(started, references, caplog):
    llm = started("qwen", "last")
    serving = engines.serving(llm)
    config = ReVisiTConfig(alpha=1e-3)
    asked = [(question, config) for question in QUESTIONS[:3]]
    broken, rows = [], serving.runner.rows

    def spoil(logits, context, original=serving.refine):
        names = rows(logits.shape[0], context)
        if len(names) == 3 and not broken:
            broken.append(names[1])
        if broken and broken[0] in names:
            logits[names.index(broken[0])] = float("nan")
        return original(logits, context)

    serving.refine = spoil
    try:
        got = engines.generate(llm, asked)
    finally:
        del serving.refine
    expected = references["qwen"].all(asked)
    assert broken and (got[0], got[2]) == (expected[0], expected[2])
    nothing_left(llm)


def test_an_error_in_the_worker_ends_nothing(started, references, monkeypatch):
    llm = started("qwen", "last")
    config = ReVisiTConfig(alpha=1e-3)
    asked = [(QUESTIONS[0], config), (QUESTIONS[1], None)]

    def fail(*_):
        raise MemoryError("no room")

    monkeypatch.setattr("revisit.vllm.serving.Session", fail)
    got = engines.generate(llm, asked)
    plain = [(question, None) for question, _ in asked]
    assert got == references["qwen"].all(plain)
    monkeypatch.undo()
    assert engines.generate(llm, asked) == references["qwen"].all(asked)
    nothing_left(llm)


def resident():
    """Bytes of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def any_settings(draw):
    """Settings that nobody chose."""
    return ReVisiTConfig(
        alpha=10 ** draw.uniform(-5, -1),
        divergence=draw.choice(["ag", "js"]),
        selection=draw.choice(["min", "max", "random"]),
        seed=draw.randrange(1000),
    )


def test_soak_with_aborts(started, references):
    """Requests in random settings, 32 at a time, a tenth aborted midway: the rest as alone.

    300 of them; REVISIT_SOAK says how many instead.
    """
    count = int(os.environ.get("REVISIT_SOAK", "300"))
    llm = started("qwen", "last", max_num_seqs=32, max_num_batched_tokens=96)
    engine, serving = llm.llm_engine, engines.serving(llm)
    draw = random.Random(0)
    kinds = mixed("last") + [(each, any_settings(draw)) for each in QUESTIONS for _ in range(4)]
    expected, done, running, aborted = {}, {}, set(), set()
    memory = []
    while len(expected) < count or engine.has_unfinished_requests():
        while len(expected) < count and len(running) < 32:
            question, config = draw.choice(kinds)
            steps = draw.randint(1, 16)
            name = str(len(expected))
            engine.add_request(name, question.for_vllm(), engines.params(config, steps))
            expected[name] = references["qwen"](question, config)[:steps]
            running.add(name)
        for output in engine.step():
            if output.finished:
                running.discard(output.request_id)
                done[output.request_id] = list(output.outputs[0].token_ids)
        if running and draw.random() < 0.25 and len(aborted) < len(expected) // 10:
            victim = draw.choice(sorted(running))
            engine.abort_request([victim])
            aborted.add(victim)
            running.discard(victim)
        if len(done) >= 100:
            memory.append(resident())
    finished = {name: tokens for name, tokens in done.items() if name not in aborted}
    assert len(finished) == count - len(aborted) and len(aborted) >= count * 0.09
    assert all(tokens == expected[name] for name, tokens in finished.items())
    nothing_left(llm)
    modules = serving.runner.runner.get_model().modules()
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in modules)
    print(f"{count} requests, {len(aborted)} aborted; MiB at 100 and at the end:", end=" ")
    print(memory[0] >> 20, memory[-1] >> 20)
    assert memory[-1] - memory[0] < 32 * 2**20
