"""Archives that climb out, are damaged, or do not fit on the disk."""

import os
from pathlib import Path

import pytest

from fetching import DownloadError
from unpacking import unpacked

FILES = {"top/a.txt": b"a" * 1000, "top/deep/b.txt": b"b", "other/c.txt": b"c"}


def unpack(folder: Path, content: bytes, only=()) -> Path:
    archive = folder / "archive.zip"
    archive.write_bytes(content)
    with unpacked(archive, "top", folder / "made", only) as aside:
        assert not (folder / "made").exists()
        aside.rename(folder / "made")
    return folder / "made"


def test_the_files_of_the_top_folder_and_no_others(tmp_path, make_zip):
    made = unpack(tmp_path, make_zip(FILES))
    found = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert found == {"a.txt", "deep/b.txt"}
    assert (made / "a.txt").read_bytes() == FILES["top/a.txt"]


def test_only_what_is_wanted(tmp_path, make_zip):
    made = unpack(tmp_path, make_zip(FILES), only=("deep/b.txt",))
    assert [path.name for path in made.rglob("*") if path.is_file()] == ["b.txt"]


@pytest.mark.parametrize(
    "name",
    [
        *("../up", "top/../../up", "/absolute", "top//../up", "..\\up", "C:/up", "top/link@"),
        *("other/../../up", "up/..", "other/link@"),
    ],
)
def test_a_member_that_leads_out_stops_all(tmp_path, make_zip, name):
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(DownloadError, match=r"unsafe.*Nothing was unpacked"):
        unpack(inside, make_zip({**FILES, name: b"/etc/passwd"}))
    assert [path.name for path in inside.iterdir()] == ["archive.zip"]
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    assert not os.path.exists("/absolute")


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "text"])
def test_a_damaged_archive_leaves_nothing(tmp_path, make_zip, damage):
    content = bytearray(make_zip({"top/a.txt": os.urandom(50_000), "top/b.txt": b"b"}))
    content[20_000] ^= 1
    broken = {"flipped": content, "cut": content[:30_000], "empty": b"", "text": b"<html>"}[damage]
    with pytest.raises(DownloadError, match=r"archive\.zip is damaged.*rm "):
        unpack(tmp_path, bytes(broken))
    assert [path.name for path in tmp_path.iterdir()] == ["archive.zip"]


def test_another_archive_is_said_to_be_one(tmp_path, make_zip):
    with pytest.raises(DownloadError, match="lacks top/any file"):
        unpack(tmp_path, make_zip({"other/c.txt": b""}))
    with pytest.raises(DownloadError, match=r"lacks top/z\.json"):
        unpack(tmp_path, make_zip(FILES), only=("z.json", "a.txt"))
    assert [path.name for path in tmp_path.iterdir()] == ["archive.zip"]


def test_a_disk_too_small_for_the_files_is_said_before_one_is_written(
    tmp_path, make_zip, small_disk
):
    small_disk(1000)
    with pytest.raises(DownloadError, match=r"1\.0 kB free"):
        unpack(tmp_path, make_zip(FILES))
    assert [path.name for path in tmp_path.iterdir()] == ["archive.zip"]


def test_what_a_killed_run_left_is_no_obstacle(tmp_path, make_zip):
    (tmp_path / ".made.unpacking").mkdir()
    (tmp_path / ".made.unpacking" / "a.txt").write_text("half")
    assert (unpack(tmp_path, make_zip(FILES)) / "a.txt").read_bytes() == FILES["top/a.txt"]


def test_a_folder_that_is_not_taken_is_removed(tmp_path, make_zip):
    archive = tmp_path / "archive.zip"
    archive.write_bytes(make_zip(FILES))
    with pytest.raises(KeyboardInterrupt), unpacked(archive, "top", tmp_path / "made"):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["archive.zip"]
