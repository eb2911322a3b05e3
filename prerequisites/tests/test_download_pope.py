"""The downloader of POPE's questions, against a server that has three small files."""

import hashlib
import json
from collections import deque

import pytest

import download_pope

NAMES = list(download_pope.SHA256S)


@pytest.fixture
def pope(server, tmp_path, monkeypatch):
    return Source(server, tmp_path / "pope", monkeypatch)


class Source:
    """The questions that the server has are the ones that the program knows."""

    def __init__(self, server, folder, monkeypatch) -> None:
        self.server, self.folder = server, folder
        self.files = {name: self.questions(number) for number, name in enumerate(NAMES)}
        for name, content in self.files.items():
            server.add(f"/coco/{name}", content)
            known = hashlib.sha256(content).hexdigest()
            monkeypatch.setitem(download_pope.SHA256S, name, known)

    @staticmethod
    def questions(number: int) -> bytes:
        question = {"question_id": number, "text": "Is there a dog in the image?", "label": "no"}
        return json.dumps(question).encode() + b"\n"

    def run(self) -> int:
        where = ["--download_path", str(self.folder), "--source_url", f"{self.server.url}/coco"]
        return download_pope.main(where)

    def made(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.glob("coco*")}


def test_the_three_files_come_and_a_second_run_asks_for_nothing(pope, capsys):
    assert download_pope.why_incomplete(pope.folder).endswith(f"{NAMES[0]} is missing")
    assert pope.run() == 0 and pope.made() == pope.files
    assert download_pope.why_incomplete(pope.folder) == ""
    pope.server.close()
    assert pope.run() == 0 and pope.made() == pope.files
    assert capsys.readouterr().out.count("complete") == 2
    assert [request.path for request in pope.server.requests] == [f"/coco/{n}" for n in NAMES]


def test_a_file_that_is_not_as_published_does_not_come(pope, capsys):
    pope.server.add(f"/coco/{NAMES[1]}", b"<html>")
    assert pope.run() == 1
    assert "is not the expected file: its sha256" in capsys.readouterr().err
    assert list(pope.made()) == [NAMES[0]]
    pope.server.add(f"/coco/{NAMES[1]}", pope.files[NAMES[1]])
    assert pope.run() == 0 and pope.made() == pope.files


def test_a_file_of_the_user_is_left_alone(pope, capsys):
    pope.folder.mkdir()
    (pope.folder / NAMES[2]).write_bytes(b"mine")
    assert pope.run() == 1
    assert f"{NAMES[2]} is not as published, and not touched" in capsys.readouterr().err
    assert pope.made()[NAMES[2]] == b"mine"


def test_a_cut_file_is_gone_on_with(pope, waits):
    pope.server.script[f"/coco/{NAMES[0]}"] = deque([("cut", 10), 503])
    assert pope.run() == 0 and pope.made() == pope.files
    assert pope.server.ranges_asked(f"/coco/{NAMES[0]}") == ["", "bytes=10-", "bytes=10-"]
