"""A call of `generate` becomes a generation: processors, caches, compiling, chunks, threads."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import tokenizers
import torch
from transformers import LogitsProcessorList, PreTrainedTokenizerFast

import revisit
from releases import RELEASE, needs_stance
from revisit import ReVisiTConfig
from routes import CONFIG, SETTINGS, Streamer, attached, both_routes, enabled, enabling, plain
from small_llama import PROMPTS, batch, hooks, make_model, new_tokens


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
    expected = plain(model, PROMPTS, **bans)
    only = ReVisiTConfig(alpha=1.0)  # the model's best token is all of V_cons
    assert route(model, PROMPTS, only, **bans) == expected
    sampling = {"do_sample": True, "top_p": 0.9, "temperature": 0.7}
    assert route(model, PROMPTS, only, **bans, **sampling) == expected


@pytest.mark.skipif(RELEASE < (4, 38), reason="this release does not return the model's logits")
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
    steps = zip(output.scores, output.logits, output.revisit_trace[0], strict=True)
    for scores, logits, step in steps:
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


@both_routes
def test_tokens_are_streamed(model, route):
    streamer = Streamer()
    (sequence,) = route(model, PROMPTS[:1], streamer=streamer)
    assert streamer.received == [*sequence, "end"]


@pytest.mark.skipif(RELEASE < (4, 39), reason="this release has no stop strings")
@both_routes
def test_stop_strings_stop(model, route):
    letters = tokenizers.Tokenizer(tokenizers.models.BPE({chr(33 + i): i for i in range(90)}, []))
    letters.decoder = tokenizers.decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters)
    (whole,) = route(model, PROMPTS[:1])
    third = whole[len(PROMPTS[0]) + 2]
    (stopped,) = route(model, PROMPTS[:1], stop_strings=[chr(33 + third)], tokenizer=tokenizer)
    assert stopped == whole[: whole.index(third, len(PROMPTS[0])) + 1]


def test_an_enabled_model_is_never_decoded_plainly_in_silence(model):
    """Whatever prepares a decoding of it without its `generate`, as continuous batching does."""
    with enabling(model), pytest.raises(ValueError, match=r"call model\.generate"):
        type(model).generate(model, **batch(PROMPTS[:1]), **SETTINGS)


def test_a_processor_that_is_passed_too_refines_once(model, expected):
    with revisit.attach(model, CONFIG) as processor:
        both = plain(model, PROMPTS, logits_processor=LogitsProcessorList([processor]))
    assert both == expected


needs_static = pytest.mark.skipif(RELEASE < (4, 45), reason="no static cache of this kind")


@needs_static
@both_routes
def test_a_static_cache_gives_the_same_tokens(model, expected, route):
    assert route(model, PROMPTS, cache_implementation="static") == expected


GRAPHS = []


def counting(graph, example_inputs):
    """A backend of torch.compile that needs no compiler, and counts the graphs that run."""

    def run(*inputs):
        GRAPHS.append(graph)
        return graph.forward(*inputs)

    return run


@needs_stance
@needs_static
@both_routes
@pytest.mark.parametrize("part", ["forward", "layers"])
def test_a_compiled_model_gives_the_same_tokens(expected, route, part):
    model = make_model()
    torch._dynamo.reset()
    GRAPHS.clear()
    if part == "forward":
        model.forward = torch.compile(model.forward, backend=counting, dynamic=True)
    else:
        for layer in model.model.layers:
            layer.compile(backend=counting, dynamic=True)
    # Graphs of a prefill that ran before, without hooks, must not be taken for ReVisiT's.
    plain(model, PROMPTS, max_new_tokens=3)
    ran = len(GRAPHS)
    assert ran
    assert route(model, PROMPTS) == expected
    assert len(GRAPHS) > ran, "decoding after the prefill did not run compiled"


@pytest.mark.skipif(RELEASE < (4, 56), reason="its compiled decoding is not for every device")
def test_compiled_decoding_by_transformers_gives_the_same_tokens(expected):
    from transformers import CompileConfig

    torch._dynamo.reset()
    GRAPHS.clear()
    compiling = CompileConfig(backend=counting, mode=None, fullgraph=False)
    compiling._compile_all_devices = True
    settings = {"cache_implementation": "static", "compile_config": compiling}
    assert attached(make_model(), PROMPTS, **settings) == expected
    assert GRAPHS


@pytest.mark.skipif(RELEASE < (4, 51), reason="this release cannot read a prompt in chunks")
@both_routes
@pytest.mark.parametrize("size", [1, 3, 5, 100])
def test_a_prompt_read_in_chunks_gives_the_same_tokens(model, route, size):
    # Releases 4.x position a padded prompt wrongly when they read it in chunks, ReVisiT or not.
    prompts = PROMPTS if RELEASE >= (5, 0) else PROMPTS[1:2]
    assert route(model, prompts, prefill_chunk_size=size) == route(model, prompts)


def inside(run, results):
    """A logits processor that runs another generation between two steps."""

    def process(_input_ids, scores):
        results.append(run())
        return scores

    return LogitsProcessorList([process])


@both_routes
@pytest.mark.parametrize("inner_route", [attached, enabled, plain])
def test_a_generation_inside_another_does_not_mix_with_it(model, route, inner_route):
    outer, inner = attached(model, PROMPTS[:1]), attached(model, PROMPTS[1:])
    results = []  # also of a plain call: it is in the block, or the model is enabled
    processors = inside(lambda: inner_route(model, PROMPTS[1:]), results)
    assert route(model, PROMPTS[:1], logits_processor=processors) == outer
    assert results == [inner] * 6


def test_another_model_may_generate_inside(model, expected):
    other, results = make_model(1), []
    processors = inside(lambda: plain(other, PROMPTS), results)
    assert attached(model, PROMPTS, logits_processor=processors) == expected
    assert results == [plain(other, PROMPTS)] * 6


@pytest.mark.parametrize("route", [attached, plain], ids=["attached", "enabled"])
def test_threads_on_one_model_do_not_mix(model, route):
    """Each thread has another prompt; a barrier before every step makes them interleave."""
    prompts = [PROMPTS[:1], PROMPTS[1:2], PROMPTS[2:], PROMPTS]
    expected = [[attached(model, each)] * 3 for each in prompts]
    before = hooks(model)
    barrier = threading.Barrier(len(prompts), timeout=60)

    def wait(*_):
        barrier.wait()

    def run(each):
        try:
            return [route(model, each) for _ in range(3)]
        except BaseException:
            barrier.abort()
            raise

    with nullcontext() if route is attached else enabling(model):
        handle = model.register_forward_pre_hook(wait)
        with ThreadPoolExecutor(len(prompts)) as pool:
            results = list(pool.map(run, prompts))
        handle.remove()
    assert results == expected
    assert hooks(model) == before
    assert "generate" not in vars(model)
    assert "generate" not in vars(model)
