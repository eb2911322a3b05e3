"""What requests and engines are refused for, before a worker sees them."""

import asyncio
import json
import random
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.generate.base.serving import GenerateBaseServing
from vllm.entrypoints.serve.engine.serving import BaseServing
from vllm.exceptions import VLLMValidationError
from vllm.v1.core.sched.scheduler import Scheduler

import revisit.vllm
import vllm_engines as engines
from revisit import ReVisiTConfig
from revisit.vllm import plugin
from revisit.vllm.admission import admit, admitted_bytes, asked_settings, check_engine
from vllm_models import QUESTIONS, Question

REFUSED = {
    "not an object": (5, "must be an object or true, got 5"),
    "a list": ([1], "must be an object or true"),
    "not JSON": ("{alpha: 1}", "it is not JSON"),
    "JSON too deep": ("[" * 100_000, "it is not JSON"),
    "JSON of a number": ("3", "must be an object or true, got 3"),
    "an unknown key": ({"beta": 1}, r"no settings \['beta'\]; there are \['alpha', 'divergence'"),
    "a key that is no string": ({3: 1}, r"no settings \['3'\]"),
    "alpha too large": ({"alpha": 2}, r"alpha .* must be in \[0, 1\], got 2"),
    "alpha not a number": ('{"alpha": NaN}', r"must be in \[0, 1\], got nan"),
    "alpha true": ({"alpha": True}, r"must be in \[0, 1\], got True"),
    "1, as HTTP hands on true": (1, r"got 1; .* or {\"revisit\": \"true\"}"),
    "alpha a string": ({"alpha": "1e-5"}, r"must be in \[0, 1\], got '1e-5'"),
    "an unknown divergence": ({"divergence": "kl"}, r"divergence must be one of \('ag', 'js'\)"),
    "a divergence of a wrong type": ({"divergence": ["ag"]}, "divergence must be one of"),
    "an unknown selection": ({"selection": "median"}, "selection must be one of"),
    "a seed beyond 64 bits": (f'{{"seed": {2**80}}}', "seed must fit 64 bits"),
    "layers": ({"layers": "all"}, "layers is the engine's, for all requests, and here 'last'"),
    "some layers": ({"layers": [1, 2]}, "layers is the engine's"),
    "a cache": ({"cache_bytes": 7}, "cache_bytes is the engine's, .* here 1073741824"),
    "a trace": ({"trace": True}, r"no settings \['trace'\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_setting_is_refused_with_what_is_right(name, started):
    settings, message = REFUSED[name]
    llm = started("qwen", "last")
    with pytest.raises(VLLMValidationError, match=message) as refused:
        engines.generate(llm, [(QUESTIONS[0], None)], extra_args={"revisit": settings})
    assert 'send {"revisit": {"alpha": 1e-05}} in SamplingParams.extra_args' in str(refused.value)
    assert not llm.llm_engine.has_unfinished_requests()


TEXT = Question("What is a dog?", ())


def test_a_prompt_without_an_image_is_refused_or_decoded_plainly_where_asked(started, references):
    llm = started("qwen", "last")
    settings = engines.params(ReVisiTConfig())
    with pytest.raises(VLLMValidationError, match=r"no image or video .*\"no_vision\": \"plain\""):
        llm.generate([TEXT.for_vllm()], [settings], use_tqdm=False)
    settings.extra_args["revisit"]["no_vision"] = "plain"
    (output,) = llm.generate([TEXT.for_vllm()], [settings], use_tqdm=False)
    assert list(output.outputs[0].token_ids) == references["qwen"](TEXT, None)


def test_a_request_that_does_not_ask_is_left_alone(started, references):
    llm, asked = started("qwen", "last"), [(QUESTIONS[0], None)]
    for extra in ({"revisit": None}, {"revisit": False}, {"revisit": "null"}, {"other": 1}):
        assert engines.generate(llm, asked, extra_args=extra) == references["qwen"].all(asked)


PLAIN = SimpleNamespace(additional_config={}, model_config=SimpleNamespace(logits_processors=None))


def test_an_engine_that_was_not_given_the_processor_refuses_to_be_asked(started):
    config = started("qwen", "last").llm_engine.vllm_config
    place = SimpleNamespace(offset=1, length=64, is_embed=None)
    image = SimpleNamespace(modality="image", mm_position=place)
    request = SimpleNamespace(
        sampling_params=SamplingParams(extra_args={"revisit": True}), mm_features=[image]
    )
    with pytest.raises(VLLMValidationError, match="was started without --logits-processors"):
        admit(request, PLAIN)
    admit(request, config)
    assert request.sampling_params.skip_reading_prefix_cache
    assert admitted_bytes(request.sampling_params) == 64 * 2 * 64 * 4


def test_a_prompt_that_would_never_find_room_is_refused(started):
    config = started("qwen", "last").llm_engine.vllm_config
    place = SimpleNamespace(offset=0, length=3 * 2**20, is_embed=None)
    video = SimpleNamespace(modality="video", mm_position=place)
    params = SamplingParams(extra_args={"revisit": True})
    with pytest.raises(VLLMValidationError, match=r"has 3145728 vision tokens, .* smaller images"):
        admit(SimpleNamespace(sampling_params=params, mm_features=[video]), config)


@pytest.mark.parametrize("beams", [False, True])
def test_over_http_it_refuses_before_the_prompt_is_read(beams, monkeypatch):
    monkeypatch.setattr(GenerateBaseServing, "_check_model", BaseServing._check_model)
    plugin._begin_admission(lambda *_: None, None, PLAIN)
    server = SimpleNamespace(engine_client=SimpleNamespace(vllm_config=PLAIN))
    request = SimpleNamespace(vllm_xargs={"revisit": "{}"}, use_beam_search=beams)
    with pytest.raises(VLLMValidationError, match="was started without --logits-processors"):
        asyncio.run(GenerateBaseServing._check_model(server, request))


def test_a_refused_request_forgets_the_images_that_it_carried_alone(started, monkeypatch):
    llm = started("qwen", "last")
    cache, forgotten = llm.llm_engine.renderer.mm_processor_cache, []
    monkeypatch.setattr(cache, "invalidate", forgotten.append)
    engines.generate(llm, [(QUESTIONS[0], None)])

    def refused(images):  # offline, prompts are read before a request is looked at
        asked = [(Question("?", images), None)]
        with pytest.raises(VLLMValidationError, match="got 2"):
            engines.generate(llm, asked, extra_args={"revisit": {"alpha": 2}})

    refused((0,))
    assert forgotten == []
    refused((0, 40))
    assert len(forgotten) == 1


def test_settings_are_checked_before_an_image_is_read(started, monkeypatch):
    engine = started("qwen", "last").llm_engine
    monkeypatch.setattr(engine.renderer, "render_cmpl", lambda *_: pytest.fail("it was read"))
    params = SamplingParams(extra_args={"revisit": {"alpha": True}})
    with pytest.raises(VLLMValidationError, match="got True"):
        engine.add_request("bad", QUESTIONS[0].for_vllm(), params)


def test_what_the_caller_gave_is_not_changed(started):
    llm = started("qwen", "last")
    params = engines.params(ReVisiTConfig(alpha=1e-3))
    before = json.dumps(params.extra_args)
    llm.generate([QUESTIONS[0].for_vllm()], [params], use_tqdm=False)
    assert json.dumps(params.extra_args) == before
    assert params.skip_reading_prefix_cache is not True


def noise(draw):
    """What no request should say under "revisit", most of the time."""
    values = [
        *(None, True, False, 0, 1, -1, 2**70, 1e-5, 1e308, float("inf"), float("nan"), ""),
        *("ag", "js", "min", "{", "[]", '{"alpha": 0.1}', [], [1], {}, {"alpha": {}}, b"x"),
    ]
    names = ["alpha", "divergence", "selection", "seed", "no_vision", "layers", "trace", "", "x", 7]
    made = {draw.choice(names): draw.choice(values) for _ in range(draw.randint(0, 3))}
    kind = draw.random()
    if kind < 0.2:
        return draw.choice(values)
    if kind < 0.6:
        return made
    text = json.dumps({str(name): str(value) for name, value in made.items()})
    return text[: draw.randint(0, len(text))] if kind < 0.8 else text


def test_bad_requests_among_good_ones_change_no_answer_and_end_nothing(started, references):
    llm = started("qwen", "last")
    engine, draw = llm.llm_engine, random.Random(1)
    config = ReVisiTConfig(alpha=1e-3)
    refused, done = 0, {}

    def step_engine():
        for output in engine.step():
            if output.finished:
                done[output.request_id] = list(output.outputs[0].token_ids)

    for number in range(500):
        params = engines.params(None, 2)
        params.extra_args = {"revisit": noise(draw)}
        try:
            engine.add_request(f"bad-{number}", QUESTIONS[1].for_vllm(), params)
        except VLLMValidationError:
            refused += 1
        if number % 25 == 0:
            question = QUESTIONS[number // 25 % len(QUESTIONS)]
            engine.add_request(f"good-{number}", question.for_vllm(), engines.params(config))
        step_engine()
    while engine.has_unfinished_requests():
        step_engine()
    assert 250 < refused < 500
    assert len(done) == 500 - refused + 20
    for number in range(0, 500, 25):
        expected = references["qwen"](QUESTIONS[number // 25 % len(QUESTIONS)], config)
        assert done[f"good-{number}"] == expected


ENGINES = {
    "pipeline parallelism": {"parallel": {"pipeline_parallel_size": 2}},
    "prefill context parallelism": {"parallel": {"prefill_context_parallel_size": 2}},
    "a KV transfer": {"kv_transfer_config": object()},
    "LoRA adapters": {"lora_config": object()},
    "batch-sharded sampling": {"parallel": {"enable_batch_sharded_sampling": True}},
    "an encoder-decoder": {"model": {"is_encoder_decoder": True}},
    "a model that takes no images": {"model": {"is_multimodal_model": False}},
    "sleep mode": {"model": {"enable_sleep_mode": True}},
    "a weight transfer": {"weight_transfer_config": object()},
    "a scheduler that is none of vLLM's": {"scheduler": object},
    "must be an object, got 3": {"additional_config": {"revisit": 3}},
    "has no settings ['alhpa']": {"additional_config": {"revisit": {"alhpa": 1}}},
    "has no settings ['trace']": {"additional_config": {"revisit": {"trace": True}}},
    "layers must be one of": {"additional_config": {"revisit": {"layers": "every"}}},
    "cache_bytes=9 has room for no image: the least are 32768": {
        "additional_config": {"revisit": {"cache_bytes": 9}}
    },
    "layers [9] are out of range": {"additional_config": {"revisit": {"layers": [9]}}},
}


@pytest.mark.parametrize("message", ENGINES)
def test_an_engine_that_cannot_serve_it_is_refused(message):
    changed = ENGINES[message]
    model = {"is_encoder_decoder": False, "is_multimodal_model": True, "enable_sleep_mode": False}
    parallel = {"pipeline_parallel_size": 1, "enable_batch_sharded_sampling": None}
    text = SimpleNamespace(num_hidden_layers=4, hidden_size=64)
    model["dtype"] = torch.float32
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(**parallel | changed.get("parallel", {})),
        model_config=SimpleNamespace(hf_text_config=text, **model | changed.get("model", {})),
        kv_transfer_config=changed.get("kv_transfer_config"),
        lora_config=changed.get("lora_config"),
        weight_transfer_config=changed.get("weight_transfer_config"),
        scheduler_config=SimpleNamespace(
            get_scheduler_cls=lambda: changed.get("scheduler", Scheduler)
        ),
        additional_config=changed.get("additional_config", {}),
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        check_engine(config)


def test_an_engine_is_refused_before_its_worker_starts(folders):
    with pytest.raises(ValueError, match=r"layers \[5\] are out of range"):
        engines.start(folders["qwen"], [5])


def test_a_head_that_the_model_scales_otherwise_is_refused_at_start(folders, monkeypatch):
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration as Model

    original = Model.compute_logits
    monkeypatch.setattr(Model, "compute_logits", lambda self, states: 0.5 * original(self, states))
    with pytest.raises(ValueError, match="are not its LM head's product"):
        engines.start(folders["qwen"], "last")


def test_a_head_that_computes_in_another_dtype_is_refused_at_start(folders):
    with pytest.raises(ValueError, match=r"computes in torch.float32, .*leave head_dtype out"):
        engines.start(folders["qwen"], dtype="bfloat16", hf_overrides={"head_dtype": "float32"})


def test_weights_that_are_reloaded_are_refused(started):
    with pytest.raises(ValueError, match="start the engine anew"):
        started("qwen", "last").collective_rpc("reload_weights")


def test_another_release_of_vllm_is_refused_before_a_process_is_started(monkeypatch, folders):
    monkeypatch.setattr("vllm.__version__", "0.34.0")
    original = EngineArgs.create_engine_config
    monkeypatch.setattr(EngineArgs, "create_engine_config", original)
    plugin.install()
    sentence = r"^ReVisiT was tested with vLLM 0\.32\.0, 0\.33\.0 .* this is 0\.34\.0\. Install one"
    with pytest.raises(RuntimeError, match=sentence):
        revisit.vllm.ReVisiT  # noqa: B018
    started = EngineArgs(str(folders["qwen"]), logits_processors=["revisit.vllm:ReVisiT"])
    with pytest.raises(RuntimeError, match=sentence):
        started.create_engine_config()
    EngineArgs(str(folders["qwen"])).create_engine_config()


def test_settings_that_a_request_names_replace_the_engines():
    engine = ReVisiTConfig(layers="all", alpha=1e-2, divergence="js")
    assert asked_settings('{"alpha": 0.5}', engine) == replace(engine, alpha=0.5)


@pytest.mark.parametrize("layers", ["all", [1, 3]])
def test_a_request_may_name_the_layers_that_the_engine_has(layers):
    engine = ReVisiTConfig(layers=layers)
    asked = asked_settings({"layers": layers, "alpha": 0.5}, engine)
    assert asked == replace(engine, alpha=0.5)
