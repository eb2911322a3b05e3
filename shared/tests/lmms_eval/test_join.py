"""Which built models of lmms-eval are refused, and which of their answers.

The models are small ones of Transformers; the classes around them call `generate` in the ways that
classes of lmms-eval do.
"""

from types import SimpleNamespace

import pytest
import torch
from lmms_eval.models import list_available_models
from transformers import GenerationMixin, PreTrainedModel, Qwen2_5_VLForConditionalGeneration

from evaluations import CHECKPOINT
from revisit import ReVisiTConfig
from revisit.lmms_eval.join import REFUSED, join, refuse_model

CONFIG = ReVisiTConfig(no_vision="plain")


class Calling:
    """Calls `generate` of its model, as most do."""

    def __init__(self, model):
        self.model = model

    def generate_until(self, requests):
        return [self.model.generate(request, max_new_tokens=2) for request in requests]

    generate_until_multi_round = generate_visual_cot = loglikelihood = generate_until


class Catching(Calling):
    """Goes on without an answer where `generate` raises, as `llava_hf` does."""

    def generate_until(self, requests):
        answers = []
        for request in requests:
            try:
                answers += super().generate_until([request])
            except Exception:
                answers.append("")
        return answers


class Silent(Calling):
    """Answers without `generate`, as one does whose `generate` is elsewhere."""

    def generate_until(self, requests):
        return ["" for _ in requests]


class Inside(Calling):
    """Calls `generate` of the language model that its model holds, as `auroracap` does."""

    def generate_until(self, requests):
        language = self.model.language_model
        return [language.generate(request, max_new_tokens=2) for request in requests]


class Chat(PreTrainedModel):
    """A model with its own code around a language model, as InternVL's: it hands embeddings on.

    Transformers 5 gives it no `generate`.
    """

    _supports_sdpa = True

    def __init__(self, inner):
        super().__init__(inner.config)
        self.language_model = inner

    def generate(self, input_ids, **settings):
        embeddings = self.language_model.get_input_embeddings()(input_ids)
        return self.language_model.generate(inputs_embeds=embeddings, **settings)

    def forward(self, input_ids):
        return self.language_model(input_ids)


class GeneratingChat(Chat, GenerationMixin):
    """The same, with Transformers' `generate` among its bases, as all models of 4.49 have it."""


@pytest.fixture
def model():
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(CHECKPOINT).eval()


TEXT = torch.tensor([[7, 8, 9]])
IMAGE = torch.tensor([[525, 527, 527, 526, 7]])  # with two vision tokens


def test_a_model_that_generates_answers(model):
    lm = Calling(model)
    join(lm, CONFIG)
    (answer,) = lm.generate_until([TEXT])
    assert answer.shape == (1, 5)


def test_a_failure_that_lmms_eval_catches_is_an_error(model):
    lm = Catching(model)
    join(lm, ReVisiTConfig(no_vision="error"))
    assert len(lm.generate_until([IMAGE, IMAGE])) == 2
    with pytest.raises(ValueError, match="1 of 3 calls of generate failed, and Catching of lmms-"):
        lm.generate_until([IMAGE, TEXT, IMAGE])
    assert len(lm.generate_until([IMAGE])) == 1


def test_answers_without_generate_are_an_error(model):
    lm = Silent(model)
    join(lm, CONFIG)
    with pytest.raises(ValueError, match="Silent of lmms-eval answered without calling its model"):
        lm.generate_until([TEXT])
    assert lm.generate_until([]) == []


def test_generate_of_the_language_model_inside_is_an_error(model):
    lm = Inside(GeneratingChat(model))
    assert len(lm.generate_until([TEXT])) == 1
    join(lm, CONFIG)
    with pytest.raises(ValueError, match="this decoding would not call it"):
        lm.generate_until([TEXT])


def test_loglikelihood_is_refused(model):
    lm = Calling(model)
    join(lm, CONFIG)
    with pytest.raises(ValueError, match=r"loglikelihood.* run it with decoder=greedy"):
        lm.loglikelihood([TEXT])


def test_a_model_that_is_none_of_transformers_generating_ones_is_refused(model):
    with pytest.raises(ValueError, match="Calling of lmms-eval: Chat is no model of Transformers"):
        join(Calling(Chat(model)), CONFIG)


@pytest.mark.parametrize("other", [SimpleNamespace(), None, "gpt"], ids=["client", "none", "name"])
def test_a_client_or_name_in_place_of_a_model_is_refused(other):
    with pytest.raises(ValueError, match="holds no model of Transformers as its `model`, but"):
        join(Calling(other), CONFIG)


def test_every_model_refused_by_name_is_one_of_lmms_evals():
    assert REFUSED.keys() <= set(list_available_models())
    for name in ("qwen2_5_vl", "llava_hf", "internvl_hf", "huggingface"):
        refuse_model(name)
