"""The COCO downloader, as a command, against a server that has a small COCO."""

import hashlib
import json
import re
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import download_coco
from conftest import make_zip

HERE = Path(download_coco.__file__).parent
IMAGES = [f"COCO_val2014_{number:012}.jpg" for number in range(3)]
LISTED = json.dumps({"images": [{"file_name": name} for name in IMAGES]}).encode()
JSONS = ("instances_val2014.json", "captions_val2014.json", "person_keypoints_val2014.json")
FILES = {
    "annotations": {f"annotations/{name}": LISTED for name in JSONS},
    "val2014": {f"val2014/{name}": name.encode() * 500 for name in IMAGES},
}


@pytest.fixture
def coco(server, tmp_path):
    return Source(server, tmp_path / "coco")


class Source:
    """`arguments` name the server's archives, their hashes, and where they go."""

    def __init__(self, server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.arguments = ["--download_path", str(folder)]
        for name, option in (("annotations", "annotations"), ("val2014", "images")):
            self.put(name, option, make_zip(FILES[name]))

    def put(self, name: str, option: str, packed: bytes) -> None:
        url, sha256 = self.server.add(f"/{name}.zip", packed), hashlib.sha256(packed).hexdigest()
        self.arguments += [f"--{option}_url", url, f"--{option}_sha256", sha256]

    def run(self, *more: str) -> int:
        return download_coco.main([*self.arguments, *more])

    def made(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("[!.]*"))

    @property
    def is_whole(self) -> bool:
        paths = [path for name in FILES for path in (self.folder / name).rglob("*")]
        made = {str(path.relative_to(self.folder)): path.read_bytes() for path in paths}
        wanted = {**FILES["annotations"], **FILES["val2014"]}
        wanted.pop(f"annotations/{JSONS[2]}")
        return made == wanted and download_coco.why_incomplete(self.folder) == ""


def test_images_and_annotations_come_and_a_second_run_asks_for_nothing(coco):
    assert coco.run() == 0 and coco.is_whole
    assert coco.run() == 0 and len(coco.server.asked) == 2
    shutil.rmtree(coco.folder / "val2014")  # the zip file, also the user's, is taken
    assert coco.run("--remove_zip") == 0 and coco.is_whole and len(coco.server.asked) == 2
    assert coco.made() == ["annotations", "val2014"]


def test_the_known_size_and_md5_are_asked_for_of_mirrors_too(coco, monkeypatch, capsys):
    packed = coco.server.files["/val2014.zip"]
    known = {"size": len(packed), "md5": "0" * 32}
    pinned = replace(download_coco.ARCHIVES["val2014"], **known)
    monkeypatch.setitem(download_coco.ARCHIVES, "val2014", pinned)
    coco.arguments = coco.arguments[:-2]  # without the images' hash
    assert coco.run() == 1 and "its md5 is" in capsys.readouterr().err
    assert coco.made() == ["annotations", "annotations.zip"]
    (coco.folder / "val2014.zip").write_bytes(packed)  # nor is it taken from the user
    assert coco.run() == 1 and "not the expected archive: its md5" in capsys.readouterr().err
    known["md5"] = hashlib.md5(packed).hexdigest()
    monkeypatch.setitem(download_coco.ARCHIVES, "val2014", replace(pinned, **known))
    assert coco.run() == 0 and coco.is_whole


@pytest.mark.parametrize("name", ["../up", "val2014/../../../up", "/absolute", "val2014/link@"])
def test_a_member_that_leads_out_stops_all(coco, capsys, name):
    coco.put("val2014", "images", make_zip({**FILES["val2014"], name: b"/etc/passwd"}))
    assert coco.run() == 1 and "unsafe" in capsys.readouterr().err
    assert coco.made() == ["annotations", "annotations.zip", "val2014.zip"]
    assert [path.name for path in coco.folder.parent.iterdir()] == ["coco"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "page", "lacking", "no annotations"])
def test_a_damaged_archive_leaves_no_folder(coco, capsys, damage):
    packed = bytearray(coco.server.files["/val2014.zip"])
    packed[packed.index(IMAGES[0].encode()) + 40] ^= 1
    some = dict(list(FILES["val2014"].items())[1:])
    broken = {"flipped": packed, "cut": packed[:90], "page": b"<html>", "lacking": make_zip(some)}
    option = "annotations" if damage == "no annotations" else "images"
    pages = make_zip({f"annotations/{name}": b"<html>" for name in JSONS})
    coco.put({"images": "val2014"}.get(option, option), option, bytes(broken.get(damage, pages)))
    assert coco.run() == 1 and ".zip " in (said := capsys.readouterr().err), said
    assert option not in coco.made() and "val2014" not in coco.made()
    assert not list(coco.folder.glob(".*unpacking"))


def test_a_bomb_is_seen_before_a_byte_is_unpacked(coco, small_disk, capsys):
    coco.put("val2014", "images", make_zip({**FILES["val2014"], "val2014/zero": bytes(10**8)}))
    small_disk(10**7)
    assert coco.run() == 1 and "0.0 GB free and 0.1 GB are needed" in capsys.readouterr().err


def test_a_folder_of_the_user_is_left_alone(coco, capsys):
    mine = coco.folder / "val2014" / IMAGES[0]
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    assert coco.run() == 1 and mine.read_bytes() == b"mine"
    assert "lacks 2 of 3 images" in (said := capsys.readouterr().err) and "not touched" in said


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
    whole = len(coco.server.files["/val2014.zip"])  # asks for what follows: there is nothing
    expected = r"bytes=[12]\d{4}-" if kill == signal.SIGINT else f"bytes={whole}-"
    assert re.fullmatch(expected, coco.server.ranges_asked("/val2014.zip")[1])


def test_the_shell_script_works_from_any_folder_or_says_what_it_lacks(coco, tmp_path):
    script = [shutil.which("bash"), HERE / "download_coco.sh", *coco.arguments]
    assert subprocess.run(script, cwd=tmp_path).returncode == 0 and coco.is_whole
    (tmp_path / "dirname").symlink_to(shutil.which("dirname"))
    script[1] = shutil.copy(script[1], tmp_path)
    run = subprocess.run(script, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert run.returncode == 1 and "no Python 3.11" in run.stderr


def test_scripts_and_instructions_agree_with_it():
    for script in ("LLaVA1.5/eval_chair_llava.sh", "Qwen2.5-VL/eval_chair_qwenvl.sh"):
        text = (HERE.parent / script).read_text()
        for folder in FILES:
            assert f"$root/{(download_coco.COCO / folder).relative_to(HERE.parent)}}}" in text
    rows = (HERE.parent / "docs" / "reproducing.md").read_text().splitlines()
    for archive in download_coco.ARCHIVES.values():
        known = (archive.url.rpartition("/")[2], archive.md5, f"{archive.size:,} bytes")
        assert any(all(word in row for word in known) for row in rows)
