"""`enable`, `disable`, `attach` and `blocks.py`: which calls of a model decode with ReVisiT."""

import asyncio
import copy
import io
import pickle
from contextvars import Context, copy_context
from functools import partial

import pytest
import torch

import revisit
from releases import needs_stance
from revisit import ReVisiTConfig
from routes import CONFIG, attached, both_routes, enabled, enabling, in_another_thread, plain
from small_llama import PROMPTS, hooks, make_model

OTHER = ReVisiTConfig(alpha=0.3)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"num_beams": 3, "do_sample": True},
        {"do_sample": True, "top_k": 5, "temperature": 0.7},
        {"do_sample": True, "num_return_sequences": 3},
        {"use_cache": False},
    ],
    ids=str,
)
def test_enable_gives_what_attach_gives(model, arguments):
    sequences = []
    for route in (attached, enabled, plain):
        torch.manual_seed(7)
        sequences.append(route(model, PROMPTS, **arguments))
    assert sequences[0] == sequences[1]
    assert sequences[0] != sequences[2]


def test_enabling_twice_changes_the_settings(model, expected):
    other = attached(model, PROMPTS, OTHER)
    assert other != expected
    before = dict(vars(model))
    revisit.enable(model, CONFIG)
    assert plain(model, PROMPTS) == expected
    revisit.enable(model, OTHER)
    assert plain(model, PROMPTS) == other
    revisit.disable(model)
    revisit.disable(model)
    assert vars(model) == before


def test_the_innermost_settings_count(model, expected):
    before, other = dict(vars(model)), attached(model, PROMPTS, OTHER)
    revisit.enable(model, CONFIG)
    with revisit.attach(model, OTHER):
        assert plain(model, PROMPTS) == other
        with revisit.attach(model, CONFIG):
            assert plain(model, PROMPTS) == expected
        revisit.disable(model)
        assert plain(model, PROMPTS) == other
        assert enabled(model, PROMPTS) == other
    assert vars(model) == before


@pytest.mark.parametrize("block", [revisit.attach, enabling])
def test_what_cannot_work_is_refused_before_a_block_begins(model, block):
    with pytest.raises(ValueError, match="out of range"), block(model, ReVisiTConfig(layers=[99])):
        pass
    with pytest.raises(ValueError, match="the model itself"), block(torch.nn.Linear(2, 2), CONFIG):
        pass
    assert "generate" not in vars(model)


def test_settings_are_as_enabled_in_every_thread_and_as_attached_in_one(model, expected, greedy):
    assert expected != greedy
    with revisit.attach(model, CONFIG):
        assert in_another_thread(lambda: plain(model, PROMPTS)) == greedy
    with enabling(model):
        assert in_another_thread(lambda: plain(model, PROMPTS)) == expected


def answers(model, count=3):
    """A generator that holds a block open, as a server's streamed response does."""
    with revisit.attach(model, CONFIG):
        for _ in range(count):
            yield plain(model, PROMPTS)


@pytest.mark.parametrize(
    "run",
    [in_another_thread, lambda step: Context().run(step), lambda step: copy_context().run(step)],
)
@pytest.mark.parametrize("left", ["to the end", "closed", "thrown away"])
def test_a_generator_may_go_on_in_other_contexts(model, expected, greedy, run, left):
    before, generator = dict(vars(model)), answers(model)
    assert [run(generator.__next__) for _ in range(2)] == [expected] * 2
    assert in_another_thread(lambda: plain(model, PROMPTS)) == greedy
    if left == "to the end":
        assert run(partial(list, generator)) == [expected]
    elif left == "closed":
        run(generator.close)
    del generator
    assert vars(model) == before
    assert plain(model, PROMPTS) == greedy


def test_blocks_that_are_left_out_of_order_leave_the_model_as_it_was(model, expected, greedy):
    before, first, second = dict(vars(model)), answers(model), answers(model)
    assert next(first) == next(second) == expected
    first.close()
    assert next(second) == expected
    second.close()
    assert vars(model) == before
    assert plain(model, PROMPTS) == greedy


def test_tasks_decode_by_their_own_blocks(model, expected, greedy):
    before = dict(vars(model))

    async def inside():
        with revisit.attach(model, CONFIG):
            await asyncio.sleep(0)
            seen = [plain(model, PROMPTS)]
            seen.append(await asyncio.to_thread(lambda: plain(model, PROMPTS)))
            late = asyncio.create_task(outside())
        return [*seen, await late]

    async def outside():
        await asyncio.sleep(0)
        return plain(model, PROMPTS)

    async def both():
        return await asyncio.gather(inside(), outside())

    assert asyncio.run(both()) == [[expected, expected, greedy], greedy]
    assert vars(model) == before


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
def test_a_copy_of_an_enabled_model_is_enabled_and_independent(expected, greedy, copied):
    model = make_model()
    revisit.enable(model, CONFIG)
    other = copied(model)
    assert plain(other, PROMPTS) == expected
    revisit.disable(other)
    assert plain(other, PROMPTS) == greedy
    assert plain(model, PROMPTS) == expected
    # It reads its own weights.
    revisit.enable(other, CONFIG)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert plain(other, PROMPTS) == expected


def test_weights_that_change_after_enabling_are_read_as_they_are():
    model = make_model()
    revisit.enable(model, CONFIG)
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.flip(0).clone())
    assert plain(model, PROMPTS) == attached(model, PROMPTS)


def test_somebody_else_s_generate_is_kept_and_called(expected):
    model, calls = make_model(), []

    def generate(*args, **kwargs):
        calls.append(1)
        return type(model).generate(model, *args, **kwargs)

    model.generate = generate
    assert enabled(model, PROMPTS) == expected
    assert calls == [1]
    assert model.generate is generate


@needs_stance
def test_a_model_wrapped_by_torch_compile_is_enabled_as_the_model_is(expected):
    model = make_model()
    compiled = torch.compile(model, backend="eager")
    revisit.enable(compiled, CONFIG)
    assert plain(compiled, PROMPTS) == plain(model, PROMPTS) == expected
    revisit.disable(compiled)
    assert plain(model, PROMPTS) != expected


@both_routes
@pytest.mark.parametrize("when", ["prefill", "step"])
def test_after_an_exception_no_hook_is_left(model, expected, route, when):
    before, attributes = hooks(model), dict(vars(model))

    def fail(*_):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        if when == "prefill":
            handle = model.model.layers[2].register_forward_hook(fail)
            try:
                route(model, PROMPTS)
            finally:
                handle.remove()
        else:
            route(model, PROMPTS, stopping_criteria=[fail])
    assert hooks(model) == before
    assert vars(model) == attributes
    assert route(model, PROMPTS) == expected
