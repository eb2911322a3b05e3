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
from revisit import ReVisiTConfig
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


PROGRAM = """
from small_llama import PAD, PROMPTS, batch, make_model

settings = dict(max_new_tokens=6, do_sample=False, pad_token_id=PAD)
asked = dict(custom_generate="someone/revisit", trust_remote_code=True)
print(make_model().generate(**batch(PROMPTS), **settings, **asked, revisit_config={"alpha": 0.02}))
"""


def test_a_repository_of_the_hub_may_be_named(model, tmp_path):
    """A process of its own, since the hub's client reads its address once."""
    hub = Server()
    folder = ROOT / "custom_generate"
    files = {f"custom_generate/{path.name}": path.read_bytes() for path in folder.glob("*.*")}
    hub.models["someone/revisit"] = {"0" * 40: files}
    own = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parent),
    }
    try:
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, **own},
            capture_output=True,
            text=True,
        )
    finally:
        hub.close()
    assert run.returncode == 0, run.stderr
    with revisit.attach(model, ReVisiTConfig(alpha=0.02)):
        expected = model.generate(**batch(PROMPTS), **SETTINGS)
    assert run.stdout.strip() == str(expected)
