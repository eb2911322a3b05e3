"""A generation of a logits processor sees the whole prompts in one thread, or raises an error."""

import copy

import pytest
import torch
from transformers import LogitsProcessorList

import revisit
from releases import RELEASE
from revisit import M3IDConfig, ReVisiTConfig, RITUALConfig, VCDConfig
from routes import CONFIG, attached, both_routes, enabled, in_another_thread, plain
from small_llama import PROMPTS, batch, hooks, make_model


class WithItsOwnLoop(type(make_model())):
    """A model whose `generate` calls no logits processor, as Janus's in text mode."""

    def generate(self, input_ids, attention_mask, max_new_tokens, **_):
        for _ in range(max_new_tokens):
            logits = self(input_ids=input_ids, attention_mask=attention_mask).logits[:, -1]
            input_ids = torch.cat([input_ids, logits.argmax(1, keepdim=True)], 1)
            ones = attention_mask.new_ones(len(input_ids), 1)
            attention_mask = torch.cat([attention_mask, ones], 1)
        return input_ids


@both_routes
def test_a_generation_that_called_no_processor_is_an_error(route):
    model = make_model()
    model.__class__ = WithItsOwnLoop
    with pytest.raises(ValueError, match="without calling ReVisiT"):
        route(model, PROMPTS[:1])
    (sequence,) = plain(model, PROMPTS[:1])
    assert len(sequence) == len(PROMPTS[0]) + 6


def test_a_processor_of_another_model_says_what_to_do(model):
    other = make_model(1)
    with (
        revisit.attach(model, CONFIG) as processor,
        pytest.raises(ValueError, match=r"decode by model\.generate of that model"),
    ):
        plain(other, PROMPTS, logits_processor=LogitsProcessorList([processor]))


def test_a_processor_without_a_prefill_says_what_to_do(model):
    with (
        revisit.attach(model, ReVisiTConfig()) as processor,
        pytest.raises(ValueError, match="saw no prefill"),
    ):
        processor(torch.ones(1, 3, dtype=torch.long), torch.zeros(1, 90))


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
    retry = plain(model, PROMPTS[:1], **{name: cache})
    assert retry == plain(model, PROMPTS[:1], **{name: untouched})
    assert retry == plain(model, PROMPTS[:1])


def test_a_generation_in_a_loop_of_ours_is_refused_or_goes_on_in_another_thread(model):
    processor = revisit.ReVisiTLogitsProcessor(model, CONFIG)
    inputs, before = batch(PROMPTS[:1]), hooks(model)

    def steps():
        with processor.generation(inputs):
            with torch.no_grad():  # of a thread: not held across a `yield`
                logits = model(**inputs).logits[:, -1]
            yield
            yield processor(inputs["input_ids"], logits)

    generator = steps()
    in_another_thread(generator.__next__)
    with pytest.raises(ValueError, match="saw no prefill"):
        next(generator)
    assert hooks(model) == before
    generator = steps()
    assert next(generator) is None
    in_another_thread(generator.close)
    assert attached(model, PROMPTS[:1]) == enabled(model, PROMPTS[:1])
