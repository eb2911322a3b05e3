"""`revisit-check`: what it finds, and that it tells exact from not."""

import pytest

import families
from releases import RELEASE
from revisit.transformers import check as checking
from tiny_configs import config, language_model


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["revisit-check", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        checking.main()
    return ended.value.code


def test_a_config_alone_is_enough_with_random_weights(tmp_path, monkeypatch, capsys):
    if RELEASE < (5, 23):
        pytest.skip("this release has no family whose logits are scaled and capped")
    config("muse_glimmer", out_hidden_size=64).save_pretrained(tmp_path)
    assert run(monkeypatch, tmp_path, "--random") == 0
    told = capsys.readouterr().out
    assert "MuseGlimmerForConditionalGeneration" in told
    assert "language_model" in told
    assert "4 of 4" in told
    assert "image_token_" in told
    assert told.count("exact (scaled by 0.196116, capped at 20; 4 tokens)") == 2


def test_a_checkpoint_is_loaded_and_compared(tmp_path, monkeypatch, capsys):
    model = families.make("llava")
    model.generation_config.pad_token_id = 0
    model.save_pretrained(tmp_path)
    assert run(monkeypatch, tmp_path) == 0
    assert capsys.readouterr().out.count("exact (no scale or cap; 4 tokens)") == 2


def test_what_cannot_be_found_is_said_with_what_to_pass(capsys):
    assert checking.report(families.make("kosmos-2")) == 1
    assert "Pass vision_mask" in capsys.readouterr().out


def test_a_refused_model_says_why(capsys):
    assert checking.report(families.make("mllama")) == 1
    assert "reads its images by cross-attention" in capsys.readouterr().out


def test_a_wrong_choice_is_not_exact(capsys, monkeypatch):
    model = language_model()
    monkeypatch.setattr("revisit.core.rows.select", lambda distances, *_: distances.argmax(-1))
    monkeypatch.setattr(
        checking, "_project", lambda head, states: states.flip(0) @ head.weight.double().T
    )
    assert checking.report(model) == 1
    assert "not exact" in capsys.readouterr().out


def test_nothing_is_loaded_that_is_not_there(tmp_path, monkeypatch):
    assert "cannot be loaded" in run(monkeypatch, tmp_path / "absent")


REMOTE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class Own(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_a_checkpoint_runs_only_if_asked_for(tmp_path, monkeypatch, capsys):
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
    assert "trust_remote_code" in run(monkeypatch, tmp_path, "--random")
    assert run(monkeypatch, tmp_path, "--random", "--trust_remote_code") == 0
    assert "Own" in capsys.readouterr().out
