"""The parts that are found in a model, and whether a generation is exact."""

import pytest

import families
from releases import RELEASE
from revisit.transformers import check as checking
from tiny_configs import config, language_model


def test_a_config_alone_is_enough_with_random_weights(tmp_path):
    if RELEASE < (5, 23):
        pytest.skip("this release has no family whose logits are scaled and capped")
    config("muse_glimmer", out_hidden_size=64).save_pretrained(tmp_path)
    model = checking.load(str(tmp_path), random=True, trust_remote_code=False)
    found, exact = checking.inspect(model)
    assert exact
    assert "MuseGlimmerForConditionalGeneration" in found["model"]
    assert "language_model" in found["decoder"]
    assert "4 of 4" in found["layers"]
    assert "image_token_" in found["vision tokens"]
    for layers in ("last", "all"):
        assert "exact (scaled by 0.196116, capped at 20; 4 tokens)" in found[layers]


def test_a_checkpoint_is_loaded_and_compared(tmp_path):
    model = families.make("llava")
    model.generation_config.pad_token_id = 0
    model.save_pretrained(tmp_path)
    loaded = checking.load(str(tmp_path), random=False, trust_remote_code=False)
    found, exact = checking.inspect(loaded)
    assert exact and "exact (no scale or cap; 4 tokens)" in found["all"]


def test_what_cannot_be_found_is_said_with_what_to_pass():
    found, exact = checking.inspect(families.make("kosmos-2"))
    assert not exact and "Pass vision_mask" in found["last"]


def test_a_refused_model_says_why():
    found, exact = checking.inspect(families.make("mllama"))
    assert not exact and "reads its images by cross-attention" in str(found)


def test_a_wrong_choice_is_not_exact(monkeypatch):
    model = language_model()
    monkeypatch.setattr("revisit.core.rows.select", lambda distances, *_: distances.argmax(-1))
    monkeypatch.setattr(
        checking, "_project", lambda head, states: states.flip(0) @ head.weight.double().T
    )
    found, exact = checking.inspect(model)
    assert not exact and "not exact" in found["last"]


REMOTE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class Own(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_a_checkpoint_runs_only_if_asked_for(tmp_path, monkeypatch):
    model = language_model()
    model.config.auto_map = {
        "AutoConfig": "modeling_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.Own",
    }
    model.config.model_type = "own"
    model.config.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text().replace('"llama"', '"own"')
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "modeling_own.py").write_text(REMOTE)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(ValueError, match="trust_remote_code"):
        checking.load(str(tmp_path), random=True, trust_remote_code=False)
    loaded = checking.load(str(tmp_path), random=True, trust_remote_code=True)
    found, exact = checking.inspect(loaded)
    assert exact and "Own" in found["model"]
