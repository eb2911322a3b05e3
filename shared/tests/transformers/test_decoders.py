"""Other decoders than ReVisiT in `generate`, against whole passes without caches.

The reference decodes by full forward passes, each over the whole sequence so far, of a second copy
of the model, and computes the formulas in float64.
"""

import copy
import math
import threading
import time
from functools import cache, partial
from itertools import chain

import pytest
import torch
import transformers
from transformers import LogitsProcessor, LogitsProcessorList

import families
import revisit
import whole_passes
from families import FAMILIES, batch, prompts
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
from revisit.core.head import LMHead
from revisit.transformers.layer_logits import _layer_logits
from small_llama import hooks
from tiny_configs import IMAGE, VISION_END, VISION_START
from whole_passes import SHARE, with_noise

CONFIGS = {
    **whole_passes.CONFIGS,
    "DoLa, high": DoLaConfig(layers="high", relative_top=SHARE),
    "PAI": PAIConfig(gamma=1.3, alpha=0.6, beta=SHARE),
    "SID": SIDConfig(alpha=2, beta=SHARE, layer=8, rank=3),  # of four layers, the first one chooses
}
INSTRUCTION, DESCRIPTION = [50, 51, 52], [60, 61, 62, 63]
# One has images of different sizes and positions of three kinds, one a sliding window, one rows
# that are filled up to the same number of images.
NAMES = ["llava", "qwen2_5_vl", "gemma3", "idefics3"]
ASKED = {"max_new_tokens": 5, "suppress_tokens": list(range(9))}  # no image out of nowhere
SAMPLED = {"do_sample": True, "top_k": 0, "num_return_sequences": 3}


@cache
def made(name):
    """A family's model, a copy of it, and prompts with one, three, two and no images."""
    family = FAMILIES[name]._replace(images=(1, 3, 2))
    model = families.make(name)
    rows = prompts(family, model)
    if not family.nested:  # there, all rows of a batch have images
        rows.append(without_image(rows[0]))
    return model, families.make(name), rows


def without_image(row):
    """A prompt of text, with the inputs that are as long as its tokens."""
    ids = torch.tensor([[1, 24, 40, 41, 43]])
    same = [name for name in row if row[name].shape == row["input_ids"].shape]
    types = {name: torch.zeros_like(ids) for name in same}
    return {**types, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def together(rows):
    """The prompts as one batch; not all have images."""
    seeing = [row for row in rows if len(row) == len(rows[0])]
    texts = [{name: row[name] for name in rows[-1]} for row in rows]
    return {**batch(seeing), **batch(texts)}


def second(name, inputs):
    """The second inputs of a decoder; any other pixels do for RITUAL."""
    pixels = [key for key in inputs if key.startswith("pixel_values")]
    if name == "RITUAL" and pixels:
        return {"second_inputs": {key: -0.6 * inputs[key] for key in pixels}}
    if name == "ICD":
        return {"second_inputs": rewritten(inputs, lambda ids: [ids[0], *INSTRUCTION, *ids[1:]])}
    if name == "CODE" and pixels:
        texts = rewritten(inputs, described)
        return {"second_inputs": {key: texts[key] for key in ("input_ids", "attention_mask")}}
    return {}


def described(ids):
    """One description in place of all image tokens."""
    first = ids.index(IMAGE) if IMAGE in ids else len(ids)
    rest = [word for word in ids[first:] if word != IMAGE]
    return [*ids[:first], *DESCRIPTION, *rest] if IMAGE in ids else ids


def rewritten(inputs, rewrite):
    """The inputs with other tokens, padded on the left anew."""
    rows = [
        ids[mask.bool()].tolist()
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    texts = [torch.tensor([rewrite(row)]) for row in rows]
    padded = batch([{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in texts])
    same = [key for key in inputs if inputs[key].shape == inputs["input_ids"].shape]
    types = {key: (padded["input_ids"] == IMAGE).long() for key in same}
    return {**inputs, **types, **padded}


def decode(model, name, inputs, **settings):
    """New tokens, row by row."""
    settings = {"do_sample": False, **ASKED, **settings}
    with revisit.attach(model, CONFIGS[name]):
        output = model.generate(**inputs, **second(name, inputs), **settings)
    return output[:, inputs["input_ids"].shape[1] :].tolist()


class Reference(whole_passes.Reference):
    """The decoder of the inputs of one prompt."""

    def __init__(self, model, name, inputs):
        self.vision = inputs["input_ids"][0] == IMAGE
        super().__init__(model, name, image=bool(self.vision.any()))
        self.inputs = inputs

    def run(self, stream, tokens):
        inputs = dict(self.inputs)
        if stream == "text":
            inputs = {"input_ids": self.without_images()}
        elif stream == "noisy":
            inputs |= {key: noise(inputs, key) for key in inputs if key.startswith("pixel_values")}
        elif stream != "first":
            other = second(self.name, inputs).get("second_inputs", {})
            inputs = dict(other) if "input_ids" in other else {**inputs, **other}
        ids = torch.cat([inputs["input_ids"], tokens.unsqueeze(0)], 1)
        for key in ("token_type_ids", "mm_token_type_ids"):
            if key in inputs:
                inputs[key] = torch.nn.functional.pad(inputs[key], (0, len(tokens)))
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for part in self.model.modules():
            if hasattr(part, "rope_deltas"):
                part.rope_deltas = None
        return self.model(**inputs, use_cache=False, output_hidden_states=True)

    def without_images(self):
        """The tokens (1, T) of the prompt's text."""
        fields = self.model.config.to_dict()
        marks = {fields.get("vision_start_token_id"), fields.get("boi_token_index")}
        gone = {IMAGE, VISION_START, VISION_END} if VISION_START in marks else {IMAGE}
        words = self.inputs["input_ids"][0].tolist()
        return torch.tensor([[word for word in words if word not in gone]])

    def changes(self, stream):
        """What VISTA, PAI and SID do in a pass."""
        layers, start = self.decoder.layers, len(self.vision) - 1
        if (self.name, stream) == ("PAI", "first"):
            return whole_passes.raised(layers[2:], self.vision, start, CONFIGS["PAI"].alpha)
        if (self.name, stream) == ("SID", "second"):
            return whole_passes.least_attended(layers, self.vision, start, CONFIGS["SID"].rank)
        return super().changes(stream)


def noise(inputs, name):
    """The images of one prompt with noise, each drawn anew."""
    values = inputs[name]
    if values.ndim == 2:
        pieces = values.split(inputs["image_grid_thw"].prod(1).tolist())
    else:
        pieces = values.flatten(0, -4)
    together = [with_noise(piece) for piece in pieces]
    return torch.cat(together) if values.ndim == 2 else torch.stack(together).view_as(values)


def expected(model, name, inputs, **settings):
    """The reference's new tokens."""
    return Reference(model, name, inputs).generate(ASKED["suppress_tokens"], **settings)


@pytest.fixture(params=NAMES)
def family(request):
    return request.param


def repeated(name, settings):
    """As `made`, without the prompts whose images this release does not repeat as a whole."""
    model, other, rows = made(name)
    count = max(settings.get(key, 1) for key in ("num_beams", "num_return_sequences"))
    return model, other, [row for row in rows if count == 1 or not mixed_up(model, row, count)]


def mixed_up(model, row, count):
    """Whether rows that plain `generate` makes of a prompt begin otherwise than it does alone."""
    begun = [
        model.generate(
            **row,
            num_beams=beams,
            max_new_tokens=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        ).logits[0]
        for beams in (1, count)
    ]
    return float((begun[0] - begun[1]).abs().max()) > 1e-3


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


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 0.1), (torch.bfloat16, 0.5), (torch.float64, 1e-4)]
)
@pytest.mark.parametrize("name", ["PAI", "SID"])
def test_changed_attention_is_about_the_same_in_another_precision(name, dtype, tolerance):
    model, _, rows = made("gemma3")
    scores = []
    for each in (model, copy.deepcopy(model).to(dtype)):
        inputs = {
            key: value.to(each.dtype) if value.is_floating_point() else value
            for key, value in together(rows).items()
        }
        with revisit.attach(each, CONFIGS[name]):
            output = each.generate(
                **inputs,
                **ASKED,
                do_sample=False,
                output_scores=True,
                return_dict_in_generate=True,
            )
        assert all(not step.isnan().any() for step in output.scores)
        scores.append(output.scores[0].double())
    kept = (torch.stack(scores) > -1e4).all(0)  # others are left out
    torch.testing.assert_close(scores[1][kept], scores[0][kept], atol=tolerance, rtol=0)


def test_dola_projects_in_the_head_s_dtype_under_mixed_precision():
    torch.manual_seed(0)
    head = LMHead(torch.randn(50, 16))
    states = torch.randn(2, 2, 16)
    expected = _layer_logits(head, states)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(_layer_logits(head, states), expected)


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


def refused(model, config, inputs, message, **settings):
    with pytest.raises(ValueError, match=message), revisit.attach(model, config):
        model.generate(**{**inputs, "do_sample": False, "max_new_tokens": 2, **settings})


def test_ritual_says_what_to_pass():
    model, _, rows = made("llava")
    refused(
        model, RITUALConfig(), rows[0], r"second_inputs=\{'pixel_values': \.\.\.\} .*second_image"
    )


def test_second_inputs_must_be_as_large_and_known():
    model, _, rows = made("qwen2_5_vl")
    fewer = {"second_inputs": {"pixel_values": rows[1]["pixel_values"][:4]}}
    refused(model, RITUALConfig(), rows[1], "as many vision tokens", **fewer)
    grids = {"second_inputs": {"image_grid_thw": rows[1]["image_grid_thw"][:, [0, 2, 1]]}}
    refused(model, RITUALConfig(), rows[1], "as many vision tokens", **grids)
    unknown = {"second_inputs": {"pixels": rows[1]["pixel_values"]}}
    refused(model, VCDConfig(), rows[1], "has pixels, which is not among the arguments", **unknown)
    known = {"second_inputs": {"pixel_values": rows[1]["pixel_values"]}}
    refused(model, ReVisiTConfig(), rows[1], "no second stream", **known)
    refused(model, DoLaConfig(), rows[1], "no second stream", **known)


@pytest.mark.skipif(RELEASE < (4, 51), reason="this release cannot read a prompt in chunks")
@pytest.mark.parametrize("config", [VCDConfig(), RITUALConfig()], ids=["VCD", "RITUAL"])
@pytest.mark.parametrize("route", ["argument", "generation config"])
def test_second_images_in_chunks_are_refused_before_anything_runs(config, route):
    model, _, rows = made("llava")
    asked = {"prefill_chunk_size": 3}
    if route == "generation config":
        asked = {"generation_config": transformers.GenerationConfig(**asked)}
    ran, images = [], second("RITUAL", rows[0])
    handle = model.register_forward_pre_hook(lambda *_: ran.append(1))
    refused(model, config, rows[0], "leave out prefill_chunk_size", **images, **asked)
    handle.remove()
    assert not ran


def test_a_second_prompt_of_the_caller_is_read():
    model, _, rows = made("qwen2_5_vl")
    prompt = torch.tensor(
        [[word for word in rows[1]["input_ids"][0].tolist() if word > 8 or word == 1]]
    )
    same = {"second_inputs": {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}}
    assert decode(model, "M3ID", rows[1]) == decode(model, "M3ID", rows[1], **same)
    short = {"second_inputs": {"input_ids": prompt[:, :2]}}
    assert decode(model, "M3ID", rows[1]) != decode(model, "M3ID", rows[1], **short)


@pytest.mark.parametrize("name", ["VCD", "RITUAL", "M3ID"])
def test_a_model_that_hands_its_prompt_over_is_refused(name):
    model = families.make("blip-2")
    row = families.made("blip-2")[1][0]
    message = "hands the prompt over to another model"
    refused(model, CONFIGS[name], row, message, **second(name, row))


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


def test_noise_does_not_reach_what_an_image_is_filled_up_with():
    model, _, rows = made("pixtral")  # of different sizes, in one tensor
    alone = [decode(model, "VCD", row)[0] for row in rows]
    assert decode(model, "VCD", together(rows)) == alone


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


@pytest.mark.parametrize("kind", [PAIConfig, SIDConfig])
def test_attention_that_cannot_be_changed_is_refused_with_what_can(kind):
    model = families.make("llava")
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="attn_implementation='sdpa', or pass alpha=0"):
        revisit.enable(model, kind())
    with revisit.attach(model, kind(alpha=0)):
        pass
    if "lfm2_vl" in FAMILIES:  # some of its layers have a convolution in place of attention
        with pytest.raises(ValueError, match="of Lfm2DecoderLayer does not go through"):
            revisit.enable(families.make("lfm2_vl"), kind())


@pytest.mark.parametrize("kind", [PAIConfig, SIDConfig])
def test_attention_that_is_no_longer_intercepted_is_noticed(kind):
    model = families.make("llava")
    model.register_forward_pre_hook(lambda *_: model.set_attn_implementation("eager"))
    refused(model, kind(), made("llava")[2][0], "saw 0 layers attend in a step, not")


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


def test_sid_s_second_stream_has_no_other_inputs():
    model, _, rows = made("llava")
    other = {"second_inputs": {"pixel_values": rows[0]["pixel_values"]}}
    refused(model, SIDConfig(), rows[0], "reads the same inputs: leave out second_inputs", **other)


@pytest.mark.parametrize("name", ["PAI", "SID"])
def test_the_attention_interface_is_as_it_was(name):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model, _, rows = made("llava")
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    decode(model, name, rows[0])
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before


def test_a_layer_above_the_last_one_below_is_refused():
    model, _, _ = made("llava")
    for kind in (DeCoConfig, VISTAConfig):
        with pytest.raises(ValueError, match=r"layers \[4\] are out of range"):
            revisit.enable(model, kind(layers=[4]))
