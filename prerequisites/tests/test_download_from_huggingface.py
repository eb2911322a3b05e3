"""The checkpoint downloader with the hub's real client, against an endpoint on the loopback."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path

import huggingface_hub
import pytest

import download_from_huggingface
from download_from_huggingface import CHECKPOINTS, RECORD, read_parts, why_incomplete

HERE = Path(download_from_huggingface.__file__).parent
LLAVA, CLIP = "liuhaotian/llava-v1.5-7b", "openai/clip-vit-large-patch14-336"
QWEN = "Qwen/Qwen2.5-VL-7B-Instruct"
PINS = {each.name: each.revision for one in CHECKPOINTS.values() for each in one.repositories}
FILES = f"/{QWEN}/resolve/{PINS[QWEN]}"
NEWER = "e" * 40  # a commit that a hub may have on top of the pinned one
SHARD = "model-00001-of-00001.safetensors"
SHARDS = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]


def weights(seed: int, size: int = 200_000) -> bytes:
    return random.Random(seed).randbytes(size)


def index(*shards: str) -> bytes:
    return json.dumps({"weight_map": {f"w{i}": shard for i, shard in enumerate(shards)}}).encode()


MODELS = {
    LLAVA: {
        "config.json": json.dumps({"model_type": "llava", "mm_vision_tower": CLIP}).encode(),
        "tokenizer.model": weights(1, 1000),
        "tokenizer_config.json": b"{}",
        **{shard: weights(number) for number, shard in enumerate(SHARDS)},
        "pytorch_model.bin.index.json": index(*SHARDS),
        "mm_projector.bin": weights(4),
        "README.md": b"# LLaVA",
    },
    CLIP: {
        "config.json": b'{"model_type": "clip"}',
        "preprocessor_config.json": b"{}",
        "pytorch_model.bin": weights(5),
        "tf_model.h5": weights(6),
        "onnx/model.onnx": weights(7),
    },
    QWEN: {
        "config.json": b'{"model_type": "qwen2_5_vl"}',
        "preprocessor_config.json": b"{}",
        "chat_template.json": b"{}",
        "merges.txt": b"a b\n",
        SHARD: weights(8),
        "model.safetensors.index.json": index(SHARD),
        "pytorch_model.bin": weights(9),
        ".gitattributes": b"",
    },
}
WANTED = {
    "llava-v1.5-7b": {
        *(name for name in MODELS[LLAVA] if name not in ("mm_projector.bin", "README.md")),
        *(f"{CLIP}/{name}" for name in list(MODELS[CLIP])[:3]),
    },
    "Qwen2.5-VL-7B-Instruct": set(MODELS[QWEN]) - {"pytorch_model.bin", ".gitattributes"},
}


@pytest.fixture
def large(hub, downloads):
    """A shard that comes in several pieces."""
    content = weights(10, 24_000_000)
    hub.models[QWEN][PINS[QWEN]][SHARD] = content
    return content


@pytest.fixture
def downloads(hub, tmp_path):
    hub.models = {name: {PINS[name]: dict(files)} for name, files in MODELS.items()}
    return Downloads(hub, tmp_path / "here")


class Downloads:
    def __init__(self, hub, folder: Path) -> None:
        self.hub, self.folder = hub, folder
        self.llava = folder / "llava-v1.5-7b"
        self.qwen = folder / "Qwen2.5-VL-7B-Instruct"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder.parent / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def start(self, model: str, *more: str, **options) -> subprocess.Popen[str]:
        program = str(HERE / "download_from_huggingface.py")
        command = [sys.executable, program, "--model", model, "--download_path", str(self.folder)]
        return subprocess.Popen(
            [*command, *more],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def run(self, model: str, *more: str, **options) -> tuple[int, str]:
        run = self.start(model, *more, **options)
        try:
            said = "".join(run.communicate(timeout=60))
        finally:
            run.kill()
        assert "Traceback" not in said, said
        return run.returncode, said

    def files(self, folder: Path) -> dict[str, bytes]:
        paths = [path for path in folder.rglob("*") if path.is_file()]
        found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        found.pop(RECORD, None)
        return found

    def served(self, file: str) -> list[str]:
        gets = [request for request in self.hub.requests if request.method == "GET"]
        return [request.range for request in gets if request.path.endswith(f"/{file}")]


def test_both_checkpoints_come_whole_and_without_what_is_not_read(downloads):
    status, said = downloads.run("all")
    assert status == 0, said
    assert set(downloads.files(downloads.llava)) == WANTED["llava-v1.5-7b"]
    assert set(downloads.files(downloads.qwen)) == WANTED["Qwen2.5-VL-7B-Instruct"]
    for name, content in downloads.files(downloads.qwen).items():
        assert content == MODELS[QWEN][name]
    tower = downloads.llava / json.loads(MODELS[LLAVA]["config.json"])["mm_vision_tower"]
    assert (tower / "pytorch_model.bin").read_bytes() == MODELS[CLIP]["pytorch_model.bin"]
    commits = {part.name: part.commit for part in read_parts(downloads.llava)}
    assert commits == {name: PINS[name] for name in (LLAVA, CLIP)}
    assert why_incomplete(downloads.llava, hashes=True) == ""
    assert not list(downloads.folder.glob(".*making"))

    # Again, with no network at all.
    downloads.hub.close()
    status, said = downloads.run("all")
    assert status == 0 and said.count("is complete") == 2


def test_it_goes_where_the_evaluation_scripts_look():
    for model, script in (
        ("llava", "LLaVA1.5/eval_chair_llava.sh"),
        ("qwen", "Qwen2.5-VL/eval_chair_qwenvl.sh"),
    ):
        folder = HERE / download_from_huggingface.CHECKPOINTS[model].folder
        assert f"$root/{folder.relative_to(HERE.parent)}}}" in (HERE.parent / script).read_text()


def test_a_dropped_connection_is_resumed(downloads, large):
    # The hub's client asks for the headers first: the second answer is the file.
    downloads.hub.script[f"{FILES}/{SHARD}"] = deque([None, ("cut", 21_000_000)])
    downloads.hub.script[f"{FILES}/merges.txt"] = deque([None, ("cut", 2)])
    status, said = downloads.run("qwen")
    assert status == 0, said
    assert downloads.files(downloads.qwen)["merges.txt"] == MODELS[QWEN]["merges.txt"]
    assert downloads.files(downloads.qwen)[SHARD] == large
    # The client writes in pieces of 10 MiB.
    assert downloads.served(SHARD) == ["", f"bytes={20 << 20}-"]


def test_a_hub_without_ranges(downloads):
    downloads.hub.ranges = False
    downloads.hub.script[f"{FILES}/{SHARD}"] = deque([None, ("cut", 1000)])
    status, said = downloads.run("qwen")
    assert status == 0, said
    assert downloads.files(downloads.qwen)[SHARD] == MODELS[QWEN][SHARD]


def test_an_overloaded_hub_is_asked_again(downloads):
    downloads.hub.script[f"/api/models/{QWEN}/revision/{PINS[QWEN]}"] = deque([503])
    downloads.hub.script[f"{FILES}/merges.txt"] = deque([None, 503])
    status, said = downloads.run("qwen")
    assert status == 0 and "trying again in 1 s" in said, said


@pytest.mark.parametrize(("kill", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_run_that_was_stopped_goes_on_where_it_was(downloads, large, kill, status):
    downloads.hub.script[f"{FILES}/{SHARD}"] = deque([None, ("stall", 21_000_000)])
    run = downloads.start("qwen")
    assert downloads.hub.stalled.wait(30)
    while not any(part.stat().st_size for part in downloads.folder.rglob("*.incomplete")):
        assert run.poll() is None
    run.send_signal(kill)
    _, said = run.communicate(timeout=30)
    assert run.returncode == status and (status != 130 or "Run the same command again" in said)
    assert not downloads.qwen.exists()
    downloads.hub.resume.set()

    # The commit that was begun is gone on with, and not asked for again.
    listings = [request for request in downloads.hub.requests if "/api/" in request.path]
    done, said = downloads.run("qwen")
    assert done == 0, said
    assert [r for r in downloads.hub.requests if "/api/" in r.path] == listings
    assert downloads.files(downloads.qwen)[SHARD] == large
    assert downloads.served("merges.txt") == [""]
    if huggingface_hub.__version__.startswith("0."):  # a newer client starts a cut file anew
        assert re.fullmatch(r"bytes=[1-9]\d+-", downloads.served(SHARD)[1])


def test_two_runs_at_once_download_once(downloads):
    downloads.hub.script[f"{FILES}/merges.txt"] = deque([None, ("stall", 1)])
    first = downloads.start("qwen")
    assert downloads.hub.stalled.wait(30)
    second = downloads.start("qwen")
    assert "waiting for it" in second.stderr.readline()
    downloads.hub.resume.set()
    assert "complete" in first.communicate(timeout=30)[0]
    assert "complete" in second.communicate(timeout=30)[0]
    assert downloads.served(SHARD) == [""]


@pytest.mark.parametrize("file", [SHARD, "merges.txt"])
def test_a_file_with_another_hash_is_thrown_away(downloads, file):
    downloads.hub.wrong_hash = {file}
    status, said = downloads.run("qwen")
    assert status == 1 and f"hub announces: {file}. They were thrown away" in said
    assert not downloads.qwen.exists()
    assert not (downloads.folder / ".Qwen2.5-VL-7B-Instruct.making" / file).exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "removed"])
def test_a_damaged_checkpoint_is_mended_at_its_commit(downloads, damage):
    assert downloads.run("llava")[0] == 0
    shard = downloads.llava / SHARDS[1]
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.unlink()
    if damage != "removed":
        shard.write_bytes(content if damage == "flipped" else content[:500])
    assert why_incomplete(downloads.llava, hashes=True).endswith(f"files: {SHARDS[1]}")
    status, said = downloads.run("llava")
    assert status == 0, said
    assert set(downloads.files(downloads.llava)) == WANTED["llava-v1.5-7b"]
    assert shard.read_bytes() == MODELS[LLAVA][SHARDS[1]]
    assert downloads.served(SHARDS[0]) == [""]


@pytest.fixture
def moved_on(downloads):
    """The hub has a newer commit than the pinned one; its chat template."""
    downloads.hub.models[QWEN][NEWER] = {**MODELS[QWEN], "chat_template.json": b'{"newer": 1}'}
    return downloads.hub.models[QWEN][NEWER]["chat_template.json"]


def test_the_pinned_commit_comes_though_the_hub_has_moved_on(downloads, moved_on):
    assert downloads.run("qwen")[0] == 0
    assert [part.commit for part in read_parts(downloads.qwen)] == [PINS[QWEN]]
    assert downloads.files(downloads.qwen)["chat_template.json"] != moved_on


def test_the_instructions_name_the_pinned_commits():
    instructions = (HERE.parent / "docs" / "reproducing.md").read_text()
    rows = [row for row in instructions.splitlines() if row.startswith("|")]
    for name, commit in PINS.items():
        assert any(f"`{name}`" in row and f"`{commit}`" in row for row in rows)


def test_main_is_the_newest_and_kept_to_from_then_on(downloads, moved_on):
    assert downloads.run("qwen", "--revision", "main")[0] == 0
    downloads.hub.models[QWEN]["f" * 40] = dict(MODELS[QWEN])
    for again in ((), ("--revision", "main"), ("--revision", NEWER)):
        status, said = downloads.run("qwen", *again)
        assert status == 0 and f"is complete: {QWEN} at commit {NEWER}" in said
    assert downloads.files(downloads.qwen)["chat_template.json"] == moved_on


def test_main_of_llava_leaves_its_vision_tower_pinned(downloads):
    downloads.hub.models[LLAVA][NEWER] = downloads.hub.models[CLIP][NEWER] = {}
    downloads.hub.models[LLAVA]["f" * 40] = dict(MODELS[LLAVA])
    assert downloads.run("llava", "--revision", "main")[0] == 0
    assert [part.commit for part in read_parts(downloads.llava)] == ["f" * 40, PINS[CLIP]]


@pytest.mark.parametrize("other", ["main", NEWER])
def test_a_checkpoint_of_another_commit_is_not_taken_for_the_one_asked(downloads, moved_on, other):
    assert downloads.run("qwen")[0] == 0
    status, said = downloads.run("qwen", "--revision", other)
    assert status == 1 and "--download_path" in said
    assert f"holds commit {PINS[QWEN]}" in said and f"not {other}" in said
    assert set(downloads.files(downloads.qwen)) == WANTED["Qwen2.5-VL-7B-Instruct"]


def test_what_came_of_another_revision_is_not_mixed_in(downloads, moved_on):
    downloads.hub.script[f"{FILES}/{SHARD}"] = deque([404])
    assert downloads.run("qwen")[0] == 1
    assert downloads.run("qwen", "--revision", "main")[0] == 0
    assert downloads.files(downloads.qwen)["chat_template.json"] == moved_on


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token": "secret"}, "it wants a token"),
        ({"token": "secret", "given": "wrong"}, "the one that you gave is invalid"),
        ({"gated": {QWEN}}, "is gated: accept the terms"),
        ({"revision": "v9"}, "has no revision v9. Check --revision"),
        ({"models": {}}, "the hub shows no Qwen/Qwen2.5-VL-7B-Instruct at cc594898"),
        ({"models": {QWEN: {PINS[QWEN]: {"config.json": b"{}"}}}}, "holds no weights"),
        ({"offline": "1"}, "HF_HUB_OFFLINE forbids the network"),
    ],
    ids=str,
)
def test_what_the_hub_refuses_is_said_clearly(downloads, change, said):
    more = ["--revision", change["revision"]] if "revision" in change else []
    for name in ("token", "gated", "models"):
        if name in change:
            setattr(downloads.hub, name, change[name])
    if "given" in change:
        downloads.environment["HF_TOKEN"] = change["given"]
    if "offline" in change:
        downloads.environment["HF_HUB_OFFLINE"] = "1"
    status, words = downloads.run("qwen", *more)
    assert status == 1 and said in words, words
    assert not downloads.qwen.exists()


def test_the_token_goes_to_the_hub(downloads):
    downloads.hub.token = downloads.environment["HF_TOKEN"] = "secret"
    assert downloads.run("qwen")[0] == 0
    assert {request.token for request in downloads.hub.requests} == {"secret"}


def test_a_file_larger_than_the_disk_is_not_begun(downloads):
    downloads.hub.models[QWEN][PINS[QWEN]][SHARD] = Huge(b"w")
    status, said = downloads.run("qwen")
    assert status == 1 and "are needed" in said and "--download_path" in said
    assert downloads.served("merges.txt") == []


class Huge(bytes):
    """Announced as an exabyte."""

    def __len__(self) -> int:
        return 10**18


def test_a_disk_that_fills_up_keeps_what_came(downloads):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    status, said = downloads.run("qwen", preexec_fn=limit)
    assert status == 1 and "cannot write" in said
    assert not downloads.qwen.exists()
    assert downloads.run("qwen")[0] == 0


def test_a_checkpoint_that_the_user_brought(downloads):
    assert downloads.run("llava")[0] == 0
    (downloads.llava / RECORD).unlink()
    downloads.hub.close()
    status, said = downloads.run("llava")
    assert status == 0 and "put there by hand" in said
    (downloads.llava / SHARDS[1]).unlink()
    status, said = downloads.run("llava")
    assert status == 1 and f"lacks {SHARDS[1]}" in said and "not touched" in said
    shutil.rmtree(downloads.llava / "openai")
    assert why_incomplete(downloads.llava).endswith(f"its vision tower {CLIP}")


def test_a_python_without_the_client_says_where_it_is(downloads, tmp_path):
    program = str(HERE / "download_from_huggingface.py")
    command = [sys.executable, "-S", program, "--model", "qwen", "--download_path", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert "has no huggingface_hub. Run this in a family's environment" in run.stderr


def test_a_revision_for_two_models_is_refused(downloads):
    status, said = downloads.run("all", "--revision", "v1")
    assert status == 2 and "--model llava or --model qwen" in said
