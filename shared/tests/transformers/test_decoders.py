"""Other decoders than ReVisiT in `generate`, against whole passes without caches.

The reference decodes by full forward passes, each over the whole sequence so far, of a second copy
of the model, and computes the formulas in float64.
"""

import copy
import math
import threading
import time
from functools import partial
from itertools import chain

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

import families
import revisit
from decoding import (
    ASKED,
    CONFIGS,
    NAMES,
    SAMPLED,
    decode,
    expected,
    made,
    mixed_up,
    refused,
    second,
    together,
)
from releases import RELEASE
from revisit import (
    CODEConfig,
    DeCoConfig,
    DoLaConfig,
    ICDConfig,
    M3IDConfig,
    PAIConfig,
    ReVisiTConfig,
    RITUALConfig,
    SIDConfig,
    VCDConfig,
    VISTAConfig,
)
from small_llama import hooks
from whole_passes import SHARE


@pytest.fixture(params=NAMES)
def family(request):
    return request.param


def repeated(name, settings):
    """As `made`, without the prompts whose images this release does not repeat as a whole."""
    model, other, rows = made(name)
    count = max(settings.get(key, 1) for key in ("num_beams", "num_return_sequences"))
    return model, other, [row for row in rows if count == 1 or not mixed_up(model, row, count)]


@pytest.mark.parametrize("asked", [{"num_beams": 3}, SAMPLED], ids=str)
@pytest.mark.parametrize("name", [*CONFIGS, "ReVisiT"])
def test_rows_whose_images_the_release_mixes_up_are_refused(family, name, asked):
    """Releases 4.x repeat each image by itself, and not the images of a prompt together, unless a
    model counts its images or holds them by row: plain decoding is wrong there as well."""
    model, _, rows = made(family)
    several = [len(row.get("pixel_values", ())) > 1 for row in rows]
    mixed = [mixed_up(model, row, 3) for row in rows]
    strips = RELEASE < (5, 0) and family in ("llava", "gemma3")
    assert mixed == [strips and more for more in several]
    config = CONFIGS.get(name, ReVisiTConfig(no_vision="plain"))
    if strips:
        message = r"the rows of prompts \[1, 2\] of the batch read different images"
        refused(model, config, together(rows), message, **second(name, together(rows)), **asked)


BEAMS = [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("settings", BEAMS, ids=str)
def test_tokens_are_those_of_two_whole_passes_a_step(family, name, settings):
    model, other, rows = repeated(family, settings)
    wanted = [expected(other, name, row, **settings) for row in rows]
    assert decode(model, name, together(rows), **settings) == list(chain(*wanted))
    assert [decode(model, name, row, **settings) for row in rows] == wanted


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    ("settings", "beams"),
    [
        ({"use_cache": False}, {}),
        ({"use_cache": False}, {"num_beams": 3}),
        ({"cache_implementation": "static"}, {"num_beams": 3}),
    ],
    ids=str,
)
def test_another_cache_gives_the_same_tokens(family, name, settings, beams):
    model, _, rows = repeated(family, beams)
    wanted = decode(model, name, together(rows), **beams)
    assert decode(model, name, together(rows), **beams, **settings) == wanted


@pytest.mark.parametrize("name", CONFIGS)
def test_sampling_draws_from_the_reference_s_distribution(family, name):
    model, other, rows = repeated(family, SAMPLED)
    torch.manual_seed(3)
    tokens = decode(model, name, rows[0], **SAMPLED)
    torch.manual_seed(3)
    assert tokens == expected(other, name, rows[0], **SAMPLED)
    assert len({tuple(row) for row in tokens}) > 1


# What none of the second streams changes


OFF = {
    "VCD": VCDConfig(alpha=0, beta=SHARE),
    "RITUAL": RITUALConfig(alpha=0, beta=SHARE),
    "M3ID": M3IDConfig(gamma=0, beta=SHARE),
    "CODE": CODEConfig(k=0),
    "ICD": ICDConfig(alpha=0, beta=SHARE),
    "DeCo": DeCoConfig(alpha=0),
    "VISTA": VISTAConfig(weight=0, steering=0),
    "PAI": PAIConfig(gamma=1, alpha=0, beta=SHARE),
    "SID": SIDConfig(alpha=0, beta=SHARE),
    "SID, all seen": SIDConfig(beta=SHARE, rank=99),
}


@pytest.mark.parametrize("name", OFF)
def test_without_its_weight_a_decoder_gives_greedy_s_tokens(family, name):
    model, _, rows = made(family)
    inputs = together(rows)
    settings = {"do_sample": False, "max_new_tokens": 6}
    greedy = model.generate(**inputs, **settings).tolist()
    with revisit.attach(model, OFF[name]):
        assert model.generate(**inputs, **second(name, inputs), **settings).tolist() == greedy
    assert model.generate(**inputs, **settings).tolist() == greedy


@pytest.mark.parametrize("name", CONFIGS)
def test_enable_gives_what_attach_gives(name):
    model, _, rows = made("qwen2_5_vl")
    inputs = together(rows)
    wanted = decode(model, name, inputs)
    revisit.enable(model, ReVisiTConfig())
    revisit.enable(model, CONFIGS[name])  # another decoder takes the place
    try:
        output = model.generate(**inputs, **second(name, inputs), do_sample=False, **ASKED)
    finally:
        revisit.disable(model)
    assert output[:, inputs["input_ids"].shape[1] :].tolist() == wanted


class Inside(LogitsProcessor):
    """Runs another decoder's generation between the steps of one."""

    def __init__(self, run):
        self.run = run
        self.results = []

    def __call__(self, input_ids, scores):
        self.results.append(self.run())
        return scores


# Each decoder outside and inside of itself, and of one that has a second stream.
PAIRS = [(outer, inner) for outer in CONFIGS for inner in CONFIGS if "VCD" in (outer, inner)]
PAIRS += [("PAI", "SID"), ("SID", "PAI")]


@pytest.mark.parametrize(
    ("outer", "inner"), [*PAIRS, *((name, name) for name in CONFIGS if name != "VCD")]
)
def test_a_generation_inside_another_does_not_mix_with_it(outer, inner):
    model, _, rows = made("llava")
    wanted, other = decode(model, outer, rows[0]), decode(model, inner, rows[1])
    inside = Inside(lambda: decode(model, inner, rows[1]))
    assert decode(model, outer, rows[0], logits_processor=LogitsProcessorList([inside])) == wanted
    assert inside.results == [other] * ASKED["max_new_tokens"]


@pytest.mark.parametrize("name", CONFIGS)
def test_no_hook_and_no_offset_is_left(name):
    model, _, rows = made("qwen2_5_vl")
    model.generate(**rows[1], **ASKED)  # some releases leave hooks on first use
    before, offsets = hooks(model), model.model.rope_deltas.tolist()
    decode(model, name, rows[1])
    assert hooks(model) == before
    assert model.model.rope_deltas.tolist() == offsets

    def fail(*_):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        decode(model, name, rows[1], stopping_criteria=[fail])
    assert hooks(model) == before


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_process_sets_for_pytorch_changes_no_token(name):
    model, _, rows = made("qwen2_5_vl")
    inputs = together(rows)
    expected = decode(model, name, inputs)
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert decode(model, name, inputs) == expected
        torch.set_default_dtype(torch.float64)
        with torch.inference_mode():
            assert decode(model, name, inputs) == expected
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_default_dtype(torch.float32)


# Processors that ban all that a decoder has kept

ONLY = {  # the likeliest token is all of V_cons
    "ReVisiT": ReVisiTConfig(alpha=1.0, no_vision="plain"),
    "VCD": VCDConfig(beta=1.0),
    "RITUAL": RITUALConfig(beta=1.0),
    "M3ID": M3IDConfig(gamma=4.0, beta=1.0),  # the weight of token 512 after three
    "DoLa": DoLaConfig(relative_top=1.0),
    "CODE": CODEConfig(k=0.0),
    "ICD": ICDConfig(beta=1.0),
    "DeCo": DeCoConfig(top_k=1),
}
BANS = [
    {"suppress_tokens": list(range(0, 90, 2))},
    {"no_repeat_ngram_size": 1},
    {"prefix_allowed_tokens_fn": lambda _row, ids: [10 + len(ids) % 9, 35, 37, 40, 44]},
]


class WithoutTheBest(LogitsProcessor):
    """Bans the token of the highest score."""

    def __call__(self, input_ids, scores):
        return scores.scatter(1, scores.argmax(1, keepdim=True), -math.inf)


@pytest.mark.parametrize("name", ONLY)
@pytest.mark.parametrize("bans", BANS, ids=lambda bans: next(iter(bans)))
def test_the_best_allowed_token_is_the_model_s(name, bans):
    model, _, rows = made("llava")
    inputs, settings = together(rows), {"do_sample": False, "max_new_tokens": 6, **bans}
    wanted = model.generate(**inputs, **settings).tolist()
    with revisit.attach(model, ONLY[name]):
        decided = model.generate(**inputs, **second(name, inputs), **settings)
    assert decided.tolist() == wanted


@pytest.mark.parametrize("name", ONLY)
@pytest.mark.parametrize("asked", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 0}], ids=str)
def test_where_all_that_is_kept_is_banned_the_model_decides(name, asked):
    """Also in beams, by its log-probabilities; sampling takes the likeliest token."""
    model, _, rows = made("llava")
    inputs, settings = rows[0], {"do_sample": False, "max_new_tokens": 6}
    settings["logits_processor"] = LogitsProcessorList([WithoutTheBest()])
    beams = {"num_beams": asked.get("num_beams", 1)}
    wanted = model.generate(**inputs, **settings, **beams).tolist()
    with revisit.attach(model, ONLY[name]):
        output = model.generate(
            **inputs,
            **second(name, inputs),
            **{**settings, **asked},
            output_scores=True,
            return_dict_in_generate=True,
        )
    assert output.sequences.tolist() == wanted
    assert all(not scores.isnan().any() for scores in output.scores)


# What is refused


@pytest.mark.parametrize("config", [ReVisiTConfig(), DoLaConfig()], ids=str)
@pytest.mark.parametrize("route", ["enable", "attach"])
def test_a_model_inside_another_is_never_decoded_plainly_in_silence(config, route):
    model = families.make("blip-2")
    inner, row = model.language_model, families.made("blip-2")[1][0]
    settings = {"max_new_tokens": 3, "do_sample": False}
    text = {"input_ids": row["input_ids"], "attention_mask": row["attention_mask"]}
    before, alone = dict(vars(inner)), inner.generate(**text, **settings).tolist()
    block = revisit.attach(model, config)
    if route == "enable":
        revisit.enable(model, config)
    else:
        block.__enter__()
    for call in (inner.generate, partial(type(inner).generate, inner)):
        with pytest.raises(ValueError, match=r"call model\.generate of the Blip2For"):
            call(**text, **settings)
    model.generate(**row, **settings)
    with revisit.attach(inner, M3IDConfig()), pytest.raises(ValueError, match="vision"):
        inner.generate(**text, **settings)  # the settings of the inner model count
    if route == "enable":
        revisit.disable(model)
    else:
        block.__exit__(None, None, None)
    assert vars(inner) == before
    assert inner.generate(**text, **settings).tolist() == alone


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "asked", [{"prompt_lookup_num_tokens": 2}, {"guidance_scale": 1.5}], ids=str
)
def test_other_decodings_are_refused_by_name(name, asked):
    model, _, rows = made("llava")
    decoder = name.split(",")[0]
    refused(
        model,
        CONFIGS[name],
        rows[0],
        f"{decoder} works with .* take out {next(iter(asked))}",
        **asked,
    )


def test_settings_that_read_inside_a_model_are_refused_where_none_is_read():
    model, _, _ = made("llava")
    with pytest.raises(ValueError, match="leave out lm_head and decoder"):
        revisit.enable(model, VCDConfig(), decoder=model.model.language_model)
    with pytest.raises(ValueError, match="config must be one of ReVisiTConfig"):
        revisit.enable(model, {"alpha": 1})


@pytest.mark.parametrize("name", CONFIGS)
def test_threads_on_one_enabled_model_do_not_mix(name):
    model, _, rows = made("llava")
    wanted = [decode(model, name, row) for row in rows]
    barrier = threading.Barrier(len(rows), timeout=60)

    def pause(*_):
        time.sleep(0.001)  # so that they take turns

    handle = model.register_forward_hook(pause)
    results = [None] * len(rows)

    def run(number):
        barrier.wait()
        results[number] = decode(model, name, rows[number])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(rows))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handle.remove()
    assert results == wanted


@pytest.mark.parametrize("name", CONFIGS)
def test_a_copy_of_an_enabled_model_decodes_as_it_does(name):
    model, _, rows = made("llava")
    wanted = decode(model, name, rows[1])
    revisit.enable(model, CONFIGS[name])
    twin = copy.deepcopy(model)
    revisit.disable(model)
    output = twin.generate(**rows[1], **second(name, rows[1]), do_sample=False, **ASKED)
    assert output[:, rows[1]["input_ids"].shape[1] :].tolist() == wanted


@pytest.mark.parametrize("kind", [PAIConfig, SIDConfig, VISTAConfig])
def test_prompts_read_in_parts_are_refused_before_anything_runs(kind):
    model, _, rows = made("llava")
    ran = []
    handle = model.register_forward_pre_hook(lambda *_: ran.append(1))
    refused(model, kind(), rows[0], "leave out prefill_chunk_size", prefill_chunk_size=3)
    handle.remove()
    assert not ran
    text = {name: rows[0][name][:, :4] for name in ("input_ids", "attention_mask")}
    cache = model.model.language_model(text["input_ids"] % 5).past_key_values
    refused(model, kind(), rows[0], "leave out past_key_values", past_key_values=cache)
    assert cache.get_seq_length() == 4
