"""The launcher's exit status and message, where an evaluation has no results or is refused."""

import json
import runpy
import sys

import pytest
import yaml
from lmms_eval.api.model import lmms

from evaluations import MODEL, arguments
from revisit.lmms_eval.launch import main

FAILED = "revisit.lmms_eval: an evaluation failed: "

WITHOUT_RESULTS = {
    "an unknown setting": (["--model_args", f"{MODEL},revisit_aplha=1"], "revisit_aplha: decoder="),
    "vLLM": (["--model", "vllm"], "--model vllm runs in vLLM"),
    "SGLang": (["--model", "sglang"], "--model sglang runs in SGLang"),
    "a service, by its alias": (["--model", "openai_compatible"], "--model openai asks a service"),
    "InternVL's own code": (["--model", "internvl"], "--model internvl_hf has InternVL"),
    "an unknown model": (["--model", "qwen9"], "Model 'qwen9' not found"),
    "an unknown task": (["--tasks", "demo_poems"], "Tasks not found: demo_poems"),
    "a checkpoint that is not there": (["--model_args", "pretrained=/nowhere"], "/nowhere"),
    "a prompt that the decoder refuses": (
        ["--model_args", f"{MODEL},revisit_no_vision=error"],
        "set no_vision='plain'",
    ),
    "a failure that lmms-eval lets through": (
        ["--tasks", "demo_poems", "--verbosity", "DEBUG"],
        "Tasks not found: demo_poems",
    ),
    "results that cannot be saved": (["--output_path", "{file}"], "could not save its results"),
}


@pytest.mark.parametrize("case", WITHOUT_RESULTS)
def test_an_evaluation_without_results_ends_with_1_and_the_reason(case, folder, tmp_path, capsys):
    changed, reason = WITHOUT_RESULTS[case]
    file = tmp_path / "file"
    file.touch()
    changed = [each.format(file=file) for each in changed]
    before = vars(lmms)["create_from_arg_string"]
    assert main([*arguments(folder, tmp_path / "out"), *changed]) == 1
    assert reason in capsys.readouterr().err.rpartition(FAILED)[2]
    assert not list(tmp_path.rglob("*_results.json"))
    assert vars(lmms)["create_from_arg_string"] is before


def test_one_evaluation_of_a_file_that_fails_leaves_the_other_and_ends_with_1(
    folder, tmp_path, capsys
):
    shared = {"model": "qwen2_5_vl", "include_path": str(folder), "device": "cpu"}
    good = {"model_args": f"{MODEL},decoder=vcd", "tasks": "demo_captions"}
    bad = {"model_args": f"{MODEL},vcd_alpha=1", "tasks": "demo_captions"}
    file = tmp_path / "evaluations.yaml"
    file.write_text(yaml.safe_dump([{**shared, **bad}, {**shared, **good}]))
    assert main(["--config", str(file), "--output_path", str(tmp_path / "out")]) == 1
    assert "vcd_alpha: decoder=revisit has" in capsys.readouterr().err.rpartition(FAILED)[2]
    (results,) = tmp_path.rglob("*_results.json")
    assert json.loads(results.read_text())["config"]["decoder"]["name"] == "vcd"


def test_no_tasks_end_with_1(capsys):
    assert main(["--model", "qwen2_5_vl", "--model_args", MODEL]) == 1
    assert f"{FAILED}--tasks is missing" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["tasks", "list"], ["eval"], ["--tui"], ["serve"]])
def test_other_commands_of_lmms_eval_are_left_to_it(arguments, capsys):
    assert main(arguments) == 2
    assert "usage: python -m revisit.lmms_eval --model MODEL" in capsys.readouterr().err


def test_help_shows_the_flags_of_the_launcher_and_of_lmms_eval(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert not stop.value.code
    printed = capsys.readouterr().out
    assert "decoder=greedy|revisit|vcd|m3id|dola|deco|vista|pai|sid" in printed
    assert "--include_path" in printed


def test_the_list_of_tasks_is_that_of_lmms_eval(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--tasks", "list", "--include_path", str(folder)])
    assert not stop.value.code
    assert "demo_captions" in capsys.readouterr().out


def test_the_module_exits_with_the_status_of_the_launcher(folder, tmp_path, capsys, monkeypatch):
    bad = arguments(folder, tmp_path, "revisit_aplha=1", model="qwen2_5_vl")
    monkeypatch.setattr(sys, "argv", ["lmms_eval", *bad])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("revisit.lmms_eval", run_name="__main__")
    assert stop.value.code == 1
    assert f"{FAILED}revisit_aplha: decoder=revisit has" in capsys.readouterr().err
