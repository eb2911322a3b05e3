"""`fetch` against servers that are slow, broken, changing or wrong."""

import hashlib
import random
import re
import shutil
from pathlib import Path

import pytest

import fetching
from fetching import DownloadError, fetch

CONTENT = random.Random(0).randbytes(300_000)
KNOWN = (len(CONTENT), f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "f"


def left(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir())


@pytest.mark.parametrize(
    ("ranges", "script", "asked"),
    [
        (True, [], [""]),
        (True, [("cut", 1000), ("cut", 500)], ["", "bytes=1000-", "bytes=1500-"]),
        (True, [503, ("cut", 1000), 429], ["", "", "bytes=1000-", "bytes=1000-"]),
        (False, [("cut", 1000)], ["", "bytes=1000-", ""]),
    ],
    ids=["whole", "cut", "busy", "no ranges"],
)
def test_a_file_arrives_whole_and_goes_on_at_the_byte_where_it_was_cut(
    server, path, waits, ranges, script, asked
):
    server.ranges, server.script["/f"] = ranges, script
    fetch(server.add("/f", CONTENT), path, *KNOWN)
    assert path.read_bytes() == CONTENT and left(path) == ["f"]
    assert server.ranges_asked("/f") == asked and len(waits) == len(asked) - 1


@pytest.mark.parametrize("part", [CONTENT[1:2000], CONTENT[::-1], CONTENT + b"more", CONTENT])
def test_another_run_s_part_is_used_only_where_the_digest_says_so(server, path, part):
    path.with_name("f.part").write_bytes(part)
    fetch(server.add("/f", CONTENT), path, *KNOWN)
    assert path.read_bytes() == CONTENT and left(path) == ["f"]
    assert bool(server.asked) == (part != CONTENT)  # killed while it compared: no byte again


def test_a_whole_part_of_unknown_size_is_not_asked_for_again(server, path):
    path.with_name("f.part").write_bytes(CONTENT)
    fetch(server.add("/f", CONTENT), path, digest=KNOWN[1])
    assert server.ranges_asked("/f") == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (CONTENT + b"more", "larger than the 300000 bytes"),
        (CONTENT[:-1], "has 299,999 bytes, and 300,000 were expected"),
        (CONTENT[::-1], "its sha256 is"),
    ],
)
def test_another_file_is_thrown_away(server, path, content, error):
    with pytest.raises(DownloadError, match=error):
        fetch(server.add("/f", content), path, *KNOWN)
    assert left(path) == []


def test_a_login_page_costs_no_part_that_came(server, path):
    path.with_name("f.part").write_bytes(CONTENT[:1000])
    server.ranges, server.headers = False, {"Content-Type": "text/html"}
    with pytest.raises(DownloadError, match="if this network wants a login, log in"):
        fetch(server.add("/f", b"<html>" * 1000), path, *KNOWN)
    assert path.with_name("f.part").read_bytes() == CONTENT[:1000]


@pytest.mark.parametrize("url", ["/f", "file:///etc/passwd", "val2014.zip", "--help"])
def test_a_refusal_is_final_and_what_is_no_address_is_said(server, path, waits, url):
    with pytest.raises(DownloadError, match=re.escape(url) + " is not (to be had.*404|an addr)"):
        fetch(server.url + url if url == "/f" else url, path)
    assert waits == [] and left(path) == []


def test_it_gives_up_when_nothing_new_comes(server, path, waits):
    server.ranges, server.script["/f"] = False, [("cut", 10)] * 50
    with pytest.raises(DownloadError, match="goes on where it stopped"):
        fetch(server.add("/f", CONTENT), path, *KNOWN)
    assert set(waits) == set(fetching.WAITS)


def test_a_disk_too_small_is_said_before_a_byte(server, path, small_disk):
    small_disk(2 * len(CONTENT) - 1)
    with pytest.raises(DownloadError, match=r"free and .* are needed"):
        fetch(server.add("/f", CONTENT), path, *KNOWN, room=len(CONTENT))
    assert server.asked == [] and left(path) == []


def test_a_disk_that_fills_up_is_said(server, path, capsys):
    path.with_name("f.part").symlink_to("/dev/full")  # the real error of the system
    url = server.add("/f", CONTENT)
    assert fetching.run(lambda: fetch(url, path, *KNOWN)) == 1
    assert f"cannot write {path}.part" in capsys.readouterr().err


def test_without_curl_it_says_how_to_get_it(path, monkeypatch):
    monkeypatch.setattr(fetching, "_CURL", "no-such-curl")
    with pytest.raises(DownloadError, match="apt install curl"):
        fetch("http://127.0.0.1/f", path)
    assert shutil.which("curl")
