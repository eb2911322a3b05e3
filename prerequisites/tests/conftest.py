"""What the tests of the downloads share."""

import io
import shutil
import signal
import zipfile
from pathlib import Path

import pytest

import fetching
from servers import Hub, Server

ROOT = Path(__file__).resolve().parents[2]

# A shell's background jobs ignore Ctrl-C, and so would the programs that the tests stop by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def waits(monkeypatch):
    """The seconds that were waited between attempts, without waiting."""
    waited: list[float] = []
    monkeypatch.setattr(fetching.time, "sleep", waited.append)
    return waited


@pytest.fixture
def make_zip():
    """Zip archives: name -> contents, where a name ending in @ is a symbolic link."""

    def make(files: dict[str, bytes]) -> bytes:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                member = zipfile.ZipInfo(name.removesuffix("@"))
                member.external_attr = (0o120777 if name.endswith("@") else 0o100644) << 16
                archive.writestr(member, content)
        return packed.getvalue()

    return make


@pytest.fixture
def small_disk(monkeypatch):
    """Call it with the bytes that a disk has free, in the eyes of the programs."""

    def shrink(free: int) -> None:
        usage = shutil.disk_usage("/")._replace(free=free)
        monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage)

    return shrink
