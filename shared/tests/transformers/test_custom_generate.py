"""The folder `custom_generate/`, loaded by Transformers as it would be from the Hub."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import revisit
from releases import RELEASE
from revisit import ReVisiTConfig, VCDConfig
from servers import Server
from small_llama import PAD, PROMPTS, batch, make_model, new_tokens

if RELEASE < (4, 52):
    pytest.skip("custom_generate came with 4.52", allow_module_level=True)

ROOT = Path(__file__).parents[3]
SETTINGS = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD}


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """Loaded code is copied to a cache: one of the test's own."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.mark.parametrize("given", [dict, lambda **settings: ReVisiTConfig(**settings)])
def test_the_folder_gives_what_attach_gives(model, given):
    arguments = {**batch(PROMPTS), **SETTINGS}
    with revisit.attach(model, ReVisiTConfig(layers="all", alpha=0.02)):
        expected = model.generate(**arguments)
    output = model.generate(
        **arguments,
        custom_generate=str(ROOT),
        trust_remote_code=True,
        revisit_config=given(layers="all", alpha=0.02),
    )
    assert output.tolist() == expected.tolist()
    assert output.tolist() != model.generate(**arguments).tolist()


def test_settings_of_another_class_are_refused(model):
    asked = {"custom_generate": str(ROOT), "trust_remote_code": True}
    with pytest.raises(ValueError, match="pass revisit_config as a dict"):
        model.generate(**batch(PROMPTS), **asked, revisit_config=VCDConfig())


def test_the_folder_passes_on_all_that_generate_takes(model):
    streamed = []

    class Streamer(transformers.generation.streamers.BaseStreamer):
        def put(self, value):
            streamed.extend(value.flatten().tolist())

        def end(self):
            streamed.append("end")

    output = model.generate(
        batch(PROMPTS[:1])["input_ids"],
        custom_generate=str(ROOT),
        trust_remote_code=True,
        revisit_config={"alpha": 0.02, "trace": True},
        streamer=Streamer(),
        return_dict_in_generate=True,
        **SETTINGS,
    )
    assert streamed == [*output.sequences[0].tolist(), "end"]
    assert [step.token for step in output.revisit_trace[0]] == new_tokens(output, PROMPTS[:1])[0]


def test_a_checkpoint_may_carry_the_folder(model, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    model.save_pretrained(checkpoint)
    (checkpoint / "custom_generate").symlink_to(ROOT / "custom_generate")
    carrying = transformers.LlamaForCausalLM.from_pretrained(checkpoint, trust_remote_code=True)
    weights = load_file(checkpoint / "model.safetensors")
    assert torch.equal(carrying.lm_head.weight, weights["lm_head.weight"])
    arguments = {**batch(PROMPTS), **SETTINGS, "eos_token_id": None}
    output = carrying.generate(**arguments, revisit_config={"layers": "all", "alpha": 0.02})
    with revisit.attach(model, ReVisiTConfig(layers="all", alpha=0.02)):
        expected = model.generate(**arguments)
    assert output.tolist() == expected.tolist()


ALONE = """
import sys

import torch
from transformers import AutoModelForImageTextToText
from small_llama import PAD, PROMPTS, batch, make_model

sys.modules["revisit"] = None  # as where the package is not installed
named = dict(custom_generate=sys.argv[1], trust_remote_code=True)
settings = dict(max_new_tokens=6, do_sample=False, pad_token_id=PAD)
revisit = dict(revisit_config=dict(layers="all", alpha=0.02))
print(make_model().generate(**batch(PROMPTS), **settings, **named, **revisit).tolist())
carrying = AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = torch.tensor([[1, 2, *[carrying.config.image_token_id] * 4, 7, 8]])
print(carrying.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings).tolist())
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The folder that `nox -s hub` writes."""
    folder = tmp_path_factory.mktemp("written") / "repository"
    script = ROOT / "custom_generate" / "repository.py"
    subprocess.run([sys.executable, script, folder], check=True)
    return folder


@pytest.fixture
def hub(repository, tmp_path):
    """What a process needs to find the repository on a hub."""
    server = Server()
    files = {path.relative_to(repository).as_posix(): path for path in repository.rglob("*.*")}
    named = {name: path.read_bytes() for name, path in files.items() if path.is_file()}
    server.add_model("someone/revisit", "0" * 40, named)
    yield {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path)}
    server.close()


@pytest.mark.parametrize("where", ["a folder", "a hub"])
def test_the_repository_and_its_checkpoint_need_no_package(model, repository, hub, where):
    named = str(repository) if where == "a folder" else "someone/revisit"
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "support"), **hub}
    command = [sys.executable, "-c", ALONE, named]
    run = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    with revisit.attach(model, ReVisiTConfig(layers="all", alpha=0.02)):
        expected = model.generate(**batch(PROMPTS), **SETTINGS)
    demo = ROOT / "prerequisites" / "demo" / "qwen-tiny"
    plain = transformers.AutoModelForImageTextToText.from_pretrained(demo)
    ids = torch.tensor([[1, 2, *[plain.config.image_token_id] * 4, 7, 8]])
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **SETTINGS}
    with revisit.attach(plain):
        carried = plain.generate(**arguments)
    assert not torch.equal(carried, plain.generate(**arguments))
    assert run.stdout.splitlines() == [str(expected.tolist()), str(carried.tolist())]


def test_another_package_of_the_same_name_is_named(tmp_path):
    (tmp_path / "revisit").mkdir()
    other = tmp_path / "revisit" / "__init__.py"
    other.write_text("")
    program = "import runpy, sys; sys.path.insert(0, sys.argv[1]); runpy.run_path(sys.argv[2])"
    command = [sys.executable, "-c", program, tmp_path, ROOT / "custom_generate" / "generate.py"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert f"`revisit` here is {other}" in run.stderr and "another project" in run.stderr
