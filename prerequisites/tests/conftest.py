"""What the tests of the downloads share."""

import io
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fetching
from servers import Server

# A shell's background jobs ignore Ctrl-C, and so would the programs that the tests stop by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def waits(monkeypatch):
    """The seconds that were waited between attempts, without waiting."""
    waited: list[float] = []
    monkeypatch.setattr(fetching.time, "sleep", waited.append)
    return waited


@pytest.fixture
def small_disk(monkeypatch):
    """Call it with the bytes that a disk has free, in the eyes of the programs."""

    def shrink(free: int) -> None:
        usage = shutil.disk_usage("/")._replace(free=free)
        monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage)

    return shrink


@pytest.fixture
def start():
    """Call it with a program and its arguments; whatever it started has ended after the test."""
    started = []

    def run(program: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-u", Path(fetching.__file__).parent / program, *arguments]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, env=os.environ | environment, **options))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def make_zip(files: dict[str, bytes]) -> bytes:
    """A zip archive: name -> contents, where a name ending in @ is a symbolic link."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            member = zipfile.ZipInfo(name.removesuffix("@"))
            member.external_attr = (0o120777 if name.endswith("@") else 0o100644) << 16
            archive.writestr(member, content)
    return packed.getvalue()
