"""The checkpoint downloader with the hub's real client, against an endpoint on the loopback."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

import download_from_huggingface
from download_from_huggingface import CHECKPOINTS, RECORD, read_files, why_incomplete

HERE = Path(download_from_huggingface.__file__).parent
LLAVA, CLIP = (each.name for each in CHECKPOINTS["llava"].repositories)
QWEN = CHECKPOINTS["qwen"].repositories[0].name
PINS = {each.name: each.revision for one in CHECKPOINTS.values() for each in one.repositories}
NEWER = "e" * 40  # a commit that a hub may have on top of the pinned one
SHARDS = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
LARGE = random.Random(0).randbytes(24_000_000)  # comes in several pieces
MODELS = {
    LLAVA: {
        "config.json": json.dumps({"mm_vision_tower": CLIP}).encode(),
        "tokenizer.model": b"tokens",
        **dict.fromkeys(SHARDS, LARGE[:200_000]),
        "pytorch_model.bin.index.json": json.dumps(
            {"weight_map": dict(enumerate(SHARDS))}
        ).encode(),
        **dict.fromkeys(["mm_projector.bin", "README.md"], b"not read"),
    },
    CLIP: {
        **{"config.json": b"{}", "pytorch_model.bin": LARGE[:1000]},
        **dict.fromkeys(["tf_model.h5", "onnx/config.json"], b"not read"),
    },
    QWEN: {
        **{"config.json": b"{}", "preprocessor_config.json": b"{}", "model.safetensors": LARGE},
        **dict.fromkeys(["pytorch_model.bin", ".gitattributes"], b"not read"),
    },
}


@pytest.fixture
def hub(server):
    server.models = {name: {PINS[name]: dict(files)} for name, files in MODELS.items()}
    return server


@pytest.fixture
def begin(hub, start, tmp_path):
    """Call it with a model and flags to start the program."""
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": ""}
    where = ("--download_path", str(tmp_path), "--model")

    def run(*arguments: str, **more: str) -> subprocess.Popen[str]:
        return start("download_from_huggingface.py", *where, *arguments, **environment | more)

    return run


@pytest.fixture
def run(begin):
    def run(*arguments: str, **more: str) -> tuple[int, str]:
        process = begin(*arguments, **more)
        said = process.communicate(timeout=60)[0]
        assert "Traceback" not in said, said
        return process.returncode, said

    return run


@pytest.fixture
def llava(tmp_path):
    return tmp_path / CHECKPOINTS["llava"].folder


@pytest.fixture
def qwen(tmp_path):
    return tmp_path / CHECKPOINTS["qwen"].folder


def test_checkpoints_come_whole_at_the_pins_and_again_without_a_network(run, hub, llava, qwen):
    for model in MODELS:
        hub.models[model][NEWER] = {}
    status, said = run("all")
    assert status == 0, said
    for folder, files in (llava, MODELS[LLAVA]), (qwen, MODELS[QWEN]), (llava / CLIP, MODELS[CLIP]):
        found = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        assert found.pop(RECORD)
        assert found == {name: b for name, b in files.items() if b != b"not read"}
    hub.close()
    status, said = run("all")
    assert status == 0 and said.count(f"is complete: commit {PINS[QWEN]}") == 1


def test_a_cut_a_busy_hub_and_one_without_ranges_are_overcome(run, hub, qwen):
    hub.ranges = False
    shard = f"/{QWEN}/resolve/{PINS[QWEN]}/model.safetensors"
    hub.script[f"/api/models/{QWEN}/revision/{PINS[QWEN]}"] = [503]
    hub.script[shard] = [("cut", 1000)]
    status, said = run("qwen")
    assert status == 0 and "trying again in 1 s" in said, said
    assert (qwen / "model.safetensors").read_bytes() == LARGE


@pytest.mark.parametrize(("kill", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_run_that_was_stopped_goes_on_where_it_was(begin, run, hub, tmp_path, qwen, kill, status):
    hub.script[f"/{QWEN}/resolve/{PINS[QWEN]}/model.safetensors"] = [("stall", 21_000_000)]
    process = begin("qwen")
    assert hub.stalled.wait(30)
    while not any(part.stat().st_size for part in tmp_path.rglob("*.incomplete")):
        assert process.poll() is None
    process.send_signal(kill)
    said = process.communicate(timeout=30)[0]
    assert process.returncode == status and ("\nInterrupted. Run" in said) == (status == 130)
    assert not qwen.exists() and "Traceback" not in said
    hub.resume.set()
    assert run("qwen")[0] == 0 and (qwen / "model.safetensors").read_bytes() == LARGE
    # A newer client than a family's starts a cut file anew.
    if huggingface_hub.__version__.startswith("0."):
        assert hub.ranges_asked("model.safetensors")[-1].startswith("bytes=")


def test_a_file_with_another_hash_is_thrown_away(run, hub, qwen, tmp_path):
    hub.misnamed = {"model.safetensors", "config.json"}
    status, said = run("qwen")
    assert status == 1 and "They were thrown away; run this again" in said
    assert not qwen.exists() and len(list(tmp_path.rglob("*.safetensors"))) == 0


@pytest.mark.parametrize("damage", [b"cut", LARGE[1:200_001], None], ids=["cut", "other", "gone"])
def test_a_damaged_checkpoint_is_mended_at_its_commit(run, hub, llava, damage):
    assert run("llava")[0] == 0 and set(read_files(llava)) > {f"{CLIP}/config.json"}
    (llava / SHARDS[1]).unlink()
    if damage:
        (llava / SHARDS[1]).write_bytes(damage)
    assert why_incomplete(llava, hashes=True).endswith(f"lacks {SHARDS[1]} (missing or damaged)")
    status, said = run("llava")
    assert status == 0 and (llava / SHARDS[1]).read_bytes() == LARGE[:200_000], said
    assert hub.ranges_asked(SHARDS[0]) == [""]


def test_a_branch_is_resolved_once_and_another_commit_is_not_taken_for_it(run, hub, qwen):
    hub.models[QWEN][NEWER] = {**MODELS[QWEN], "merges.txt": b"newer"}
    assert run("qwen", "--revision", "main")[0] == 0 and (qwen / "merges.txt").exists()
    hub.models[QWEN]["f" * 40] = {}
    for again in (), ("--revision", "main"), ("--revision", NEWER):
        assert f"is complete: commit {NEWER}" in run("qwen", *again)[1]
    status, said = run("qwen", "--revision", PINS[QWEN])
    assert status == 1 and f"holds commit {NEWER} (revision main), not {PINS[QWEN]}" in said
    assert run("all", "--revision", "main")[0] == 2


@pytest.mark.parametrize(
    ("change", "flags", "said"),
    [
        ({"token": "secret"}, {}, "give it as HF_TOKEN"),
        ({"token": "secret"}, {"HF_TOKEN": "wrong"}, "give it as HF_TOKEN"),
        ({"models": {QWEN: {NEWER: {}}}}, {}, "Check --revision"),
        ({"models": {LLAVA: {}}}, {}, f"no {QWEN} at {PINS[QWEN]} from the hub"),
        ({"models": {QWEN: {PINS[QWEN]: {"a.json": b""}}}}, {}, "holds no weights"),
        ({}, {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids the network"),
    ],
    ids=str,
)
def test_what_the_hub_refuses_is_said(run, hub, qwen, change, flags, said):
    vars(hub).update(change)
    status, words = run("qwen", **flags)
    assert status == 1 and said in words and not qwen.exists(), words


def test_the_token_goes_to_the_hub(run, hub):
    hub.token = "secret"
    assert run("qwen", HF_TOKEN="secret")[0] == 0


def test_a_checkpoint_larger_than_the_disk_is_not_begun(run, hub):
    huge = type("Huge", (bytes,), {"__len__": lambda self: 10**18})
    hub.models[QWEN][PINS[QWEN]]["model.safetensors"] = huge(b"w")
    status, said = run("qwen")
    assert status == 1 and "are needed" in said and hub.ranges_asked("config.json") == []


def test_a_checkpoint_that_the_user_brought_is_left_alone(run, hub, llava):
    assert run("llava")[0] == 0
    for record in llava.rglob(RECORD):
        record.unlink()
    hub.close()
    assert "put there by hand" in run("llava")[1]
    (llava / SHARDS[1]).unlink()
    (llava / CLIP / "config.json").unlink()
    status, said = run("llava")
    assert (
        status == 1
        and "not touched" in said
        and f"lacks {SHARDS[1]}, its vision tower {CLIP} (" in said
    )


def test_a_python_without_the_client_says_where_it_is(tmp_path):
    command = [sys.executable, "-S", HERE / "download_from_huggingface.py", "--model", "qwen"]
    command += ["--download_path", tmp_path]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1 and "Run this in a family's environment" in run.stderr


def test_scripts_and_instructions_agree_with_it():
    for model, script in (
        ("llava", "LLaVA1.5/eval_chair_llava"),
        ("qwen", "Qwen2.5-VL/eval_chair_qwenvl"),
    ):
        folder = (HERE / CHECKPOINTS[model].folder).relative_to(HERE.parent)
        assert f"$root/{folder}}}" in (HERE.parent / f"{script}.sh").read_text()
    rows = (HERE.parent / "docs" / "reproducing.md").read_text().splitlines()
    for name, commit in PINS.items():
        assert any(f"`{name}`" in row and f"`{commit}`" in row for row in rows)
