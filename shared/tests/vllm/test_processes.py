"""Engines in other processes: Model Runner V2, tensor parallelism, an HTTP server."""

import json
import os
import random
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from revisit import ReVisiTConfig
from vllm_models import QUESTIONS, STEPS, mixed
from vllm_process import generate_elsewhere
from vllm_server import FAILING_SEED


def test_model_runner_v2_equals_transformers(folders, references, tmp_path):
    asked = mixed("last", QUESTIONS[:4])
    answers = generate_elsewhere(folders["llava"], "last", tmp_path, "--v2", "--plain", "--broken")
    assert (answers["runner"], answers["decoded by"]) == ("RunnerV2", "PyTorchSteps")
    assert answers["tokens"] == references["llava"].all(asked)
    fails_after_two_tokens(answers["broken"], "last", references["llava"])


def test_the_kernels_in_model_runner_v2_equal_transformers(folders, references, tmp_path):
    """In Triton's interpreter, where a step takes a second; at last with a row that holds NaN."""
    steps, reference = 5, references["qwen"]
    flags = ("--v2", "--questions", "1", "--steps", str(steps), "--spoiled", "3")
    answers = generate_elsewhere(folders["qwen"], "all", tmp_path, *flags)
    assert (answers["runner"], answers["decoded by"]) == ("RunnerV2", "KernelSteps")
    assert answers["tokens"] == reference.all(mixed("all", QUESTIONS[:1]), steps)
    config = ReVisiTConfig(layers="all", alpha=1e-3)
    expected = reference.all([(question, config) for question in QUESTIONS[2:4]], steps)
    ends = [reason for _, reason, _ in answers["spoiled"]]
    assert sorted(ends) == ["error", "length"]
    for right, (tokens, reason, why) in zip(expected, answers["spoiled"], strict=True):
        assert tokens == (right if reason == "length" else right[:2])
        assert reason == "length" or "the model's logits hold NaN" in why


def fails_after_two_tokens(broken, layers, reference):
    """The request of which the third step failed on one rank, and the plain one beside it."""
    (tokens, reason, why), (plain, ended, _) = broken
    assert tokens == reference(QUESTIONS[0], ReVisiTConfig(layers=layers, alpha=1e-3))[:2]
    assert reason == "error" and why.endswith("MemoryError: no room here")
    assert (plain, ended) == (reference(QUESTIONS[1], None), "length")


NGRAMS = {"method": "ngram", "num_speculative_tokens": 3}


def test_speculative_decoding_by_ngrams_equals_transformers(folders, references, tmp_path):
    lookup = {"prompt_lookup_min": 1, "prompt_lookup_max": 3}
    options = json.dumps({"speculative_config": {**NGRAMS, **lookup}})
    flags = ("--v2", "--plain", "--options", options)
    answers = generate_elsewhere(folders["qwen"], "last", tmp_path, *flags)
    assert answers["runner"] == "RunnerV2"
    assert answers["rows"] > 8  # drafts beside the tokens of eight requests
    asked = mixed("last", QUESTIONS[:4])
    expected = references["qwen"].all(asked)
    for (_, config), got, right in zip(asked, answers["tokens"], expected, strict=True):
        # Drafts that are refused have drawn too.
        assert got == right or (config is not None and config.selection == "random")


@pytest.mark.skipif("REVISIT_SLOW" not in os.environ, reason="compiles for a minute or two")
def test_a_compiled_model_equals_transformers(folders, references, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    options = json.dumps({"enforce_eager": False})
    answers = generate_elsewhere(folders["qwen"], "all", tmp_path, "--options", options)
    assert answers["compiled"] not in ("NONE", None)
    assert answers["tokens"] == references["qwen"].all(mixed("all", QUESTIONS[:4]))


@pytest.fixture(scope="module")
def two_ranks(folders, tmp_path_factory):
    """What two ranks of tensor parallelism generate, at last with a step that fails on one."""
    into = tmp_path_factory.mktemp("ranks")
    return generate_elsewhere(folders["qwen"], "all", into, "--ranks", "2", "--broken")


def test_two_ranks_of_tensor_parallelism_equal_transformers(two_ranks, references):
    asked = mixed("all", QUESTIONS[:4])
    assert two_ranks["tokens"] == references["qwen"].all(asked)


def test_a_step_that_fails_on_one_rank_fails_the_request_on_all(two_ranks, references):
    fails_after_two_tokens(two_ranks["broken"], "all", references["qwen"])


def ask(server, question, **settings):
    """What the official client is answered: token ids."""
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.create(
        model="tiny",
        messages=question.chat(),
        temperature=0,
        max_tokens=STEPS,
        extra_body={"ignore_eos": True, "return_token_ids": True, **settings},
    )
    return answer.choices[0].token_ids


@pytest.fixture(scope="module")
def expected(references):
    """By Transformers, of the prompt that the server's chat template makes."""
    reference = references["qwen"]

    def generate(question, config):
        chat = reference.processor.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [
                        *({"type": "image"} for _ in question.images),
                        {"type": "text", "text": question.text},
                    ],
                }
            ],
            add_generation_prompt=True,
        )
        return reference(question._replace(text=chat, whole=True), config)

    return generate


def test_concurrent_requests_over_http_equal_transformers(server, expected):
    config = ReVisiTConfig(layers="all", alpha=1e-3)
    kinds = [
        (None, {}),
        (config, {"vllm_xargs": {"revisit": '{"alpha": 0.001}'}}),
        (ReVisiTConfig(layers="all"), {"vllm_xargs": {"revisit": "{}"}}),
    ]
    asked = [(question, *kind) for question in QUESTIONS for kind in kinds]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda each: ask(server, each[0], **each[2]), asked))
    assert answers == [expected(question, config) for question, config, _ in asked]


BAD = {
    "must be in [0, 1], got 2": {"vllm_xargs": {"revisit": '{"alpha": 2}'}},
    "no settings ['beta']": {"vllm_xargs": {"revisit": '{"beta": 2}'}},
    "it is not JSON": {"vllm_xargs": {"revisit": "{"}},
    'or {"revisit": "true"}': {"vllm_xargs": {"revisit": True}},
    "must be in [0, 1], got True": {"vllm_xargs": {"revisit": '{"alpha": true}'}},
    "beam search is not supported": {
        "vllm_xargs": {"revisit": "{}"},
        "use_beam_search": True,
        "n": 2,
    },
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_request_is_answered_400_with_what_to_send(message, server, expected):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, QUESTIONS[0], **BAD[message])
    assert refused.value.status_code == 400
    assert message in refused.value.message
    assert ask(server, QUESTIONS[0]) == expected(QUESTIONS[0], None)


def test_refused_requests_that_share_an_image_with_good_ones_change_none(server, expected):
    right = [expected(question, None) for question in QUESTIONS]
    draw = random.Random(0)
    order = [draw.randrange(len(QUESTIONS)) for _ in range(240)]
    bad = [*BAD.values()]

    def one(number):
        place = order[number]
        if number % 3:
            try:
                ask(server, QUESTIONS[place], **bad[number % len(bad)])
            except openai.BadRequestError:
                return True
            return False
        return ask(server, QUESTIONS[place]) == right[place]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(len(order))))


def failures(server):
    """How many requests vLLM counts that ended with an error."""
    metrics = httpx.get(f"{server}/metrics").text
    (count,) = re.findall(r'request_success_total{.*finished_reason="error".*} (\S+)', metrics)
    return float(count)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_lost_a_step_is_answered_500_with_what_went_wrong(stream, server, expected):
    before = failures(server)
    config = ReVisiTConfig(layers="all", alpha=1e-3)
    lost = {"vllm_xargs": {"revisit": json.dumps({"alpha": 1e-3, "seed": FAILING_SEED})}, "n": 2}
    body = {"model": "tiny", "messages": QUESTIONS[0].chat(), "max_tokens": 4, "stream": stream}
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(ask, server, QUESTIONS[1])
        answer = httpx.post(f"{server}/v1/chat/completions", json=body | lost, timeout=60)
    assert answer.status_code == (200 if stream else 500)  # a stream has begun by then
    assert "this request was not decoded plainly instead: MemoryError: no room" in answer.text
    assert '"content":"' not in answer.text.replace('"content":""', "")
    assert other.result() == expected(QUESTIONS[1], None)
    assert failures(server) == before + 2
    kept = ask(server, QUESTIONS[0], vllm_xargs={"revisit": '{"alpha": 1e-3}'})
    assert kept == expected(QUESTIONS[0], config)


def test_a_prompt_without_an_image_is_answered_400(server):
    with pytest.raises(openai.BadRequestError, match="the prompt has no image or video"):
        ask(server, QUESTIONS[0]._replace(images=()), vllm_xargs={"revisit": "{}"})


def test_true_asks_for_the_settings_of_the_engine(server, expected):
    got = ask(server, QUESTIONS[0], vllm_xargs={"revisit": "true"})
    assert got == expected(QUESTIONS[0], ReVisiTConfig(layers="all"))
