"""Every sequence equals that of Transformers with ReVisiT, however vLLM runs it."""

import math
import os
import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.sample.logits_processor import LogitsProcessor

import revisit
import vllm_engines as engines
from private_memory import private_bytes
from revisit import ReVisiTConfig
from revisit.core.step import step
from vllm_models import QUESTIONS, STEPS, Question, mixed

FAMILIES = ("qwen", "llava")
LEFT_OUT = -10_000  # what is left out of V_cons is below, what is kept above
SETTINGS = {"alpha": 1e-2, "divergence": "js"}  # of an engine


def nothing_left(llm):
    """No request, and none of their columns."""
    llm.llm_engine.step()  # tells the worker which requests have ended
    serving = engines.serving(llm)
    assert not (serving.active or serving.prompts or serving.recording or serving.failed)
    assert serving.steps.cache.left == serving.steps.cache.size


@pytest.mark.parametrize("layers", ["last", "all"])
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


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_that_split_an_image(family, started, references, monkeypatch):
    layers = [0, 1, 3, 4]
    llm = started(family, layers, max_num_batched_tokens=13)
    asked = mixed(layers)
    runner, chunks = engines.serving(llm).runner, []
    original = runner.chunks
    monkeypatch.setattr(
        runner, "chunks", lambda: [chunks.append(each) or each for each in original()]
    )
    assert engines.generate(llm, asked) == references[family].all(asked)
    assert sum(chunk.start > 0 for chunk in chunks) > len(
        asked
    )  # prompts that went on in a later pass


@pytest.mark.parametrize("family, policy", [("llava", "fcfs"), ("qwen", "priority")])
def test_preempted_requests_go_on(family, policy, started, references):
    blocks = {"block_size": 32, "num_gpu_blocks_override": 12, "max_model_len": 256}
    llm = started(family, "all", **blocks, max_num_batched_tokens=64, scheduling_policy=policy)
    scheduler, preempted = engines.scheduler(llm), []
    original = scheduler._preempt_request
    scheduler._preempt_request = lambda request, *args, **kwargs: (
        preempted.append(request.num_output_tokens) or original(request, *args, **kwargs)
    )
    asked, steps = mixed("all", QUESTIONS[:4]), 60
    urgent = [-number for number in range(len(asked))] if policy == "priority" else None
    got = engines.generate(llm, asked, steps, priority=urgent)
    assert got == references[family].all(asked, steps)
    assert sum(tokens > 0 for tokens in preempted) >= 3
    nothing_left(llm)


def test_a_warm_prefix_cache_is_left_to_plain_requests(started, references):
    llm = started("qwen", "all", enable_prefix_caching=True, block_size=32, revisit=SETTINGS)
    asked = mixed("all")
    expected = references["qwen"].all(asked)
    for _ in range(2):  # the second time with a warm cache
        outputs = engines.outputs(llm, asked)
        assert [list(output.outputs[0].token_ids) for output in outputs] == expected
    for (_, config), output in zip(asked, outputs, strict=True):
        assert (output.num_cached_tokens > 0) == (config is None)


def test_settings_of_the_engine_are_those_of_a_request_that_names_none(started, references):
    llm = started("qwen", "all", enable_prefix_caching=True, block_size=32, revisit=SETTINGS)
    expected = references["qwen"](QUESTIONS[1], ReVisiTConfig(layers="all", **SETTINGS))
    for revisit_args in (True, {}, "{}", "true"):
        extra_args = {"revisit": revisit_args}
        assert engines.generate(llm, [(QUESTIONS[1], None)], extra_args=extra_args) == [expected]


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


def test_in_half_precision_every_step_is_that_of_the_formulas(started, monkeypatch):
    """Transformers rounds elsewhere: so compared with the step for this engine's logits."""
    llm = started("qwen", "all", dtype="bfloat16")
    serving, equal = engines.serving(llm), []
    original = serving.refine

    def watch(logits, context):
        requests, before = serving.runner.requests(logits.shape[0], context), logits.clone()
        refined = original(logits, context)
        for request, row, scores in zip(requests, before, refined, strict=True):
            if prompt := serving.prompts.get(request):
                states = prompt.opened.columns.states
                assert states.dtype == torch.bfloat16
                expected = step(row, states, serving.head, prompt.config).scores
                assert torch.equal(scores > LEFT_OUT, expected > -torch.inf)
                equal.append(int(scores.argmax()) == int(expected.argmax()))
        return refined

    monkeypatch.setattr(serving, "refine", watch)
    asked = [each for each in mixed("all") if each[1] is None or each[1].selection != "random"]
    engines.generate(llm, asked)
    assert len(equal) == 16 * sum(config is not None for _, config in asked)
    assert sum(equal) > 0.99 * len(equal)  # near ties of the rounding aside


def test_a_video_equals_transformers(started, references):
    layers = "all"
    frames = np.stack([np.asarray(image) for image in Question("", (0, 1, 2, 3)).opened()])
    about = {"fps": 2.0, "duration": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3]}
    prompt = "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>And?<|im_end|>\n"
    reference = references["qwen"]
    inputs = reference.processor(
        text=[prompt],
        videos=[frames],
        video_metadata=[about],
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
        "multi_modal_data": {"video": [(frames, {**about, "do_sample_frames": False})]},
        "mm_processor_kwargs": {"do_sample_frames": False},
    }
    params = [engines.params(config) for config in settings]
    outputs = llm.generate([asked] * 3, params, use_tqdm=False)
    assert [list(output.outputs[0].token_ids) for output in outputs] == expected
    assert len({tuple(tokens) for tokens in expected}) == 3


def test_several_sequences_of_a_request(started, references):
    config = ReVisiTConfig(alpha=1e-3)
    llm = started("qwen", "last")
    asked = [(QUESTIONS[0], config)]
    (output,) = engines.outputs(llm, asked, n=3, temperature=1.0, top_k=1)
    expected = references["qwen"](QUESTIONS[0], config)
    assert [list(each.token_ids) for each in output.outputs] == [expected] * 3
    nothing_left(llm)


def test_penalties_come_after_and_masks_before(started):
    """V1's order: bias and bans change what ReVisiT reads, penalties what it returns."""
    llm = started("qwen", "last")
    asked = [(QUESTIONS[0], ReVisiTConfig(alpha=1e-3))]
    first = engines.generate(llm, asked)[0][0]
    (tokens,) = engines.generate(llm, asked, logit_bias={first: -100.0}, presence_penalty=2.0)
    assert first not in tokens


class BanPlausible(LogitsProcessor):
    """Bans all that ReVisiT has kept."""

    def __init__(self, *_):
        pass

    def is_argmax_invariant(self):
        return False

    def update_state(self, batch_update):
        pass

    def apply(self, logits):
        return logits.masked_fill(logits > LEFT_OUT, -torch.inf)


@pytest.mark.parametrize("alpha", [1.0, 1e-2])
def test_a_ban_of_all_plausible_tokens_leaves_the_model_s_best_of_the_others(
    alpha, started, monkeypatch
):
    llm = started("qwen", "last", processors=(BanPlausible,))
    serving, rows = engines.serving(llm), []
    refine = serving.refine
    monkeypatch.setattr(
        serving, "refine", lambda logits, ctx: rows.append(logits[0].clone()) or refine(logits, ctx)
    )
    (tokens,) = engines.generate(llm, [(QUESTIONS[0], ReVisiTConfig(alpha=alpha))])
    others = [row.masked_fill(row >= row.max() + math.log(alpha), -torch.inf) for row in rows]
    assert tokens == [int(row.argmax()) for row in others]


def bans(likely):
    """Settings that leave out the tokens that the model finds likeliest."""
    return {
        "allowed": {"allowed_token_ids": [*range(100, 130)]},
        "biased": {"logit_bias": {token: -100.0 for token in likely}},
        "not ended yet": {"min_tokens": 16, "stop_token_ids": likely, "ignore_eos": False},
        "structured": {"structured_outputs": StructuredOutputsParams(regex="[a-z ]{80,90}")},
        "bad words": {"bad_words": ["a", " a", "s", "in", " the"]},
    }


@pytest.mark.parametrize("name", bans([]))
def test_what_vllm_bans_leaves_the_model_s_best_of_the_rest(name, started):
    """With alpha 1 the likeliest token alone is plausible, so that it must be the plain one."""
    llm = started("qwen", "last")
    likely = sorted(set(engines.generate(llm, [(QUESTIONS[0], None)])[0]))
    asked = [(QUESTIONS[0], None), (QUESTIONS[0], ReVisiTConfig(alpha=1.0))]
    plain, refined = engines.generate(llm, asked, **bans(likely)[name])
    assert refined == plain
    assert name == "bad words" or plain != engines.generate(llm, asked[:1])[0]


def test_refined_scores_are_finite_where_the_model_s_are(started, monkeypatch):
    llm = started("qwen", "last")
    serving, equal = engines.serving(llm), []
    original = serving.refine

    def watch(logits, context):
        finite = logits.isfinite()
        refined = original(logits, context)
        equal.append(torch.equal(refined.isfinite(), finite))
        return refined

    monkeypatch.setattr(serving, "refine", watch)
    engines.generate(llm, mixed("last"), min_tokens=4, ignore_eos=False)
    assert equal and all(equal)


def test_a_request_of_which_no_token_is_possible_fails_alone(started, references, monkeypatch):
    llm = started("qwen", "last")
    config = ReVisiTConfig(alpha=1e-3)
    asked = [(question, config) for question in QUESTIONS[:3]]
    serving, broken = engines.serving(llm), []
    original = serving.refine

    def spoil(logits, context):
        if len(logits) == 3 and not broken:
            broken.append(1)
            logits[1] = float("nan")
        return original(logits, context)

    monkeypatch.setattr(serving, "refine", spoil)
    got = engines.outcomes(llm, asked)
    expected = references["qwen"].all(asked)
    assert [got[0], got[2]] == [(expected[0], "length", None), (expected[2], "length", None)]
    tokens, reason, why = got[1]
    assert tokens == expected[1][: len(tokens)] and len(tokens) < STEPS
    assert reason == "error" and "not decoded plainly instead: the model's logits hold NaN" in why
    nothing_left(llm)


BROKEN = {
    "a session": ("revisit.vllm.pytorch_steps.Session", "MemoryError: no room"),
    "a step": ("revisit.vllm.pytorch_steps.refine", "MemoryError: no room"),
    "the vision tokens": ("revisit.vllm.serving.vision_positions", "MemoryError: no room"),
    "their hidden states": ("revisit.vllm.serving._to_device", "MemoryError: no room"),
}


@pytest.mark.parametrize("part", BROKEN)
@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_request_that_lost_a_step_fails_and_plain_ones_go_on(
    part, asynchronously, started, references, monkeypatch, request
):
    layers, options = "last", {}
    if asynchronously:
        request.getfixturevalue("asynchronous")
        layers, options = "all", {"async_scheduling": True}
    llm = started("qwen", layers, **options)
    name, message = BROKEN[part]

    def fail(*_):
        raise MemoryError("no room")

    config = ReVisiTConfig(layers=layers, alpha=1e-3)
    asked = [(QUESTIONS[0], config), (QUESTIONS[1], None)]
    with monkeypatch.context() as patched:
        patched.setattr(name, fail)
        (tokens, reason, why), (plain, ended, _) = engines.outcomes(llm, asked)
    assert (tokens, reason) == ([], "error") and why.endswith(message)
    assert (plain, ended) == (references["qwen"](QUESTIONS[1], None), "length")
    assert engines.generate(llm, asked) == references["qwen"].all(asked)
    nothing_left(llm)


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

    300 of them, or as many as REVISIT_SOAK names.
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
            memory.append(private_bytes())
    finished = {name: tokens for name, tokens in done.items() if name not in aborted}
    assert len(finished) == count - len(aborted) and len(aborted) >= count * 0.09
    assert all(tokens == expected[name] for name, tokens in finished.items())
    nothing_left(llm)
    modules = serving.runner.runner.get_model().modules()
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in modules)
    print(f"{count} requests, {len(aborted)} aborted; MiB at 100 and at the end:", end=" ")
    print(memory[0] >> 20, memory[-1] >> 20)
    assert memory[-1] - memory[0] < 32 * 2**20
