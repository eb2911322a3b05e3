"""The prompts of CODE's and ICD's second streams."""

from types import SimpleNamespace

import pytest
import torch

import revisit
from revisit import CODEConfig
from revisit.transformers.other_prompts import describe, described, instructed
from small_llama import IMAGE, PROMPTS, batch, make_model

QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]


class Template:
    """A processor whose template takes a system message in one form: a list, a text, or none."""

    def __init__(self, takes):
        self.takes = takes

    def apply_chat_template(self, messages, add_generation_prompt):
        assert add_generation_prompt
        system, *others = messages
        if self.takes is None:
            raise RuntimeError("System role not supported")
        if isinstance(system["content"], str) != (self.takes is str):
            return "USER: "
        text = system["content"] if self.takes is str else system["content"][0]["text"]
        return f"{text} {''.join(message['role'] for message in others)}: "


@pytest.mark.parametrize("takes", [str, list])
def test_the_instruction_takes_the_place_of_the_system_message(takes):
    system = {"role": "system", "content": "Be kind."}
    prompts = instructed(Template(takes), [QUESTION, [system, *QUESTION]], "Be confused.")
    assert prompts == ["Be confused. user: "] * 2


def test_a_template_without_a_system_message_is_refused():
    with pytest.raises(ValueError, match="no place for a system message"):
        instructed(Template(None), [QUESTION], "Be confused.")


class Words:
    """A tokenizer of numbers."""

    def __call__(self, text):
        return SimpleNamespace(input_ids=[1, *map(int, text.split())])

    def batch_decode(self, rows, skip_special_tokens):
        assert skip_special_tokens
        return [" ".join(str(word) for word in row if word > 9) for row in rows.tolist()]


def test_descriptions_stand_in_place_of_the_image_tokens():
    model, inputs = make_model(), batch([*PROMPTS, [1, 8, 40]])
    second = described(model, Words(), inputs, ["50 51", "60", "", "70"])
    rows = zip(second["input_ids"], second["attention_mask"].bool(), strict=True)
    assert [ids[mask].tolist() for ids, mask in rows] == [
        [1, 9, 1, 50, 51, 20, 21],
        [1, 1, 60, 30, 31, 32, 33],  # two images, one description
        [1, 8, 1, 40],
        [1, 8, 40],  # no image
    ]
    assert second["attention_mask"][:, -3:].all()
    with pytest.raises(ValueError, match="1 descriptions for 4 prompts"):
        described(model, Words(), inputs, ["50"])


@pytest.mark.parametrize("enabled", [False, True])
def test_the_model_describes_greedily_whatever_is_enabled(enabled):
    model, inputs = make_model(), batch(PROMPTS)
    output = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    wanted = Words().batch_decode(output[:, inputs["input_ids"].shape[1] :], True)
    model.generation_config.do_sample = True
    if enabled:
        revisit.enable(model, CODEConfig())
    assert describe(model, Words(), inputs, max_new_tokens=6) == wanted
    if enabled:  # and goes on being so
        with pytest.raises(ValueError, match="CODE needs descriptions of the images"):
            model.generate(**inputs, max_new_tokens=2)


def test_code_reads_what_the_helpers_make():
    model, inputs = make_model(), batch(PROMPTS)
    tokens = Words()
    second = described(model, tokens, inputs, describe(model, tokens, inputs, max_new_tokens=4))
    plain = model.generate(**inputs, max_new_tokens=4)
    outputs = {}
    for k in (0.0, 3.0):
        with revisit.attach(model, CODEConfig(k=k)):
            outputs[k] = model.generate(**inputs, second_inputs=second, max_new_tokens=4)
    assert torch.equal(outputs[0.0], plain)
    assert not torch.equal(outputs[3.0], plain)
    assert (plain == IMAGE).any()


@pytest.mark.parametrize("config", [CODEConfig(), revisit.ICDConfig()], ids=["CODE", "ICD"])
def test_other_prompts_are_as_many(config):
    model, inputs = make_model(), batch(PROMPTS)
    message = "second_inputs has 2 prompts, generate 3"
    with revisit.attach(model, config), pytest.raises(ValueError, match=message):
        model.generate(**inputs, second_inputs=batch(PROMPTS[:2]), max_new_tokens=2)


def test_icd_says_what_to_pass():
    model = make_model()
    message = "pass second_inputs, .*other_prompts.instructed"
    with revisit.attach(model, revisit.ICDConfig()), pytest.raises(ValueError, match=message):
        model.generate(**batch(PROMPTS), max_new_tokens=2)
