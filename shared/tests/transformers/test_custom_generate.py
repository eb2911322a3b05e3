"""The folder `custom_generate/`, loaded by Transformers as it would be from the Hub."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from releases import RELEASE
from revisit import ReVisiTConfig, VCDConfig
from routes import CONFIG, SETTINGS, Streamer, attached, plain
from servers import Server
from small_llama import PROMPTS, batch, new_tokens

if RELEASE < (4, 52):
    pytest.skip("custom_generate came with 4.52", allow_module_level=True)

ROOT = Path(__file__).parents[3]
FOLDER = {"custom_generate": str(ROOT), "trust_remote_code": True}


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """Loaded code is copied to a cache, here the test's."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))


@pytest.mark.parametrize("config", [{"layers": "all", "alpha": 0.02}, CONFIG])
def test_the_folder_gives_what_attach_gives(model, expected, greedy, config):
    assert plain(model, PROMPTS, **FOLDER, revisit_config=config) == expected != greedy


def test_settings_of_another_class_are_refused(model):
    with pytest.raises(ValueError, match="pass revisit_config as a dict"):
        plain(model, PROMPTS, **FOLDER, revisit_config=VCDConfig())


def test_the_folder_passes_on_all_that_generate_takes(model):
    streamer = Streamer()
    output = model.generate(
        batch(PROMPTS[:1])["input_ids"],
        revisit_config={"alpha": 0.02, "trace": True},
        streamer=streamer,
        return_dict_in_generate=True,
        **FOLDER,
        **SETTINGS,
    )
    assert streamer.received == [*output.sequences[0].tolist(), "end"]
    assert [step.token for step in output.revisit_trace[0]] == new_tokens(output, PROMPTS[:1])[0]


def test_a_checkpoint_may_carry_the_folder(model, expected, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    model.save_pretrained(checkpoint)
    (checkpoint / "custom_generate").symlink_to(ROOT / "custom_generate")
    carrying = transformers.LlamaForCausalLM.from_pretrained(checkpoint, trust_remote_code=True)
    weights = load_file(checkpoint / "model.safetensors")
    assert torch.equal(carrying.lm_head.weight, weights["lm_head.weight"])
    config = {"layers": "all", "alpha": 0.02}
    assert plain(carrying, PROMPTS, eos_token_id=None, revisit_config=config) == expected


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
    contents = {name: path.read_bytes() for name, path in files.items() if path.is_file()}
    server.add_model("someone/revisit", "0" * 40, contents)
    yield {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path)}
    server.close()


@pytest.mark.parametrize("where", ["a folder", "a hub"])
def test_the_repository_and_its_checkpoint_need_no_package(expected, repository, hub, where):
    name = str(repository) if where == "a folder" else "someone/revisit"
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "support"), **hub}
    command = [sys.executable, "-c", ALONE, name]
    run = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    demo = ROOT / "prerequisites" / "demo" / "qwen-tiny"
    model = transformers.AutoModelForImageTextToText.from_pretrained(demo)
    prompts = [[1, 2, *[model.config.image_token_id] * 4, 7, 8]]
    carried = attached(model, prompts, ReVisiTConfig())
    assert carried != plain(model, prompts)
    assert run.stdout.splitlines() == [str(expected), str(carried)]


def test_another_package_of_the_same_name_is_named(tmp_path):
    (tmp_path / "revisit").mkdir()
    other = tmp_path / "revisit" / "__init__.py"
    other.write_text("")
    program = "import runpy, sys; sys.path.insert(0, sys.argv[1]); runpy.run_path(sys.argv[2])"
    command = [sys.executable, "-c", program, tmp_path, ROOT / "custom_generate" / "generate.py"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert f"`revisit` here is {other}" in run.stderr and "another project" in run.stderr
