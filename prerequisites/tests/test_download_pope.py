"""The downloader of POPE's questions, against a server that has three small files."""

import hashlib

import pytest

import download_pope

NAMES = list(download_pope.SHA256S)


@pytest.fixture
def run(server, tmp_path, monkeypatch):
    """Call it to run the program, which knows the hashes of what the server has."""
    for name in NAMES:
        server.add(f"/coco/{name}", name.encode())
        monkeypatch.setitem(download_pope.SHA256S, name, hashlib.sha256(name.encode()).hexdigest())
    where = ["--download_path", str(tmp_path), "--source_url", f"{server.url}/coco/"]
    return lambda: download_pope.main(where)


def test_the_three_files_come_and_a_second_run_asks_for_nothing(run, server, tmp_path):
    assert download_pope.why_incomplete(tmp_path).endswith(f"{NAMES[0]} is missing")
    assert run() == 0 and run() == 0 and download_pope.why_incomplete(tmp_path) == ""
    assert [path for path, _ in server.asked] == [f"/coco/{name}" for name in NAMES]
    assert [(tmp_path / name).read_text() for name in NAMES] == NAMES


def test_what_is_not_as_published_does_not_come_and_the_user_s_is_left_alone(
    run, server, tmp_path, capsys
):
    server.add(f"/coco/{NAMES[1]}", b"<html>")
    assert run() == 1 and "not the expected file: its sha256" in capsys.readouterr().err
    assert not (tmp_path / NAMES[1]).exists()
    (tmp_path / NAMES[1]).write_text("mine")
    assert run() == 1 and "not as published, and not touched" in capsys.readouterr().err
    assert (tmp_path / NAMES[1]).read_text() == "mine"
