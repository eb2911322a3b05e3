"""The COCO downloader, as a command, against a server that has a small COCO."""

import hashlib
import io
import json
import shutil
import signal
import subprocess
import sys
import zipfile
from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest

import download_coco

HERE = Path(download_coco.__file__).parent
DEMO = HERE / "demo" / "coco"
JSONS = ("captions_val2014.json", "instances_val2014.json")
IMAGES = sorted((DEMO / "val2014").iterdir())[:20]


@pytest.fixture
def coco(server, make_zip, tmp_path):
    """A source of a COCO of twenty images; `arguments` name it and where it goes."""
    return Source(server, make_zip, tmp_path / "coco")


class Source:
    def __init__(self, server, make_zip, folder: Path) -> None:
        self.server, self.folder = server, folder
        listed = json.loads((DEMO / "annotations" / JSONS[1]).read_bytes())
        names = {image.name for image in IMAGES}
        listed["images"] = [image for image in listed["images"] if image["file_name"] in names]
        self.annotations = {
            "annotations/instances_val2014.json": json.dumps(listed).encode(),
            "annotations/captions_val2014.json": (DEMO / "annotations" / JSONS[0]).read_bytes(),
            "annotations/person_keypoints_val2014.json": b"{}",
        }
        self.images = {f"val2014/{image.name}": image.read_bytes() for image in IMAGES}
        self.sha256s: dict[str, str] = {}
        self.put("/annotations.zip", make_zip(self.annotations))
        self.put("/val2014.zip", make_zip(self.images))

    def put(self, path: str, content: bytes) -> None:
        self.server.add(path, content)
        self.sha256s[path] = hashlib.sha256(content).hexdigest()

    @property
    def arguments(self) -> list[str]:
        url = self.server.url
        return [
            *("--download_path", str(self.folder)),
            *(
                "--images_url",
                f"{url}/val2014.zip",
                "--images_sha256",
                self.sha256s["/val2014.zip"],
            ),
            *("--annotations_url", f"{url}/annotations.zip"),
            *("--annotations_sha256", self.sha256s["/annotations.zip"]),
        ]

    def run(self, *more: str) -> int:
        return download_coco.main([*self.arguments, *more])

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-u", str(HERE / "download_coco.py"), *self.arguments]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    @property
    def is_whole(self) -> bool:
        images = {f"val2014/{path.name}": path.read_bytes() for path in self.made("val2014")}
        jsons = {f"annotations/{path.name}": path.read_bytes() for path in self.made("annotations")}
        return images == self.images and jsons == dict(list(self.annotations.items())[:2])

    def made(self, name: str) -> list[Path]:
        return list((self.folder / name).iterdir()) if (self.folder / name).exists() else []


def test_images_and_annotations_come_where_the_evaluation_looks(coco, capsys):
    assert coco.run() == 0
    assert coco.is_whole
    assert download_coco.why_incomplete(coco.folder) == ""
    assert "complete" in capsys.readouterr().out
    record = json.loads((coco.folder / "downloads.json").read_text())
    assert record["val2014"]["sha256"] == coco.sha256s["/val2014.zip"]
    assert {path.name for path in coco.folder.iterdir()} == {
        *("annotations", "val2014", "annotations.zip", "val2014.zip"),
        *("downloads.json", ".download.lock"),
    }


def test_a_second_run_asks_for_nothing(coco):
    assert coco.run() == 0
    times = {path: path.stat().st_mtime_ns for path in coco.folder.rglob("*.*g")}
    coco.server.close()
    assert coco.run() == 0
    assert times == {path: path.stat().st_mtime_ns for path in coco.folder.rglob("*.*g")}
    assert len(coco.server.requests) == 2


def test_the_zip_files_go_when_asked_and_not_before(coco):
    assert coco.run() == 0
    assert len(list(coco.folder.glob("*.zip"))) == 2
    assert coco.run("--remove_zip") == 0
    assert coco.is_whole and not list(coco.folder.glob("*.zip"))


def test_a_removed_folder_is_unpacked_from_the_zip_file(coco):
    assert coco.run() == 0
    shutil.rmtree(coco.folder / "val2014")
    coco.server.close()
    assert coco.run() == 0
    assert coco.is_whole


def test_a_zip_file_that_the_user_brought_is_used(coco):
    coco.folder.mkdir()
    (coco.folder / "val2014.zip").write_bytes(coco.server.files["/val2014.zip"])
    assert coco.run() == 0
    assert coco.is_whole and coco.server.ranges_asked("/val2014.zip") == []


def test_a_zip_file_that_is_another_is_not_used(coco, capsys):
    coco.folder.mkdir()
    (coco.folder / "val2014.zip").write_bytes(coco.server.files["/annotations.zip"])
    assert coco.run() == 1
    assert "not the expected archive" in capsys.readouterr().err
    assert (coco.folder / "val2014.zip").exists() and not coco.made("val2014")


def test_without_a_checksum_the_known_size_is_asked_for(coco, capsys):
    arguments = coco.arguments[:4]  # the images' address, and not its checksum
    coco.run()
    shutil.rmtree(coco.folder / "val2014")
    (coco.folder / "val2014.zip").unlink()
    assert download_coco.main(arguments) == 1
    assert "6,645,013,297 were expected" in capsys.readouterr().err
    assert not coco.made("val2014")


@pytest.fixture
def pinned(coco, monkeypatch):
    """Our server's archives are the ones that the program knows; call it to run without flags."""
    for name, path in (("annotations", "/annotations.zip"), ("val2014", "/val2014.zip")):
        content = coco.server.files[path]
        known = {"size": len(content), "md5": hashlib.md5(content).hexdigest()}
        pin = replace(download_coco.ARCHIVES[name], url=coco.server.url + path, **known)
        monkeypatch.setitem(download_coco.ARCHIVES, name, pin)
    return lambda *more: download_coco.main(["--download_path", str(coco.folder), *more])


def test_the_known_archives_come_without_a_flag_and_their_sha256_is_recorded(coco, pinned):
    assert pinned() == 0 and coco.is_whole
    record = json.loads((coco.folder / "downloads.json").read_text())
    found = {f"/{name}.zip": entry["sha256"] for name, entry in record.items()}
    assert found == coco.sha256s


def test_the_instructions_name_the_known_archives():
    instructions = (HERE.parent / "docs" / "reproducing.md").read_text()
    rows = [row for row in instructions.splitlines() if row.startswith("|")]
    for archive in download_coco.ARCHIVES.values():
        known = (archive.url.rpartition("/")[2], archive.md5, f"{archive.size:,} bytes")
        assert any(all(word in row for word in known) for row in rows)


def test_an_archive_of_the_known_size_with_another_md5_is_refused(coco, pinned, capsys):
    changed = coco.server.files["/val2014.zip"][:-1] + b"!"
    coco.server.add("/val2014.zip", changed)
    assert pinned() == 1
    said = capsys.readouterr().err
    assert "its md5 is" in said and hashlib.md5(changed).hexdigest() in said
    assert coco.made("annotations") and not list(coco.folder.glob("val2014*"))
    (coco.folder / "val2014.zip").write_bytes(changed)  # nor is it taken from the user
    assert pinned() == 1
    assert "val2014.zip is not the expected archive: its md5 is" in capsys.readouterr().err
    assert (coco.folder / "val2014.zip").exists() and not coco.made("val2014")


def test_a_mirror_is_held_to_the_known_md5(coco, pinned, capsys, make_zip):
    other = make_zip({**coco.images, "val2014/more.jpg": b"more"})
    size = len(coco.server.files["/val2014.zip"])
    mirror = coco.server.add("/mirror.zip", other[:size])
    assert pinned("--images_url", mirror) == 1
    assert "its md5 is" in capsys.readouterr().err
    mirror = coco.server.add("/mirror.zip", coco.server.files["/val2014.zip"])
    assert pinned("--images_url", mirror) == 0 and coco.is_whole
    assert coco.server.ranges_asked("/val2014.zip") == []


def test_a_checksum_that_was_recorded_is_held_to(coco, pinned, capsys, monkeypatch, make_zip):
    """What was downloaded once is what comes again, also from a server that changed."""
    assert coco.run("--remove_zip") == 0
    shutil.rmtree(coco.folder / "val2014")
    changed = make_zip({**coco.images, "val2014/more.jpg": b"more"})
    coco.server.add("/val2014.zip", changed)
    known = {"size": len(changed), "md5": hashlib.md5(changed).hexdigest()}
    official = replace(download_coco.ARCHIVES["val2014"], **known)
    monkeypatch.setitem(download_coco.ARCHIVES, "val2014", official)
    assert pinned() == 1
    assert coco.sha256s["/val2014.zip"] in capsys.readouterr().err
    assert not coco.made("val2014")


def test_images_that_the_annotations_list_and_the_archive_lacks(coco, capsys, make_zip):
    coco.images.pop(f"val2014/{IMAGES[3].name}")
    coco.put("/val2014.zip", make_zip(coco.images))
    assert coco.run() == 1
    assert f"lacks 1 of 20 images, such as {IMAGES[3].name}" in capsys.readouterr().err
    assert not (coco.folder / "val2014").exists()


@pytest.mark.parametrize("damage", ["climbs", "json", "crc"])
def test_what_the_archive_does_wrong_leaves_no_folder(coco, capsys, make_zip, damage):
    if damage == "climbs":
        coco.put("/annotations.zip", make_zip({**coco.annotations, "annotations/../../x": b""}))
    if damage == "json":
        files = {**coco.annotations, "annotations/captions_val2014.json": b"<html>"}
        coco.put("/annotations.zip", make_zip(files))
    if damage == "crc":
        packed = bytearray(coco.server.files["/annotations.zip"])
        first = zipfile.ZipFile(io.BytesIO(packed)).infolist()[0]
        packed[first.header_offset + 100] ^= 1
        coco.put("/annotations.zip", bytes(packed))
    assert coco.run() == 1
    said = capsys.readouterr().err
    assert "annotations.zip" in said and "Traceback" not in said
    assert not (coco.folder / "annotations").exists() and not (coco.folder.parent / "x").exists()


def test_a_folder_of_the_user_is_left_alone(coco, capsys):
    mine = coco.folder / "val2014" / IMAGES[0].name
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    assert coco.run() == 1
    assert "val2014 is not touched: move it away" in capsys.readouterr().err
    assert mine.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("keep", "said"), [(0, "lacks 1 of 20 images"), (100, "bytes of images, and")]
)
def test_a_cut_image_is_seen(coco, keep, said):
    assert coco.run() == 0
    image = coco.folder / "val2014" / IMAGES[0].name
    image.write_bytes(image.read_bytes()[:keep])
    assert said in download_coco.why_incomplete(coco.folder)
    assert coco.run() == 1


def test_a_wrong_checksum_is_said(coco, capsys):
    coco.sha256s["/val2014.zip"] = "0" * 64
    assert coco.run() == 1
    assert "not the expected file" in capsys.readouterr().err
    assert coco.made("annotations") and not coco.made("val2014")


def test_a_disk_too_small_for_zip_and_images(coco, small_disk, capsys):
    size = len(coco.server.files["/val2014.zip"])
    small_disk(2 * size - 1)
    assert coco.run() == 1
    assert "free and" in capsys.readouterr().err
    assert not list(coco.folder.glob("val2014*"))


def test_two_runs_at_once_download_once(coco):
    coco.server.script["/annotations.zip"] = deque([("stall", 100)])
    first = coco.start()
    assert coco.server.stalled.wait(20)
    second = coco.start()
    assert "waiting for it" in second.stderr.readline()
    coco.server.resume.set()
    assert (first.wait(30), second.wait(30)) == (0, 0)
    assert coco.is_whole
    assert [request.path for request in coco.server.requests] == [
        "/annotations.zip",
        "/val2014.zip",
    ]


@pytest.mark.parametrize(("kill", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_run_that_was_stopped_goes_on_where_it_was(coco, kill, status):
    coco.server.script["/val2014.zip"] = deque([("stall", 3000)])
    run = coco.start()
    assert coco.server.stalled.wait(20)
    part = coco.folder / "val2014.zip.part"
    while not part.exists() or part.stat().st_size < 3000:
        assert run.poll() is None
    run.send_signal(kill)
    _, said = run.communicate(timeout=30)
    coco.server.resume.set()
    assert run.returncode == status and "Traceback" not in said
    assert status != 130 or "Run the same command again" in said
    assert not coco.made("val2014") and part.stat().st_size == 3000
    assert coco.run() == 0
    assert coco.is_whole
    assert coco.server.ranges_asked("/val2014.zip") == ["", "bytes=3000-"]


@pytest.mark.parametrize("stop", [1, 15])
def test_a_run_killed_while_it_unpacked_leaves_no_folder(coco, monkeypatch, stop):
    opened = []

    def interrupt(*args):
        opened.append(args)
        if len(opened) == stop:
            raise KeyboardInterrupt
        return copy(*args)

    copy = shutil.copyfileobj
    monkeypatch.setattr(shutil, "copyfileobj", interrupt)
    assert coco.run() == 130
    assert bool(coco.made("annotations")) == (stop > 2) and not coco.made("val2014")
    monkeypatch.undo()
    assert coco.run() == 0 and coco.is_whole


def test_the_shell_script_works_from_any_folder(coco, tmp_path):
    script = ["bash", str(HERE / "download_coco.sh"), *coco.arguments]
    assert subprocess.run(script, cwd=tmp_path).returncode == 0
    assert coco.is_whole


def test_the_shell_script_says_when_there_is_no_python(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname"):
        (tools / name).symlink_to(shutil.which(name))
    shutil.copy(HERE / "download_coco.sh", tmp_path)
    run = subprocess.run(
        [tools / "bash", tmp_path / "download_coco.sh"],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1 and "no Python 3.11" in run.stderr


def test_it_goes_where_the_evaluation_scripts_look():
    for script in ("LLaVA1.5/eval_chair_llava.sh", "Qwen2.5-VL/eval_chair_qwenvl.sh"):
        text = (HERE.parent / script).read_text()
        for folder in ("val2014", "annotations"):
            assert f"$root/{(download_coco.COCO / folder).relative_to(HERE.parent)}}}" in text
