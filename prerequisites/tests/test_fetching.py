"""`fetch` against servers that are slow, broken, changing or wrong."""

import hashlib
import os
import random
import resource
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fetching
from fetching import DownloadError, fetch

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def cut_once(server, path: str, url: str, target: Path, after: int, monkeypatch) -> None:
    """A run that gives up after `after` bytes."""
    server.script[path] = deque([("cut", after)])
    with monkeypatch.context() as patch, pytest.raises(DownloadError, match="goes on where"):
        patch.setattr(fetching, "WAITS", ())
        fetch(url, target)
    assert not target.exists()
    assert target.with_name(f"{target.name}.part").read_bytes() == server.files[path][:after]


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_file_arrives_whole_and_leaves_nothing_else(server, tmp_path, algorithm):
    url = server.add("/f", CONTENT)
    digest = f"{algorithm}:{hashlib.new(algorithm, CONTENT).hexdigest()}"
    assert fetch(url, tmp_path / "f", len(CONTENT), digest) == SHA256.partition(":")[2]
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert left_in(tmp_path) == ["f"]
    assert server.ranges_asked("/f") == [""]


@given(content=st.binary(min_size=2, max_size=2000), data=st.data())
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_download_resumes_at_the_byte_where_it_was_cut(server, waits, content, data):
    cuts = data.draw(
        st.lists(st.integers(1, len(content) - 1), min_size=1, max_size=3, unique=True)
    )
    pieces = [end - start for start, end in zip([0, *sorted(cuts)], sorted(cuts), strict=False)]
    url = server.add("/f", content)
    server.script["/f"] = deque(("cut", piece) for piece in pieces)
    server.requests.clear()
    server.sent = 0
    with TemporaryDirectory() as folder:
        fetch(url, Path(folder, "f"))
        assert Path(folder, "f").read_bytes() == content
    assert server.ranges_asked("/f") == ["", *(f"bytes={cut}-" for cut in sorted(cuts))]
    assert server.sent == len(content)


def test_another_run_resumes_what_one_run_left(server, tmp_path, monkeypatch):
    url = server.add("/f", CONTENT)
    cut_once(server, "/f", url, tmp_path / "f", 123_457, monkeypatch)
    fetch(url, tmp_path / "f", len(CONTENT), SHA256)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.ranges_asked("/f") == ["", "bytes=123457-"]


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path, waits):
    server.ranges = False
    url = server.add("/f", CONTENT)
    server.script["/f"] = deque([("cut", 1000), ("cut", 500)])
    fetch(url, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("knows_if_range", [True, False])
@pytest.mark.parametrize("validators", [("ETag",), ("Last-Modified",), ()], ids=str)
def test_a_changed_file_is_never_glued_to_an_old_part(
    server, tmp_path, waits, monkeypatch, knows_if_range, validators
):
    server.knows_if_range, server.validators = knows_if_range, validators
    url = server.add("/f", CONTENT)
    cut_once(server, "/f", url, tmp_path / "f", 1000, monkeypatch)
    changed = CONTENT[::-1]
    server.add("/f", changed)
    fetch(url, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == changed
    assert left_in(tmp_path) == ["f"]


def test_a_shorter_file_replaces_a_longer_part(server, tmp_path, waits, monkeypatch):
    server.knows_if_range = False  # it answers 416
    url = server.add("/f", CONTENT)
    cut_once(server, "/f", url, tmp_path / "f", 1000, monkeypatch)
    server.add("/f", b"short")
    fetch(url, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"short"


def test_a_weak_tag_is_not_trusted_for_resuming(server, tmp_path, monkeypatch):
    server.weak, server.validators = True, ("ETag",)
    url = server.add("/f", CONTENT)
    cut_once(server, "/f", url, tmp_path / "f", 1000, monkeypatch)
    fetch(url, tmp_path / "f")
    assert server.ranges_asked("/f") == ["", ""]
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_part_from_another_address_is_not_used(server, tmp_path, monkeypatch):
    cut_once(server, "/f", server.add("/f", CONTENT), tmp_path / "f", 1000, monkeypatch)
    fetch(server.add("/g", CONTENT[::-1]), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT[::-1]
    assert server.ranges_asked("/g") == [""]


def test_a_part_without_its_origin_is_not_used(server, tmp_path):
    (tmp_path / "f.part").write_bytes(b"who knows")
    (tmp_path / "f.part.json").write_text('{"url": 1, "etag"')
    fetch(server.add("/f", CONTENT), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_run_killed_while_it_verified_needs_no_byte_again(server, tmp_path, monkeypatch):
    url = server.add("/f", CONTENT)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fetching, "verify", _interrupt)
        fetch(url, tmp_path / "f")
    assert not (tmp_path / "f").exists()
    fetch(url, tmp_path / "f", digest=SHA256)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert len(server.requests) == 1


def _interrupt(*args):
    raise KeyboardInterrupt


def test_an_announced_size_that_is_wrong_stops_it_before_a_byte(server, tmp_path):
    url = server.add("/f", CONTENT)
    with pytest.raises(DownloadError, match=r"serves 300,000 bytes .*300,001 were expected"):
        fetch(url, tmp_path / "f", len(CONTENT) + 1)
    assert left_in(tmp_path) == []


def test_a_wrong_size_costs_no_part_that_was_downloaded(server, tmp_path, waits, monkeypatch):
    url = server.add("/f", CONTENT)
    cut_once(server, "/f", url, tmp_path / "f", 1000, monkeypatch)
    server.add("/f", b"<html>log in to this network</html>")
    with pytest.raises(DownloadError, match="another file"):
        fetch(url, tmp_path / "f", len(CONTENT))
    server.add("/f", CONTENT)
    fetch(url, tmp_path / "f", len(CONTENT))
    assert server.ranges_asked("/f")[-1] == "bytes=1000-"


def test_a_size_that_no_server_announced_is_checked_too(server, tmp_path):
    url = server.add("/f", CONTENT)
    server.headers = {"Content-Length": "", "Connection": "close"}
    with pytest.raises(DownloadError, match="not the expected file"):
        fetch(url, tmp_path / "f", len(CONTENT) - 1)
    assert left_in(tmp_path) == []
    fetch(url, tmp_path / "f", len(CONTENT))


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    url = server.add("/f", CONTENT)
    with pytest.raises(DownloadError, match="not the expected file") as error:
        fetch(url, tmp_path / "f", digest=f"sha256:{'0' * 64}")
    assert SHA256.partition(":")[2] in str(error.value)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_final(server, tmp_path, waits, status):
    url = server.add("/f", CONTENT)
    server.script["/f"] = deque([status])
    with pytest.raises(DownloadError, match=rf"{url} is .*{status}"):
        fetch(url, tmp_path / "f")
    assert len(server.requests) == 1 and waits == [] and left_in(tmp_path) == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_overloaded_server_is_asked_again(server, tmp_path, waits, status):
    url = server.add("/f", CONTENT)
    server.script["/f"] = deque([status, status])
    fetch(url, tmp_path / "f", digest=SHA256)
    assert waits == [1, 2]


def test_the_pause_that_a_server_asks_for_is_kept(server, tmp_path, waits):
    url = server.add("/f", CONTENT)
    server.headers = {"Retry-After": "7"}
    server.script["/f"] = deque([503])
    fetch(url, tmp_path / "f")
    assert waits == [7]


def test_it_gives_up_when_nothing_new_comes(tmp_path, waits):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/f"
    with pytest.raises(DownloadError, match=r"no connection to 127\.0\.0\.1.*Check the network"):
        fetch(url, tmp_path / "f")
    assert waits == list(fetching.WAITS)


def test_a_connection_that_always_breaks_at_once_is_given_up(server, tmp_path, waits):
    server.ranges = False
    url = server.add("/f", CONTENT)
    server.script["/f"] = deque([("cut", 10)] * 50)
    with pytest.raises(DownloadError, match="broke after 10 bytes"):
        fetch(url, tmp_path / "f")
    assert waits == [1, *fetching.WAITS[1:]]


def test_a_file_larger_than_the_disk_is_not_begun(server, tmp_path):
    url = server.add("/f", CONTENT)
    server.headers = {"Content-Length": str(10**18)}
    with pytest.raises(DownloadError, match=r"free and 1000000000\.0 GB are needed"):
        fetch(url, tmp_path / "f")
    assert left_in(tmp_path) == []


def test_room_for_what_is_unpacked_is_asked_for_before_the_download(server, tmp_path, small_disk):
    url = server.add("/f", CONTENT)
    small_disk(2 * len(CONTENT) - 1)
    with pytest.raises(DownloadError, match=r"300\.0 kB|600\.0 kB"):
        fetch(url, tmp_path / "f", unpacked=1.0)
    small_disk(2 * len(CONTENT))
    fetch(url, tmp_path / "f", unpacked=1.0)


def test_a_disk_that_fills_up_keeps_the_part(server, tmp_path):
    # The real error of the system: this process may write 100 kB to a file, and no more.
    url = server.add("/f", CONTENT)
    program = (
        "import sys, fetching; from pathlib import Path;"
        "sys.exit(fetching.run(lambda: fetching.fetch(sys.argv[1], Path(sys.argv[2]))))"
    )
    command = [sys.executable, "-c", program, url, str(tmp_path / "f")]
    environment = os.environ | {"PYTHONPATH": str(Path(fetching.__file__).parent)}

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    run = subprocess.run(command, env=environment, preexec_fn=limit, capture_output=True, text=True)
    assert run.returncode == 1 and "cannot write" in run.stderr and "Traceback" not in run.stderr
    assert (tmp_path / "f.part").stat().st_size == 100_000
    assert subprocess.run(command, env=environment).returncode == 0
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.ranges_asked("/f")[-1] == "bytes=100000-"


@pytest.mark.parametrize("url", ["ftp://host/f", "file:///etc/passwd", "http://", "val2014.zip"])
def test_what_is_no_address_is_said(tmp_path, url, waits):
    with pytest.raises(DownloadError):
        fetch(url, tmp_path / "f")
    assert left_in(tmp_path) == []
