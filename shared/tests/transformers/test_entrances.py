"""A call of `generate` becomes a generation: processors, caches, compiling, chunks, threads."""

import threading

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
from revisit import ReVisiTConfig
from routes import CONFIG, SETTINGS, attached, both_routes, enabled, plain
from small_llama import PAD, PROMPTS, batch, hooks, make_model, new_tokens


@pytest.fixture(scope="module")
def model():
    return make_model()


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


def test_an_enabled_model_is_never_decoded_plainly_in_silence(model):
    """Whatever prepares a decoding of it without its `generate`, as continuous batching does."""
    revisit.enable(model, CONFIG)
    try:
        with pytest.raises(ValueError, match=r"call model\.generate"):
            type(model).generate(model, **batch(PROMPTS[:1]), **SETTINGS)
    finally:
        revisit.disable(model)


def test_a_processor_that_is_passed_too_refines_once(model):
    expected = attached(model, PROMPTS).tolist()
    with revisit.attach(model, CONFIG) as processor:
        both = model.generate(
            **batch(PROMPTS), **SETTINGS, logits_processor=LogitsProcessorList([processor])
        )
    assert both.tolist() == expected


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
