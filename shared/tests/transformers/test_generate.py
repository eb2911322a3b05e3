"""`generate` of any Transformers around ReVisiT: caches, compiling, chunks, streams, refusals."""

import asyncio
import copy
import io
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context, copy_context
from functools import partial

import pytest
import tokenizers
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    TextStreamer,
)

import revisit
from releases import RELEASE
from revisit import M3IDConfig, ReVisiTConfig, RITUALConfig, VCDConfig
from small_llama import IMAGE, PAD, PROMPTS, batch, hooks, make_model, new_tokens

CONFIG = ReVisiTConfig(layers="all", alpha=0.02)
SETTINGS = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD}


def attached(model, prompts, config=CONFIG, **arguments):
    """Sequences by `revisit.attach`."""
    with revisit.attach(model, config):
        return model.generate(**batch(prompts), **{**SETTINGS, **arguments})


def enabled(model, prompts, config=CONFIG, **arguments):
    """Sequences by `revisit.enable`."""
    revisit.enable(model, config)
    try:
        return model.generate(**batch(prompts), **{**SETTINGS, **arguments})
    finally:
        revisit.disable(model)


def plain(model, prompts, **arguments):
    """Sequences without ReVisiT."""
    return model.generate(**batch(prompts), **{**SETTINGS, **arguments})


def attaching(model):
    return revisit.attach(model, CONFIG)


@contextmanager
def enabling(model):
    revisit.enable(model, CONFIG)
    try:
        yield
    finally:
        revisit.disable(model)


both_routes = pytest.mark.parametrize(
    "route", [attached, enabled], ids=lambda route: route.__name__
)


@pytest.fixture(scope="module")
def model():
    return make_model()


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
        sequences.append(route(model, PROMPTS, **arguments).tolist())
    assert sequences[0] == sequences[1]
    assert sequences[0] != sequences[2]


@both_routes
@pytest.mark.parametrize(
    "bans",
    [
        {"suppress_tokens": list(range(0, 90, 2))},
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": 6, "eos_token_id": list(range(0, 60))},
        {"prefix_allowed_tokens_fn": lambda _row, ids: [10 + len(ids) % 9, 35, 37, 60, 82]},
        {"bad_words_ids": [[word] for word in range(3, 70)]},
    ],
    ids=lambda bans: next(iter(bans)),
)
def test_where_v_cons_is_banned_the_best_token_is_the_model_s(model, route, bans):
    expected = plain(model, PROMPTS, **bans).tolist()
    only = ReVisiTConfig(alpha=1.0)  # the model's best token is all of V_cons
    assert route(model, PROMPTS, only, **bans).tolist() == expected
    sampled = route(model, PROMPTS, only, **bans, do_sample=True, top_p=0.9, temperature=0.7)
    assert sampled.tolist() == expected


@pytest.mark.skipif(RELEASE < (4, 38), reason="this release returns no logits of its own")
def test_revisit_comes_before_penalties(model):
    """A penalty that reads refined scores cannot bring back a word outside V_cons."""
    output = attached(
        model,
        PROMPTS[:1],
        ReVisiTConfig(alpha=0.05, trace=True),
        repetition_penalty=1.4,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    for scores, logits, step in zip(
        output.scores, output.logits, output.revisit_trace[0], strict=True
    ):
        vocabulary = (logits >= logits.max() + torch.tensor(0.05).log()).nonzero()[:, 1]
        assert len(vocabulary) == step.candidates
        assert (scores[0] > -1e4).nonzero().squeeze(1).tolist() == vocabulary.tolist()


def test_a_trace_is_returned_or_refused(model):
    config = ReVisiTConfig(alpha=0.05, trace=True)
    output = enabled(model, PROMPTS, config, return_dict_in_generate=True)
    tokens = [[step.token for step in row] for row in output.revisit_trace]
    assert tokens == new_tokens(output, PROMPTS)
    with pytest.raises(ValueError, match="return_dict_in_generate=True"):
        enabled(model, PROMPTS, config)
    assert "revisit_trace" not in enabled(model, PROMPTS, return_dict_in_generate=True)


class Pieces(TextStreamer):
    def __init__(self):
        self.tokens = []
        self.ended = False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended = True


@both_routes
def test_tokens_are_streamed(model, route):
    streamer = Pieces()
    sequences = route(model, PROMPTS[:1], streamer=streamer)
    assert streamer.tokens == sequences[0].tolist()
    assert streamer.ended


@both_routes
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens"),
        ({"assistant_model": make_model(1)}, "assistant_model"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, "num_beam_groups"),
        ({"num_beams": 2, "early_stopping": True}, "early_stopping=False"),
        ({"dola_layers": "low"}, "dola_layers"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"custom_generate": "some/folder"}, "custom_generate"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_decodings_are_refused_before_the_model_runs(model, route, arguments, named):
    if named == "dola_layers" and RELEASE < (4, 43):
        pytest.skip("this release has no DoLa")
    if named == "custom_generate" and RELEASE < (4, 52):
        pytest.skip("this release has no custom_generate")
    if named == "prompt_lookup_num_tokens" and RELEASE < (4, 37):
        pytest.skip("this release has no prompt lookup")
    ran, before = [], hooks(model)
    handle = model.register_forward_pre_hook(lambda *_: ran.append(1))
    try:
        # The release may refuse by itself what it no longer has.
        with pytest.raises(ValueError, match=rf"{named}|trust_remote_code|group"):
            route(model, PROMPTS[:1], **arguments)
    finally:
        handle.remove()
    assert not ran
    assert hooks(model) == before


def test_continuous_batching_is_refused_where_it_asks_no_processor(model):
    with pytest.raises(ValueError, match="cache_implementation='paged'"):
        attached(model, PROMPTS[:1], cache_implementation="paged")


def test_an_enabled_model_is_never_decoded_plainly_in_silence(model):
    """Whatever prepares a decoding of it without its `generate`, as continuous batching does."""
    revisit.enable(model, CONFIG)
    try:
        with pytest.raises(ValueError, match=r"call model\.generate"):
            type(model).generate(model, **batch(PROMPTS[:1]), **SETTINGS)
    finally:
        revisit.disable(model)


needs_batching = pytest.mark.skipif(RELEASE < (5, 23), reason="its batching is of another kind")


@needs_batching
@pytest.mark.parametrize("block", [attaching, enabling])
def test_continuous_batching_is_refused_from_both_sides(block):
    from transformers import ContinuousBatchingConfig

    model = make_model()
    settings = {"continuous_batching_config": ContinuousBatchingConfig(num_blocks=16)}
    given = {"inputs": PROMPTS[:1], "max_new_tokens": 2, **settings}
    with block(model), pytest.raises(ValueError, match="no continuous batching"):
        model.generate_batch(**given)
    with (
        model.continuous_batching_context_manager(warmup=False, **settings),
        pytest.raises(ValueError, match="manager of this LlamaForCausalLM is open"),
    ):
        block(model).__enter__()
    manager = model.init_continuous_batching(**settings)
    with block(model), pytest.raises(ValueError, match="no continuous batching"):
        manager.start()  # made before the block
    manager.stop(block=True)  # of a start that was not refused
    assert len(model.generate_batch(persistent_manager=True, **given)) == 1
    before = dict(vars(model))
    # The manager that it keeps has its processors already.
    with block(model), pytest.raises(ValueError, match="no continuous batching"):
        model.generate_batch(**given)
    assert vars(model) == before
    model.destroy_cached_continuous_batching_manager()


class Deaf(type(make_model())):
    """A model whose own decoding asks no logits processor, as Janus's in text mode."""

    def generate(self, input_ids, attention_mask, max_new_tokens, **_):
        for _ in range(max_new_tokens):
            logits = self(input_ids=input_ids, attention_mask=attention_mask).logits[:, -1]
            input_ids = torch.cat([input_ids, logits.argmax(1, keepdim=True)], 1)
            ones = attention_mask.new_ones(len(input_ids), 1)
            attention_mask = torch.cat([attention_mask, ones], 1)
        return input_ids


@both_routes
def test_a_generation_that_asked_no_processor_is_an_error(route):
    model = make_model()
    model.__class__ = Deaf
    with pytest.raises(ValueError, match="without calling ReVisiT"):
        route(model, PROMPTS[:1])
    assert plain(model, PROMPTS[:1]).shape == (1, len(PROMPTS[0]) + 6)


def test_enabling_twice_changes_the_settings(model):
    other = ReVisiTConfig(alpha=0.3)
    expected = [attached(model, PROMPTS, config).tolist() for config in (CONFIG, other)]
    assert expected[0] != expected[1]
    before = dict(vars(model))
    revisit.enable(model, CONFIG)
    assert plain(model, PROMPTS).tolist() == expected[0]
    revisit.enable(model, other)
    assert plain(model, PROMPTS).tolist() == expected[1]
    revisit.disable(model)
    revisit.disable(model)
    assert vars(model) == before


def test_the_innermost_settings_count(model):
    other = ReVisiTConfig(alpha=0.3)
    expected = [attached(model, PROMPTS, config).tolist() for config in (CONFIG, other)]
    revisit.enable(model, CONFIG)
    with revisit.attach(model, other):
        assert plain(model, PROMPTS).tolist() == expected[1]
        with revisit.attach(model, CONFIG):
            assert plain(model, PROMPTS).tolist() == expected[0]
        revisit.disable(model)
        assert plain(model, PROMPTS).tolist() == expected[1]


def test_what_cannot_work_is_refused_when_it_is_asked_for(model):
    for route in (revisit.enable, lambda *given: revisit.attach(*given).__enter__()):
        with pytest.raises(ValueError, match="out of range"):
            route(model, ReVisiTConfig(layers=[99]))
        with pytest.raises(ValueError, match="pass the model itself"):
            route(torch.nn.Linear(2, 2), CONFIG)
    assert "generate" not in vars(model)


def test_settings_are_as_enabled_in_every_thread_and_as_attached_in_one(model):
    expected, greedy = attached(model, PROMPTS).tolist(), plain(model, PROMPTS).tolist()
    assert expected != greedy
    seen = []

    def elsewhere():
        thread = threading.Thread(target=lambda: seen.append(plain(model, PROMPTS).tolist()))
        thread.start()
        thread.join()

    with revisit.attach(model, CONFIG):
        elsewhere()
    revisit.enable(model, CONFIG)
    elsewhere()
    revisit.disable(model)
    assert seen == [greedy, expected]


def answers(model, count=3):
    """A generator that holds a block open, as a server's streamed response does."""
    with revisit.attach(model, CONFIG):
        for _ in range(count):
            yield plain(model, PROMPTS).tolist()


def elsewhere(step):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(step).result()


@pytest.mark.parametrize(
    "run", [elsewhere, lambda step: Context().run(step), lambda step: copy_context().run(step)]
)
@pytest.mark.parametrize("left", ["to the end", "closed", "thrown away"])
def test_a_generator_may_go_on_in_other_contexts(model, run, left):
    expected, greedy = attached(model, PROMPTS).tolist(), plain(model, PROMPTS).tolist()
    before, generator = dict(vars(model)), answers(model)
    assert [run(generator.__next__) for _ in range(2)] == [expected] * 2
    assert elsewhere(lambda: plain(model, PROMPTS).tolist()) == greedy
    if left == "to the end":
        assert run(partial(list, generator)) == [expected]
    elif left == "closed":
        run(generator.close)
    del generator
    assert vars(model) == before
    assert plain(model, PROMPTS).tolist() == greedy


def test_blocks_that_are_left_out_of_order_leave_the_model_as_it_was(model):
    expected, greedy = attached(model, PROMPTS).tolist(), plain(model, PROMPTS).tolist()
    before, first, second = dict(vars(model)), answers(model), answers(model)
    assert next(first) == next(second) == expected
    first.close()
    assert next(second) == expected
    second.close()
    assert vars(model) == before
    assert plain(model, PROMPTS).tolist() == greedy


def test_tasks_decode_by_their_own_blocks(model):
    expected, greedy = attached(model, PROMPTS).tolist(), plain(model, PROMPTS).tolist()
    before = dict(vars(model))

    async def inside():
        with revisit.attach(model, CONFIG):
            await asyncio.sleep(0)
            seen = [plain(model, PROMPTS).tolist()]
            seen.append(await asyncio.to_thread(lambda: plain(model, PROMPTS).tolist()))
            late = asyncio.create_task(outside())
        return [*seen, await late]

    async def outside():
        await asyncio.sleep(0)
        return plain(model, PROMPTS).tolist()

    async def both():
        return await asyncio.gather(inside(), outside())

    assert asyncio.run(both()) == [[expected, expected, greedy], greedy]
    assert vars(model) == before


def test_a_generation_of_one_s_own_is_refused_or_goes_on_in_another_thread(model):
    processor = revisit.ReVisiTLogitsProcessor(model, CONFIG)
    inputs, before = batch(PROMPTS[:1]), hooks(model)

    def steps():
        with processor.generation(inputs):
            with torch.no_grad():  # of a thread: not held across a `yield`
                logits = model(**inputs).logits[:, -1]
            yield
            yield processor(inputs["input_ids"], logits)

    generator = steps()
    elsewhere(generator.__next__)
    with pytest.raises(ValueError, match="saw no prefill"):
        next(generator)
    assert hooks(model) == before
    generator = steps()
    assert next(generator) is None
    elsewhere(generator.close)
    assert attached(model, PROMPTS[:1]).tolist() == enabled(model, PROMPTS[:1]).tolist()


@both_routes
def test_training_with_gradient_checkpointing_is_right_or_refused(route):
    model = make_model()
    expected = route(model, PROMPTS).tolist()
    greedy = plain(model, PROMPTS).tolist()
    model.gradient_checkpointing_enable()
    model.train()
    ran = []
    try:
        right = plain(model, PROMPTS).tolist() == greedy
    except (ValueError, RuntimeError):
        right = False
    handle = model.register_forward_pre_hook(lambda *_: ran.append(1))
    if right:
        assert route(model, PROMPTS).tolist() == expected
    else:
        with pytest.raises(ValueError, match="pass use_cache=False"):
            route(model, PROMPTS)
        assert not ran
    handle.remove()
    assert route(model, PROMPTS, use_cache=False).tolist() == expected
    assert route(model.eval(), PROMPTS).tolist() == expected


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
def test_a_copy_of_an_enabled_model_is_enabled_and_on_its_own(copied):
    model = make_model()
    expected, greedy = attached(model, PROMPTS).tolist(), plain(model, PROMPTS).tolist()
    revisit.enable(model, CONFIG)
    other = copied(model)
    assert plain(other, PROMPTS).tolist() == expected
    revisit.disable(other)
    assert plain(other, PROMPTS).tolist() == greedy
    assert plain(model, PROMPTS).tolist() == expected
    # It reads its own weights.
    revisit.enable(other, CONFIG)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert plain(other, PROMPTS).tolist() == expected


def test_weights_that_change_after_enabling_are_read_as_they_are():
    model = make_model()
    revisit.enable(model, CONFIG)
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.flip(0).clone())
    expected = attached(model, PROMPTS).tolist()
    assert plain(model, PROMPTS).tolist() == expected


@pytest.mark.skipif(RELEASE < (4, 39), reason="this release has no stop strings")
@both_routes
def test_stop_strings_stop(model, route):
    letters = tokenizers.Tokenizer(tokenizers.models.BPE({chr(33 + i): i for i in range(90)}, []))
    letters.decoder = tokenizers.decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters)
    whole = route(model, PROMPTS[:1])[0].tolist()
    third = whole[len(PROMPTS[0]) + 2]
    stopped = route(model, PROMPTS[:1], stop_strings=[chr(33 + third)], tokenizer=tokenizer)
    assert stopped[0].tolist() == whole[: whole.index(third, len(PROMPTS[0])) + 1]


@both_routes
def test_the_model_is_left_as_it_was(model, route):
    before = dict(vars(model))
    with revisit.attach(model, CONFIG):
        route(model, PROMPTS)
    assert vars(model) == before
    with pytest.raises(RuntimeError, match="inside"), revisit.attach(model, CONFIG):
        raise RuntimeError("inside")
    assert vars(model) == before


def test_somebody_else_s_generate_is_kept_and_called(model):
    model = make_model()
    calls = []

    def own(*args, **kwargs):
        calls.append(1)
        return type(model).generate(model, *args, **kwargs)

    model.generate = own
    expected = attached(make_model(), PROMPTS).tolist()
    assert enabled(model, PROMPTS).tolist() == expected
    assert calls == [1]
    assert model.generate is own


def test_a_processor_of_another_model_says_what_to_do(model):
    other = make_model(1)
    with (
        revisit.attach(model, CONFIG) as processor,
        pytest.raises(ValueError, match=r"decode by model\.generate of that model"),
    ):
        other.generate(
            **batch(PROMPTS), max_new_tokens=2, logits_processor=LogitsProcessorList([processor])
        )


def test_a_processor_that_is_passed_too_refines_once(model):
    expected = attached(model, PROMPTS).tolist()
    with revisit.attach(model, CONFIG) as processor:
        both = model.generate(
            **batch(PROMPTS), **SETTINGS, logits_processor=LogitsProcessorList([processor])
        )
    assert both.tolist() == expected


CACHE = "cache" if RELEASE >= (5, 24) else "past_key_values"


@pytest.mark.skipif(RELEASE < (4, 40), reason="this release goes on with a last token only")
@both_routes
@pytest.mark.parametrize("name", sorted({"past_key_values", CACHE}))
@pytest.mark.parametrize(
    "config",
    [CONFIG, VCDConfig(), RITUALConfig(), M3IDConfig()],
    ids=lambda config: str(config)[:4],
)
def test_a_cache_that_holds_a_part_of_the_prompt_is_refused_untouched(model, route, name, config):
    with torch.no_grad():
        ids = batch(PROMPTS[:1])["input_ids"][:, :4]
        cache = getattr(model(input_ids=ids, use_cache=True), CACHE)
    untouched = copy.deepcopy(cache)
    with pytest.raises(ValueError, match=f"leave out {name}"):
        route(model, PROMPTS[:1], config, **{name: cache})
    retry = plain(model, PROMPTS[:1], **{name: cache}).tolist()
    assert retry == plain(model, PROMPTS[:1], **{name: untouched}).tolist()
    assert retry == plain(model, PROMPTS[:1]).tolist()


def test_a_prompt_of_embeddings_needs_a_mask(model):
    inputs = batch(PROMPTS[:1])
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach()
    expected = attached(model, PROMPTS[:1])[:, -6:].tolist()
    given = {"inputs_embeds": embeddings, "attention_mask": inputs["attention_mask"], **SETTINGS}
    mask = inputs["input_ids"] == IMAGE
    with revisit.attach(model, CONFIG):
        with pytest.raises(ValueError, match="Pass vision_mask"):
            model.generate(**given)
        output = model.generate(**given, vision_mask=mask)
    assert output[:, -6:].tolist() == expected


def test_a_vision_mask_is_of_one_generation(model):
    """What was said of one prompt is not taken for the next, though it is as long."""
    other = [[1, 20, 21, 9, IMAGE, IMAGE, IMAGE]]
    expected = attached(model, other).tolist()
    with revisit.attach(model, CONFIG):
        mask = torch.tensor([[0, 0, 1, 1, 1, 0, 0]]).bool()
        model.generate(**batch(PROMPTS[:1]), **SETTINGS, vision_mask=mask)
        assert model.generate(**batch(other), **SETTINGS).tolist() == expected


needs_static = pytest.mark.skipif(RELEASE < (4, 45), reason="no static cache of this kind")


@needs_static
@both_routes
def test_a_static_cache_gives_the_same_tokens(model, route):
    expected = route(model, PROMPTS).tolist()
    assert route(model, PROMPTS, cache_implementation="static").tolist() == expected


GRAPHS = []


def counting(graph, example_inputs):
    """A backend of torch.compile that needs no compiler, and counts the graphs that run."""

    def run(*inputs):
        GRAPHS.append(graph)
        return graph.forward(*inputs)

    return run


needs_stance = pytest.mark.skipif(
    not hasattr(getattr(torch, "compiler", None), "set_stance"), reason="needs PyTorch 2.6"
)


@needs_stance
@needs_static
@both_routes
@pytest.mark.parametrize("part", ["forward", "layers"])
def test_a_compiled_model_gives_the_same_tokens(route, part):
    model = make_model()
    expected = route(model, PROMPTS).tolist()
    torch._dynamo.reset()
    GRAPHS.clear()
    if part == "forward":
        model.forward = torch.compile(model.forward, backend=counting, dynamic=True)
    else:
        for layer in model.model.layers:
            layer.compile(backend=counting, dynamic=True)
    # Graphs of a prefill that ran before, without hooks, must not be taken for ReVisiT's.
    model.generate(**batch(PROMPTS), max_new_tokens=3, do_sample=False, pad_token_id=PAD)
    ran = len(GRAPHS)
    assert ran
    assert route(model, PROMPTS).tolist() == expected
    assert len(GRAPHS) > ran, "decoding after the prefill did not run compiled"


@needs_stance
def test_a_model_wrapped_by_torch_compile_is_enabled_as_the_model_is():
    model = make_model()
    expected = attached(model, PROMPTS).tolist()
    compiled = torch.compile(model, backend="eager")
    revisit.enable(compiled, CONFIG)
    assert plain(compiled, PROMPTS).tolist() == plain(model, PROMPTS).tolist() == expected
    revisit.disable(compiled)
    assert plain(model, PROMPTS).tolist() != expected


@pytest.mark.skipif(RELEASE < (4, 56), reason="its compiled decoding is not for every device")
def test_transformers_own_compiled_decoding_gives_the_same_tokens():
    from transformers import CompileConfig

    model = make_model()
    expected = attached(model, PROMPTS).tolist()
    torch._dynamo.reset()
    GRAPHS.clear()
    compiling = CompileConfig(backend=counting, mode=None, fullgraph=False)
    compiling._compile_all_devices = True
    tokens = attached(
        model, PROMPTS, cache_implementation="static", compile_config=compiling
    ).tolist()
    assert GRAPHS
    assert tokens == expected


@pytest.mark.skipif(RELEASE < (4, 51), reason="this release cannot read a prompt in chunks")
@both_routes
@pytest.mark.parametrize("size", [1, 3, 5, 100])
def test_a_prompt_read_in_chunks_gives_the_same_tokens(model, route, size):
    # Releases 4.x position a padded prompt wrongly when they read it in chunks, ReVisiT or not.
    prompts = PROMPTS if RELEASE >= (5, 0) else PROMPTS[1:2]
    expected = route(model, prompts).tolist()
    assert route(model, prompts, prefill_chunk_size=size).tolist() == expected


class Inside(LogitsProcessor):
    """Runs another generation between two steps of the one it belongs to."""

    def __init__(self, run):
        self.run = run
        self.results = []

    def __call__(self, input_ids, scores):
        self.results.append(self.run().tolist())
        return scores


@both_routes
def test_a_generation_inside_another_does_not_mix_with_it(model, route):
    outer, inner = route(model, PROMPTS[:1]).tolist(), route(model, PROMPTS[1:]).tolist()
    revisited = Inside(lambda: route(model, PROMPTS[1:]))
    again = Inside(lambda: plain(model, PROMPTS[1:]))  # in the same block, so revisited too
    with revisit.attach(model, CONFIG):
        output = model.generate(
            **batch(PROMPTS[:1]),
            **SETTINGS,
            logits_processor=LogitsProcessorList([revisited, again]),
        )
    assert output.tolist() == outer
    assert revisited.results == again.results == [inner] * 6


def test_another_model_may_generate_inside(model):
    other = make_model(1)
    expected = attached(model, PROMPTS).tolist(), plain(other, PROMPTS).tolist()
    elsewhere = Inside(lambda: plain(other, PROMPTS))
    output = attached(model, PROMPTS, logits_processor=LogitsProcessorList([elsewhere]))
    assert output.tolist() == expected[0]
    assert elsewhere.results == [expected[1]] * 6


@pytest.mark.parametrize("route", [attached, plain], ids=["attached", "enabled"])
def test_threads_on_one_model_do_not_mix(model, route):
    """Each thread has a prompt of its own; a barrier before every step makes them interleave."""
    prompts = [PROMPTS[:1], PROMPTS[1:2], PROMPTS[2:], PROMPTS]
    expected = [attached(model, each).tolist() for each in prompts]
    if route is plain:
        revisit.enable(model, CONFIG)
    before = hooks(model)
    barrier = threading.Barrier(len(prompts), timeout=60)

    def wait(*_):
        barrier.wait()

    handle = model.register_forward_pre_hook(wait)
    results = [None] * len(prompts)

    def run(number):
        try:
            results[number] = [route(model, prompts[number]).tolist() for _ in range(3)]
        except BaseException as error:
            results[number] = error
            barrier.abort()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handle.remove()
    revisit.disable(model)
    assert results == [[tokens] * 3 for tokens in expected]
    assert hooks(model) == before
    assert "generate" not in vars(model)


@both_routes
@pytest.mark.parametrize("when", ["prefill", "step"])
def test_after_an_exception_no_hook_is_left(model, route, when):
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
    expected = route(make_model(), PROMPTS).tolist()
    assert route(model, PROMPTS).tolist() == expected
