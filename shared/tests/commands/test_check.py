"""`revisit check`: what it prints, and what it says of a folder that is no model."""

import json
import shutil
from pathlib import Path

import pytest

from revisit.commands.main import main

QWEN = Path(__file__).parents[3] / "prerequisites" / "demo" / "qwen-tiny"


@pytest.mark.parametrize(
    "config", [None, "{}", "{bad", '{"model_type": "llama"}', '{"model_type": "none"}'], ids=str
)
def test_a_folder_that_is_no_model_is_one_error(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert main(["check", str(tmp_path)]) == 2
    assert f"revisit check: error: {tmp_path} cannot be loaded: " in capsys.readouterr().err


def test_json_holds_what_the_text_says(capsys):
    pytest.importorskip("torchvision", reason="Qwen2.5-VL's processor needs it")
    assert main(["check", str(QWEN)]) == 0
    text = capsys.readouterr().out
    assert main(["check", str(QWEN), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.pop("exact") is True
    assert text == "".join(f"{name:14}{value}\n" for name, value in found.items())


def test_random_weights_need_a_config_alone(tmp_path, capsys):
    pytest.importorskip("transformers.models.qwen2_5_vl")
    shutil.copy(QWEN / "config.json", tmp_path)
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert main(["check", str(tmp_path)]) == 2
    assert "names files that are not in the folder" in capsys.readouterr().err
    assert main(["check", str(tmp_path), "--random"]) == 0
