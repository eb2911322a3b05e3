"""Engines in processes of their own: Model Runner V2, tensor parallelism, an HTTP server."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from an_engine import elsewhere
from revisit import ReVisiTConfig
from tiny_models import QUESTIONS, STEPS, mixed


@pytest.mark.parametrize("family, layers", [("qwen", "all"), ("llava", "last")])
def test_model_runner_v2_equals_transformers(family, layers, folders, references, tmp_path):
    asked = mixed(layers, QUESTIONS[:4])
    expected = references[family].all(asked)
    answers = elsewhere(folders[family], layers, tmp_path, "--v2")
    assert answers["runner"] == "RunnerV2"
    assert answers["tokens"] == expected


def test_speculative_decoding_by_ngrams_equals_transformers(folders, references, tmp_path):
    ngrams = {"method": "ngram", "num_speculative_tokens": 3}
    lookup = {"prompt_lookup_min": 1, "prompt_lookup_max": 3}
    options = json.dumps({"speculative_config": {**ngrams, **lookup}})
    answers = elsewhere(folders["qwen"], "last", tmp_path, "--v2", "--options", options)
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
    answers = elsewhere(folders["qwen"], "all", tmp_path, "--options", options)
    assert answers["compiled"] not in ("NONE", None)
    assert answers["tokens"] == references["qwen"].all(mixed("all", QUESTIONS[:4]))


def test_two_ranks_of_tensor_parallelism_equal_transformers(folders, references, tmp_path):
    asked = mixed("all", QUESTIONS[:4])
    answers = elsewhere(folders["qwen"], "all", tmp_path, "--ranks", "2")
    assert answers["tokens"] == references["qwen"].all(asked)


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


def test_a_prompt_without_an_image_is_answered_400(server):
    with pytest.raises(openai.BadRequestError, match="the prompt has no image or video"):
        ask(server, QUESTIONS[0]._replace(images=()), vllm_xargs={"revisit": "{}"})


def test_true_asks_for_the_settings_of_the_engine(server, expected):
    got = ask(server, QUESTIONS[0], vllm_xargs={"revisit": "true"})
    assert got == expected(QUESTIONS[0], ReVisiTConfig(layers="all"))
