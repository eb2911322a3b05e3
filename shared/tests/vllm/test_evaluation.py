"""`revisit eval --engine vllm` and `--engine openai` answer as Transformers does, and resume."""

import json
import shutil
from functools import partial

import pytest
import vllm
from PIL import Image
from vllm import LLM

from revisit.commands import eval
from revisit.commands.engines import requests
from revisit.vllm import pytorch_steps
from vllm_models import DEMO, IMAGES

TRAINED = DEMO / "qwen-tiny"
COUNT = 10


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("val2014")
    for image in IMAGES[:COUNT]:
        shutil.copy(image, folder)
    return folder


@pytest.fixture
def chair(photos, tmp_path):
    """Runs `revisit eval chair`; returns its captions by image."""

    def run(model, *flags, out="out", status=0):
        place = tmp_path / out
        flags_of_run = ["--model", model, "--data_path", photos, "--output_path", place]
        few = ["--num_eval_samples", COUNT, "--max_new_tokens", 24]
        assert eval.main([str(word) for word in ("chair", *flags_of_run, *few, *flags)]) == status
        lines = (place / "captions.jsonl").read_text().splitlines()
        return {entry["image_id"]: entry["caption"] for entry in map(json.loads, lines)}

    return run


@pytest.fixture(scope="module")
def engines():
    """Engines by their options: they start once."""
    running = {}

    def start(model, **options):
        key = (model, json.dumps(options, default=str))
        if key not in running:
            options |= {"enforce_eager": True, "skip_mm_profiling": True}
            running[key] = LLM(model, **options)
        return running[key]

    return start


@pytest.fixture
def eager(engines, monkeypatch):
    """vLLM as it starts fast, in this process and in little memory."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setattr(vllm, "LLM", engines)


REVISIT = ("--decoder", "revisit", "--relative_top", "1e-3")


@pytest.mark.parametrize("flags", [(), (*REVISIT, "--early_exit_layers", "all")], ids=len)
def test_captions_in_vllm_are_those_of_transformers_also_after_a_cut(flags, chair, eager, tmp_path):
    expected = chair(TRAINED, *flags, "--batch_size", 5, out="transformers")
    assert len(set(expected.values())) > 5
    assert chair(TRAINED, *flags, "--engine", "vllm") == expected
    captions = tmp_path / "out" / "captions.jsonl"
    whole = captions.read_text()
    captions.write_text("".join(whole.splitlines(keepends=True)[:4]))
    assert chair(TRAINED, *flags, "--engine", "vllm") == expected
    assert captions.read_text() == whole
    record = json.loads(captions.with_name("captions.jsonl.run.json").read_text())
    assert record["captioner"]["engine"] == "vLLM 0.32.0"
    assert [run["captions"] for run in record["runs"]] == [COUNT, COUNT - 4]


def test_another_engine_does_not_continue_a_file(chair, capsys):
    chair(TRAINED)
    captions = chair(TRAINED, *REVISIT, "--decoder", "greedy", status=0)
    assert len(captions) == COUNT  # the same settings
    chair(TRAINED, "--repetition_penalty", "1.1", status=2)
    assert "repetition_penalty" in capsys.readouterr().err


def test_a_sweep_in_vllm_is_its_runs_one_by_one(chair, eager, tmp_path, photos):
    swept = tmp_path / "swept"
    flags = ["--data_path", photos, "--num_eval_samples", COUNT, "--max_new_tokens", 24]
    grid = ["--engine", "vllm", "--sweep", "alpha=1e-3", "selection=min,random"]
    words = ["chair", "--model", TRAINED, *flags, "--output_path", swept, *grid]
    assert eval.main([str(word) for word in words]) == 0
    found = [path.read_text() for path in sorted(swept.glob("*/captions.jsonl"))]
    assert len(found) == len(set(found)) == 3
    for out, alone in (("greedy", ()), ("revisit", REVISIT)):
        chair(TRAINED, *alone, "--engine", "vllm", out=out)
        assert (tmp_path / out / "captions.jsonl").read_text() in found


def test_other_layers_in_a_sweep_of_one_engine_are_refused(chair, eager, capsys):
    sweep = ("--sweep", "layers=last,all")
    with pytest.raises(FileNotFoundError):
        chair(TRAINED, *sweep, "--engine", "vllm", status=2)
    assert "vLLM's engine reads the layers last from its start on" in capsys.readouterr().err


@pytest.mark.parametrize("which", ["one", "all"])
def test_a_request_that_lost_a_step_is_no_answer(
    which, chair, eager, photos, tmp_path, monkeypatch
):
    folder = shutil.copytree(photos, tmp_path / "photos")
    image = sorted(folder.iterdir())[3]
    Image.open(image).resize((112, 56)).save(image)  # it alone has fewer vision tokens
    expected = chair(TRAINED, *REVISIT, "--data_path", folder, "--engine", "vllm", out="whole")
    sizes, original = [], pytorch_steps.refine

    def refine(scores, sessions):
        sizes[:] = sizes or {len(each.columns.states) for each in sessions if each}
        few = [each for each in sessions if each and len(each.columns.states) == min(sizes)]
        if few or which == "all":
            raise ValueError("it lost a step")
        return original(scores, sessions)

    monkeypatch.setattr(pytorch_steps, "refine", refine)
    flags = (*REVISIT, "--data_path", folder, "--engine", "vllm")
    found = chair(TRAINED, *flags, status=1)
    assert found == ({k: v for k, v in expected.items() if k != 4} if which == "one" else {})


REFUSED = {
    "--engine vllm has the decoders greedy and revisit: vcd needs": ("--decoder", "vcd"),
    "--num_beams 3: --engine vllm has no beam search": ("--num_beams", "3"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_vllm_cannot_do_is_refused(message, chair, capsys):
    assert not chair(TRAINED, "--engine", "vllm", *REFUSED[message], status=2)
    assert message in capsys.readouterr().err


@pytest.fixture
def remote(server, chair):
    return partial(chair, "tiny", "--engine", "openai", "--base_url", f"{server}/v1")


@pytest.mark.parametrize("flags", [(), (*REVISIT, "--early_exit_layers", "all")], ids=len)
def test_captions_of_a_server_are_those_of_transformers(flags, remote, chair, folders):
    """This model writes anything: where it ends within a character, vLLM leaves that out."""
    expected = chair(folders["qwen"], *flags, "--batch_size", 5, out="transformers")
    got = remote(*flags)
    assert {k: v.rstrip("\ufffd") for k, v in got.items()} == {
        k: v.rstrip("\ufffd") for k, v in expected.items()
    }


def test_what_a_server_refuses_is_shown(remote, server, chair, capsys):
    remote(*REVISIT, "--early_exit_layers", "last", status=2)
    error = capsys.readouterr().err
    assert "the server answers 400: " in error
    assert "layers is the engine's, for all requests, and here 'all'" in error
    chair("small", "--engine", "openai", "--base_url", f"{server}/v1", out="name", status=2)
    assert "serves ['tiny']: --model is one of these names" in capsys.readouterr().err


def test_a_server_that_does_not_answer_is_named(chair, capsys, monkeypatch):
    monkeypatch.setattr("revisit.commands.engines.openai._RETRIES", 0)
    nobody = "http://127.0.0.1:9/v1"
    chair("tiny", "--engine", "openai", "--base_url", nobody, status=2)
    assert f"no answer of {nobody}" in capsys.readouterr().err


def test_a_run_that_is_cut_short_loses_a_batch_at_most(remote, monkeypatch, capsys):
    from revisit.commands.engines.openai import ServerCaptioner

    whole = remote()
    asked, original = [], ServerCaptioner.answer

    def answer(self, images, questions):
        asked.append(len(images))
        if len(asked) == 3:
            raise OSError("cut")
        return original(self, images, questions)

    monkeypatch.setattr(ServerCaptioner, "batch_size", 4)
    monkeypatch.setattr(ServerCaptioner, "answer", answer)
    assert len(remote(out="cut", status=1)) == 8
    assert remote(out="cut") == whole
    assert asked == [4, 4, 2, 2]
    assert requests.AT_ONCE >= 32
