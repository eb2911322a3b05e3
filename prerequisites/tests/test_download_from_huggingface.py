"""The checkpoint downloader with the hub's real client, against an endpoint on the loopback."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

import download_from_huggingface
from download_from_huggingface import CHECKPOINTS, why_incomplete

HERE = Path(download_from_huggingface.__file__).parent
PINS = dict(pin for one in CHECKPOINTS.values() for pin in one["repositories"].values())
LLAVA, CLIP, QWEN = PINS
NEWER = "e" * 40  # a commit that a hub may have on top of the pinned one
SHARDS = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
LARGE = random.Random(0).randbytes(24_000_000)  # comes in several pieces
INDEX = json.dumps({"weight_map": dict(enumerate(SHARDS))}).encode()
CONFIG = json.dumps({"mm_vision_tower": CLIP}).encode()
MODELS = {
    LLAVA: {"config.json": CONFIG, "tokenizer.model": b"tokens"}
    | {"pytorch_model.bin.index.json": INDEX, SHARDS[0]: LARGE[:200_000]}
    | {SHARDS[1]: LARGE[:200_000], "mm_projector.bin": b"not read", "README.md": b"not read"},
    CLIP: {"config.json": b"{}", "pytorch_model.bin": LARGE[:1000]}
    | {"tf_model.h5": b"not read", "onnx/config.json": b"not read"},
    QWEN: {"config.json": b"{}", "preprocessor_config.json": b"{}", "model.safetensors": LARGE}
    | {"pytorch_model.bin": b"not read", ".gitattributes": b"not read"},
}


@pytest.fixture
def hub(server):
    for name, files in MODELS.items():
        server.add_model(name, PINS[name], files)
    return server


@pytest.fixture
def begin(hub, start, tmp_path):
    """Call it with a model and flags to start the program; `needed` bytes are asked of the disk."""
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": ""}
    for name in ("fetching.py", "download_from_huggingface.py"):
        shutil.copy(HERE / name, tmp_path)

    def call(*arguments: str, needed: int = 0, **more: str) -> subprocess.Popen[str]:
        table = re.sub("bytes = .*", f"bytes = {needed}", (HERE / "datasets.toml").read_text())
        (tmp_path / "datasets.toml").write_text(table)
        program = str(tmp_path / "download_from_huggingface.py")
        return start(program, "--model", *arguments, **environment | more)

    return call


@pytest.fixture
def run(begin):
    def call(*arguments: str, **more) -> tuple[int, str]:
        process = begin(*arguments, **more)
        output = process.communicate(timeout=60)[0]
        assert "Traceback" not in output, output
        return process.returncode, output

    return call


@pytest.fixture
def llava(tmp_path):
    return tmp_path / CHECKPOINTS["llava"]["folder"]


@pytest.fixture
def qwen(tmp_path):
    return tmp_path / CHECKPOINTS["qwen"]["folder"]


def test_checkpoints_come_whole_at_the_pins_and_again_without_a_network(run, hub, llava, qwen):
    for model in MODELS:
        hub.add_model(model, NEWER, {})
    status, output = run("all")
    assert status == 0, output
    for folder, files in (llava, MODELS[LLAVA]), (qwen, MODELS[QWEN]), (llava / CLIP, MODELS[CLIP]):
        found = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        found.pop(download_from_huggingface.REVISION, None)
        assert found == {name: files[name] for name in files if files[name] != b"not read"}
    hub.close()
    status, output = run("all")
    assert status == 0 and output.count(f"is complete: commit {PINS[QWEN]}") == 1


def test_a_cut_a_busy_hub_and_one_without_ranges_are_overcome(run, hub, qwen):
    hub.ranges, hub.token = False, "secret"
    hub.script[f"/api/models/{QWEN}/revision/{PINS[QWEN]}"] = [503]
    hub.script[f"/{QWEN}/resolve/{PINS[QWEN]}/model.safetensors"] = [("cut", 1000)]
    status, output = run("qwen", HF_TOKEN="secret")
    assert status == 0 and (qwen / "model.safetensors").read_bytes() == LARGE, output


@pytest.mark.parametrize(("kill", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_run_that_was_stopped_goes_on_where_it_was(begin, run, hub, tmp_path, qwen, kill, status):
    hub.script[f"/{QWEN}/resolve/{PINS[QWEN]}/model.safetensors"] = [("stall", 21_000_000)]
    process = begin("qwen")
    assert hub.stalled.wait(30)
    while not any(part.stat().st_size for part in tmp_path.rglob("*.incomplete")):
        assert process.poll() is None
    process.send_signal(kill)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == status and ("\nInterrupted. Run" in output) == (status == 130)
    assert not qwen.exists() and "Traceback" not in output
    hub.resume.set()
    assert run("qwen")[0] == 0 and (qwen / "model.safetensors").read_bytes() == LARGE
    # A newer client than a family's starts a cut file anew.
    if huggingface_hub.__version__.startswith("0."):
        assert hub.ranges_asked("model.safetensors")[-1].startswith("bytes=")


def test_a_file_with_another_hash_is_thrown_away(run, hub, qwen, tmp_path):
    hub.add_model(QWEN, PINS[QWEN], MODELS[QWEN], wrong={"model.safetensors", "config.json"})
    status, output = run("qwen")
    assert status == 1 and "They were thrown away; run this again" in output
    assert not qwen.exists() and len(list(tmp_path.rglob("*.safetensors"))) == 0


def test_a_damaged_checkpoint_is_mended_at_its_commit(run, hub, llava, qwen):
    assert run("llava")[0] == 0
    weights, tower = (SHARDS[1], LARGE[1:200_001]), (f"{CLIP}/pytorch_model.bin", b"")
    for name, content in (weights, tower, ("tokenizer.model", b"")):
        (llava / name).write_bytes(content)
        assert f"lacks {name}" in why_incomplete(llava, hashes=True)
        status, output = run("llava")
        assert status == 0 and why_incomplete(llava, hashes=True) == "", output
    assert hub.ranges_asked(SHARDS[0]) == [""]
    for note in llava.rglob(".cache"):  # as if the user had brought it
        shutil.rmtree(note)
    hub.close()
    assert "put there by hand" in run("llava")[1]
    (llava / SHARDS[1]).unlink()
    (llava / CLIP / "config.json").unlink()
    status, output = run("llava")
    lost = f"lacks {SHARDS[1]}, its vision tower {CLIP} ("
    assert status == 1 and "not touched" in output and lost in output


def test_a_branch_is_resolved_once_and_another_commit_is_not_taken_for_it(run, hub, qwen):
    hub.add_model(QWEN, NEWER, MODELS[QWEN] | {"merges.txt": b"newer"})
    assert run("qwen", "--revision", "main")[0] == 0 and (qwen / "merges.txt").exists()
    hub.add_model(QWEN, "f" * 40, {})
    for again in (), ("--revision", "main"), ("--revision", NEWER):
        assert f"is complete: commit {NEWER}" in run("qwen", *again)[1]
    status, output = run("qwen", "--revision", PINS[QWEN])
    assert status == 1 and f"holds commit {NEWER} (revision main), not {PINS[QWEN]}" in output
    assert run("all", "--revision", "main")[0] == 2


@pytest.mark.parametrize(
    ("change", "flags", "error"),
    [
        ({"token": "secret"}, {"HF_TOKEN": "wrong"}, "give it as HF_TOKEN"),
        ({"files": {}}, {}, f"no {QWEN} at {PINS[QWEN]} from the hub"),
        ({}, {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids the network"),
        ({}, {"needed": 10**18}, "are needed"),
    ],
    ids=str,
)
def test_what_cannot_be_is_explained(run, hub, qwen, change, flags, error):
    vars(hub).update(change)
    status, output = run("qwen", **flags)
    assert status == 1 and error in output and not qwen.exists(), output
    assert hub.ranges_asked("config.json") == []


def test_a_python_without_the_client_says_where_it_is(tmp_path):
    command = [sys.executable, "-S", HERE / "download_from_huggingface.py", "--model", "qwen"]
    command += ["--download_path", tmp_path]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1 and "Run this in a family's environment" in run.stderr
