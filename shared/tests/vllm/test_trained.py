"""The demo's trained models caption in vLLM as they do in Transformers, word for word."""

import pytest

import vllm_engines as engines
import vllm_trained as trained_models
from revisit import ReVisiTConfig
from vllm_trained import STEPS


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {
        "qwen": trained_models.qwen(),
        "llava": trained_models.llava(tmp_path_factory.mktemp("llava")),
    }


def asked(layers, images):
    """Every image with every kind of settings."""
    settings = [
        None,
        *(ReVisiTConfig(layers=layers, alpha=alpha) for alpha in (1e-5, 1e-3, 1e-1)),
        ReVisiTConfig(layers=layers, alpha=1e-4, divergence="js"),
    ]
    return [(image, config) for image in images for config in settings]


@pytest.mark.parametrize("family, layers", [("qwen", "all"), ("llava", "last")])
def test_captions_of_trained_models_equal_those_of_transformers(family, layers, models):
    model = models[family]
    llm = engines.start(model.folder, layers, max_num_seqs=32, limit_mm_per_prompt={"image": 1})
    requests = asked(layers, trained_models.captions())
    shown = [(model.shown(image), config) for image, config in requests]
    got = engines.generate(llm, shown, STEPS, ignore_eos=False)
    assert got == [model.tokens(*each) for each in requests]
    assert all(len(tokens) < STEPS for tokens in got)  # captions that end by themselves
    changed = [got[place] != got[place - place % 5] for place in range(len(got))]
    assert 0.2 < sum(changed) / len(changed) < 0.8
