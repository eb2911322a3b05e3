"""The downloaders of data sets, as commands, against a server that has small ones."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from nltk import data

import download_data
from conftest import make_zip
from download_data import DATA, HERE, why_incomplete
from download_from_huggingface import CHECKPOINTS

IMAGES = [f"COCO_val2014_{number:012}.jpg" for number in range(3)]
LISTED = json.dumps({"images": [{"file_name": name} for name in IMAGES]}).encode()
JSONS = ("instances_val2014.json", "captions_val2014.json", "person_keypoints_val2014.json")
FILES = {
    "annotations": {f"annotations/{name}": LISTED for name in JSONS},
    "val2014": {f"val2014/{name}": name.encode() * 500 for name in IMAGES},
}
FOLDERS = {"annotations": "annotations", "images": "val2014"}  # flag -> folder


@pytest.fixture
def coco(server, tmp_path):
    return Coco(server, tmp_path / "coco")


class Coco:
    """A folder for COCO; `arguments` are the flags for the server's archives."""

    def __init__(self, server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.arguments = ["--download_path", str(folder)]
        for option, name in FOLDERS.items():
            self.put(option, make_zip(FILES[name]))

    def put(self, option: str, packed: bytes) -> None:
        url = self.server.add(f"/{FOLDERS[option]}.zip", packed)
        sha256 = hashlib.sha256(packed).hexdigest()
        self.arguments += [f"--{option}_url", url, f"--{option}_sha256", sha256]

    def run(self, *more: str) -> int:
        return download_data.main("coco", [*self.arguments, *more])

    def made(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("[!.]*"))

    @property
    def is_whole(self) -> bool:
        paths = [path for name in FILES for path in (self.folder / name).rglob("*")]
        made = {str(path.relative_to(self.folder)): path.read_bytes() for path in paths}
        wanted = FILES["annotations"] | FILES["val2014"]
        wanted.pop(f"annotations/{JSONS[2]}")
        return made == wanted and why_incomplete("coco", self.folder) == ""


def test_images_and_annotations_come_and_a_second_run_asks_for_nothing(coco):
    assert coco.run() == 0 and coco.is_whole
    assert coco.run() == 0 and len(coco.server.asked) == 2
    shutil.rmtree(coco.folder / "val2014")  # the zip file, also the user's, is taken
    assert coco.run("--remove_zip") == 0 and coco.is_whole and len(coco.server.asked) == 2
    assert coco.made() == ["annotations", "val2014"]


def test_the_known_size_and_md5_are_asked_for_of_mirrors_too(coco, monkeypatch, capsys):
    packed, known = coco.server.files["/val2014.zip"], DATA["coco"]["archives"]["val2014"]
    monkeypatch.setitem(known, "size", len(packed))
    coco.arguments = coco.arguments[:-2]  # without the images' hash
    assert coco.run() == 1 and "its md5 is" in capsys.readouterr().err
    assert coco.made() == ["annotations", "annotations.zip"]
    (coco.folder / "val2014.zip").write_bytes(packed)  # nor is it taken from the user
    assert coco.run() == 1 and "not the expected archive: its md5" in capsys.readouterr().err
    monkeypatch.setitem(known, "md5", hashlib.md5(packed).hexdigest())
    assert coco.run() == 0 and coco.is_whole


@pytest.mark.parametrize("name", ["../up", "val2014/../../../up", "/absolute", "val2014/link@"])
def test_a_member_that_leads_out_stops_all(coco, capsys, name):
    coco.put("images", make_zip({**FILES["val2014"], name: b"/etc/passwd"}))
    assert coco.run() == 1 and "unsafe" in capsys.readouterr().err
    assert coco.made() == ["annotations", "annotations.zip", "val2014.zip"]
    assert [path.name for path in coco.folder.parent.iterdir()] == ["coco"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "page", "lacking", "no annotations"])
def test_a_damaged_archive_leaves_no_folder(coco, capsys, damage):
    packed = bytearray(coco.server.files["/val2014.zip"])
    packed[packed.index(IMAGES[0].encode()) + 40] ^= 1
    some = dict(list(FILES["val2014"].items())[1:])
    broken = {"flipped": packed, "cut": packed[:90], "page": b"<html>", "lacking": make_zip(some)}
    pages = make_zip({f"annotations/{name}": b"<html>" for name in JSONS})
    option = "images" if damage in broken else "annotations"
    coco.put(option, bytes(broken.get(damage, pages)))
    assert coco.run() == 1 and ".zip " in (error := capsys.readouterr().err), error
    assert FOLDERS[option] not in coco.made() and "val2014" not in coco.made()
    assert not list(coco.folder.glob(".*unpacking"))


def test_a_bomb_is_seen_before_a_byte_is_unpacked(coco, small_disk, capsys):
    coco.put("images", make_zip({**FILES["val2014"], "val2014/zero": bytes(10**8)}))
    small_disk(10**7)
    assert coco.run() == 1 and "0.0 GB free and 0.1 GB are needed" in capsys.readouterr().err


def test_a_folder_of_the_user_is_left_alone(coco, capsys):
    mine = coco.folder / "val2014" / IMAGES[0]
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    assert coco.run() == 1 and mine.read_bytes() == b"mine"
    assert "lacks 2 of 3 images" in (error := capsys.readouterr().err) and "not touched" in error


@pytest.mark.parametrize(("kill", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_run_that_was_stopped_goes_on_where_it_was(coco, start, kill, status):
    coco.server.script["/val2014.zip"] = [("stall", 30_000)]
    run = start("download_coco.py", *coco.arguments)
    assert coco.server.stalled.wait(20)
    part = coco.folder / "val2014.zip.part"
    while not part.exists() or not part.stat().st_size:
        assert run.poll() is None
    run.send_signal(kill)
    assert run.wait(20) == status
    if kill == signal.SIGINT:
        assert run.stdout.read().endswith("\nInterrupted. Run the same command again to go on.\n")
    else:  # curl goes on by itself: another run waits for it
        again = start("download_coco.py", *coco.arguments)
        assert "waiting for it" in again.stdout.readline()
        coco.server.resume.set()
        assert again.wait(20) == 0
    assert coco.run() == 0 and coco.is_whole
    whole = len(coco.server.files["/val2014.zip"])  # a request for the bytes after the last one
    expected = r"bytes=[12]\d{4}-" if kill == signal.SIGINT else f"bytes={whole}-"
    assert re.fullmatch(expected, coco.server.ranges_asked("/val2014.zip")[1])


def test_the_shell_script_works_from_any_folder_or_says_what_it_lacks(coco, tmp_path):
    script = [shutil.which("bash"), HERE / "download_coco.sh", *coco.arguments]
    assert subprocess.run(script, cwd=tmp_path).returncode == 0 and coco.is_whole
    (tmp_path / "dirname").symlink_to(shutil.which("dirname"))
    script[1] = shutil.copy(script[1], tmp_path)
    run = subprocess.run(script, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert run.returncode == 1 and "no Python 3.11" in run.stderr


def test_single_files_come_as_published_and_the_user_s_are_left_alone(
    server, tmp_path, monkeypatch, capsys
):
    names = [Path(file).name for file in DATA["pope"]["files"]]
    hashes = {name: hashlib.sha256(name.encode()).hexdigest() for name in names}
    monkeypatch.setitem(DATA["pope"], "files", hashes)
    assert len(names) == 9 and [server.add(f"/q/{name}", name.encode()) for name in names]
    run = ["--download_path", str(tmp_path), "--source_url", f"{server.url}/q/"]
    assert why_incomplete("pope", tmp_path).endswith(f"{names[0]} is missing")
    server.add(f"/q/{names[1]}", b"<html>")
    assert download_data.main("pope", run) == 1
    assert "not the expected file: its sha256" in capsys.readouterr().err
    (tmp_path / names[1]).write_text("mine")
    assert download_data.main("pope", run) == 1 and (tmp_path / names[1]).read_text() == "mine"
    assert "not as published, and not touched" in capsys.readouterr().err
    (tmp_path / names[1]).write_text(names[1])
    server.close()
    assert download_data.main("pope", run) == 0 and why_incomplete("pope", tmp_path) == ""


@pytest.fixture
def nltk(server, tmp_path):
    """Call it with wrong attributes that the index has for every package."""

    def call(**wrong: str) -> int:
        entries = ""
        for name in DATA["nltk"]["packages"]:
            packed = make_zip({f"{name}/english/": b""})
            entry = {"id": name, "url": server.add(f"/{name}.zip", packed), "size": len(packed)}
            entry |= {"checksum": hashlib.md5(packed).hexdigest()} | wrong
            attributes = " ".join(f'{key}="{value}"' for key, value in entry.items())
            entries += f"<package {attributes}/>"
        index = server.add("/index.xml", f"<nltk_data>{entries}</nltk_data>".encode())
        return download_data.main("nltk", ["--download_path", str(tmp_path), "--index_url", index])

    return call


def test_nltk_finds_what_was_downloaded_and_a_second_run_asks_for_nothing(
    nltk, server, tmp_path, monkeypatch
):
    packages = DATA["nltk"]["packages"]
    assert why_incomplete("nltk", tmp_path).endswith(", ".join(packages))
    assert nltk() == 0 and nltk() == 0 and len(server.asked) == 4
    assert why_incomplete("nltk", tmp_path) == ""
    monkeypatch.setattr(data, "path", [str(tmp_path)])
    assert all(data.find(f"{folder}/{name}/english/") for name, folder in packages.items())


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"checksum": "0" * 32}, "its md5 is"),
        ({"sha256_checksum": "0" * 64}, "its sha256 is"),
        ({"size": "17"}, "larger than the 17 bytes"),
        ({"size": "x"}, "is not NLTK's index"),
        ({"id": "another"}, "is not NLTK's index"),
        ({"url": "file:///etc/passwd"}, "is not an address"),
    ],
    ids=str,
)
def test_a_package_unlike_its_entry_does_not_come(nltk, tmp_path, capsys, wrong, error):
    assert nltk(**wrong) == 1 and error in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.zip*"))


def test_the_evaluation_looks_where_downloads_go():
    scripts = {"llava": "LLaVA1.5/eval_chair_llava.sh", "qwen": "Qwen2.5-VL/eval_chair_qwenvl.sh"}
    for model, script in scripts.items():
        text = (HERE.parent / script).read_text()
        for folder in (CHECKPOINTS[model]["folder"], "coco/annotations", "coco/val2014"):
            assert f"$root/prerequisites/{folder}}}" in text
    script = HERE.parent / "shared" / "eval.sh"
    (line,) = [line for line in script.read_text().splitlines() if "NLTK_DATA" in line]
    bare = {name: value for name, value in os.environ.items() if name != "NLTK_DATA"}
    command = ["bash", "-c", f'root={HERE.parent}; {line}; echo "$NLTK_DATA"']
    for more, folder in ({}, str(HERE / "nltk_data")), ({"NLTK_DATA": "/mine"}, "/mine"):
        assert subprocess.check_output(command, env=bare | more, text=True).strip() == folder
