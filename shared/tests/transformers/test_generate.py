"""`generate` of any Transformers around ReVisiT: caches, compiling, chunks, streams, refusals."""

import threading

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, TextStreamer

import revisit
from releases import CALLABLE, RELEASE
from revisit import ReVisiTConfig
from small_llama import IMAGE, PAD, PROMPTS, batch, hooks, make_model, new_tokens

CONFIG = ReVisiTConfig(layers="all", alpha=0.02)
newer = pytest.mark.skipif(not CALLABLE, reason="custom_generate takes a callable since 4.56")


def attached(model, prompts, config=CONFIG, **arguments):
    """Sequences by `revisit.attach`."""
    with revisit.attach(model, config) as processor:
        return model.generate(
            **batch(prompts),
            logits_processor=LogitsProcessorList([processor]),
            **{"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD, **arguments},
        )


def custom(model, prompts, config=CONFIG, **arguments):
    """Sequences by `custom_generate=revisit.generate`."""
    return model.generate(
        **batch(prompts),
        custom_generate=revisit.generate,
        revisit_config=config,
        **{"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD, **arguments},
    )


ROUTES = [attached, pytest.param(custom, marks=newer)]
both_routes = pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.__name__)


@pytest.fixture(scope="module")
def model():
    return make_model()


@newer
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
def test_custom_generate_gives_what_attach_gives(model, arguments):
    sequences = []
    for route in (attached, custom):
        torch.manual_seed(7)
        sequences.append(route(model, PROMPTS, **arguments).tolist())
    assert sequences[0] == sequences[1]


@newer
def test_custom_generate_comes_before_penalties(model):
    """A penalty that reads refined scores cannot bring back a word outside V_cons."""
    output = custom(
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
        assert scores[0].isfinite().nonzero().squeeze(1).tolist() == vocabulary.tolist()


@newer
def test_a_trace_is_returned_or_refused(model):
    config = ReVisiTConfig(alpha=0.05, trace=True)
    output = custom(model, PROMPTS, config, return_dict_in_generate=True)
    tokens = [[step.token for step in row] for row in output.revisit_trace]
    assert tokens == new_tokens(output, PROMPTS)
    with pytest.raises(ValueError, match="return_dict_in_generate=True"):
        custom(model, PROMPTS, config)


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
        ({"dola_layers": "low"}, "dola_layers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_decodings_are_refused_before_the_model_runs(model, route, arguments, named):
    if named == "dola_layers" and RELEASE < (4, 43):
        pytest.skip("this release has no DoLa")
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
    with (
        revisit.attach(model, CONFIG) as processor,
        pytest.raises(ValueError, match="cache_implementation='paged'"),
    ):
        model.generate(
            **batch(PROMPTS[:1]),
            cache_implementation="paged",
            max_new_tokens=2,
            logits_processor=LogitsProcessorList([processor]),
        )


def test_an_attached_model_decodes_plainly_without_the_processor(model):
    plain = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD}
    expected = model.generate(**batch(PROMPTS), **plain)
    with revisit.attach(model, CONFIG):
        assert model.generate(**batch(PROMPTS), **plain).tolist() == expected.tolist()


def test_attaching_leaves_the_model_as_it_was(model):
    before = dict(vars(model))
    with revisit.attach(model, CONFIG), revisit.attach(model, CONFIG):
        pass
    assert vars(model) == before
    with pytest.raises(RuntimeError, match="inside"), revisit.attach(model, CONFIG):
        raise RuntimeError("inside")
    assert vars(model) == before


def test_a_processor_of_another_model_says_what_to_do(model):
    other = make_model(1)
    with (
        revisit.attach(model, CONFIG) as processor,
        pytest.raises(ValueError, match="of the model that was attached"),
    ):
        other.generate(
            **batch(PROMPTS), max_new_tokens=2, logits_processor=LogitsProcessorList([processor])
        )


@pytest.mark.skipif(RELEASE < (4, 40), reason="this release goes on with a last token only")
def test_a_cache_that_holds_a_part_of_the_prompt_is_refused(model):
    inputs = batch(PROMPTS[:1])
    with torch.no_grad():
        cache = model(input_ids=inputs["input_ids"][:, :4], use_cache=True).past_key_values
    with (
        revisit.attach(model, CONFIG) as processor,
        pytest.raises(ValueError, match="past_key_values"),
    ):
        model.generate(
            **inputs,
            past_key_values=cache,
            max_new_tokens=2,
            do_sample=False,
            logits_processor=LogitsProcessorList([processor]),
        )


def test_a_prompt_of_embeddings_needs_a_mask(model):
    inputs = batch(PROMPTS[:1])
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach()
    expected = attached(model, PROMPTS[:1])[:, -6:].tolist()
    given = {"inputs_embeds": embeddings, "attention_mask": inputs["attention_mask"]}
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD}
    with (
        revisit.attach(model, CONFIG) as processor,
        pytest.raises(ValueError, match="Pass vision_mask"),
    ):
        model.generate(**given, **settings, logits_processor=LogitsProcessorList([processor]))
    mask = inputs["input_ids"] == IMAGE
    with revisit.attach(model, CONFIG, vision_mask=mask) as processor:
        output = model.generate(
            **given, **settings, logits_processor=LogitsProcessorList([processor])
        )
    assert output[:, -6:].tolist() == expected


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


@newer
def test_transformers_own_compiled_decoding_gives_the_same_tokens():
    from transformers import CompileConfig

    model = make_model()
    expected = custom(model, PROMPTS).tolist()
    torch._dynamo.reset()
    GRAPHS.clear()
    compiling = CompileConfig(backend=counting, mode=None, fullgraph=False)
    compiling._compile_all_devices = True
    tokens = custom(
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
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD}
    plain = model.generate(**batch(PROMPTS[1:]), **settings).tolist()
    revisited = Inside(lambda: route(model, PROMPTS[1:]))
    plainly = Inside(lambda: model.generate(**batch(PROMPTS[1:]), **settings))
    with revisit.attach(model, CONFIG) as processor:
        again = Inside(
            lambda: model.generate(
                **batch(PROMPTS[1:]), **settings, logits_processor=LogitsProcessorList([processor])
            )
        )
        output = model.generate(
            **batch(PROMPTS[:1]),
            **settings,
            logits_processor=LogitsProcessorList([processor, revisited, plainly, again]),
        )
    assert output.tolist() == outer
    assert revisited.results == again.results == [inner] * 6
    assert plainly.results == [plain] * 6


@both_routes
def test_threads_on_one_model_do_not_mix(model, route):
    """Each thread has a prompt of its own; a barrier before every step makes them interleave."""
    prompts = [PROMPTS[:1], PROMPTS[1:2], PROMPTS[2:], PROMPTS]
    expected = [route(model, each).tolist() for each in prompts]
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
    assert results == [[tokens] * 3 for tokens in expected]
    assert hooks(model) == before
    assert "generate" not in vars(model)


def test_one_processor_serves_threads(model):
    expected = [attached(model, [prompt]).tolist() for prompt in PROMPTS]
    results = [None] * len(PROMPTS)
    with revisit.attach(model, CONFIG) as processor:

        def run(number):
            results[number] = model.generate(
                **batch([PROMPTS[number]]),
                max_new_tokens=6,
                do_sample=False,
                pad_token_id=PAD,
                logits_processor=LogitsProcessorList([processor]),
            ).tolist()

        threads = [threading.Thread(target=run, args=(number,)) for number in range(len(PROMPTS))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == expected


@both_routes
@pytest.mark.parametrize("when", ["prefill", "step"])
def test_after_an_exception_no_hook_is_left(model, route, when):
    before, attributes = hooks(model), dict(vars(model))

    def fail(*_):
        raise RuntimeError("stop here")

    class Fail(LogitsProcessor):
        def __call__(self, input_ids, scores):
            fail()

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
