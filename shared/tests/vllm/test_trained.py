"""The demo's trained models caption in vLLM as they do in Transformers, word for word."""

import pytest

import engines
import trained_models
from revisit import ReVisiTConfig
from trained_models import STEPS


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {
        "qwen": trained_models.qwen(),
        "llava": trained_models.llava(tmp_path_factory.mktemp("llava")),
    }


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("family", ["qwen", "llava"])
def test_captions_of_trained_models_equal_those_of_transformers(family, layers, models):
    model = models[family]
    llm = engines.start(model.folder, layers, max_num_seqs=32, limit_mm_per_prompt={"image": 1})
    settings = [
        None,
        *(ReVisiTConfig(layers=layers, alpha=alpha) for alpha in (1e-5, 1e-3, 1e-1)),
        ReVisiTConfig(layers=layers, alpha=1e-4, divergence="js"),
    ]
    asked = [(image, config) for image in trained_models.captions() for config in settings]
    outputs = llm.generate(
        [model.for_vllm(image) for image, _ in asked],
        [engines.params(config, STEPS, ignore_eos=False) for _, config in asked],
        use_tqdm=False,
    )
    got = [list(output.outputs[0].token_ids) for output in outputs]
    assert got == [model.tokens(image, config) for image, config in asked]
    assert all(len(tokens) < STEPS for tokens in got)  # captions that end by themselves
    changed = [got[place] != got[place - place % 5] for place in range(len(got))]
    assert 0.2 < sum(changed) / len(changed) < 0.8
