"""`revisit fork make` with a real pip, against an index on the loopback that serves one release."""

import gzip
import hashlib
import io
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from revisit.forks.make import find_patch, unpack
from revisit.forks.patch import PATCHES, read_patch

TOP = "sample-1.0"
SOURCE = f"{TOP}/src/sample/value.py"
# Its own build backend: pip asks it for the metadata, and needs nothing from elsewhere.
BACKEND = """
import os
import pathlib

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    pathlib.Path(os.environ["BACKEND_RAN"]).touch()
    info = pathlib.Path(folder, "sample-1.0.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: sample\\nVersion: 1.0\\n")
    return info.name
"""
FILES = {
    f"{TOP}/PKG-INFO": "Metadata-Version: 2.1\nName: sample\nVersion: 1.0\n",
    f"{TOP}/pyproject.toml": (
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    ),
    f"{TOP}/backend.py": BACKEND,
    f"{TOP}/src/sample.egg-info/PKG-INFO": "the release's\n",
    f"{TOP}/src/sample/other.py": "other = 1\n",
    SOURCE: "first = 1\nvalue = 1\n",
}
DIFF = """diff --git a/src/sample/value.py b/src/sample/value.py
index {before}..{after} 100644
--- a/src/sample/value.py
+++ b/src/sample/value.py
@@ -2 +2 @@
-value = 1
+value = {value}
"""


def blob(text: str) -> str:
    """git's hash of a file."""
    return hashlib.sha1(f"blob {len(text)}\0{text}".encode()).hexdigest()


def sdist(files: dict[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return gzip.compress(packed.getvalue(), mtime=0)


class Index:
    """A simple index (PEP 503) at `url`; with `stall`, archives stop half way until `resumed`."""

    def __init__(self) -> None:
        self.archive = sdist(FILES)
        self.downloads = 0
        self.stall = False
        self.half_way, self.resumed = threading.Event(), threading.Event()
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = f"{TOP}.tar.gz"
        body, kind = self.archive, "application/gzip"
        if request.path == "/simple/sample/":
            body, kind = f'<a href="/{name}">{name}</a>'.encode(), "text/html"
        elif request.path != f"/{name}":
            request.send_error(404)
            return
        else:
            self.downloads += 1
        request.send_response(200)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if self.stall and kind == "application/gzip":
            request.wfile.write(body[: len(body) // 2])
            request.wfile.flush()
            self.half_way.set()
            self.resumed.wait(30)
            return
        request.wfile.write(body)


@contextmanager
def serving() -> Iterator[Index]:
    index = Index()
    thread = threading.Thread(target=index.server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield index
    finally:
        index.resumed.set()
        index.server.shutdown()
        index.server.server_close()
        thread.join()


@pytest.fixture
def index() -> Iterator[Index]:
    with serving() as index:
        yield index


class Family:
    """A family folder inside a git repository, and the command run on it."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder = folder / "Family"
        self.data = self.folder / "data"
        self.tree = self.data / TOP
        self.source = self.data / SOURCE
        self.patch = self.folder / f"{TOP}.patch"
        self.backend_ran = folder / "backend-ran"
        self.folder.mkdir()
        self.pin(index.archive)
        kept = {key: value for key, value in os.environ.items() if key[:4] not in ("PIP_", "GIT_")}
        self.environment = kept | {
            "BACKEND_RAN": str(self.backend_ran),
            "NO_PROXY": "127.0.0.1",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": index.url,
            "PIP_NO_CACHE_DIR": "1",
            "PIP_RETRIES": "0",
        }
        subprocess.run(["git", "init", "-q", folder], env=self.environment, check=True)

    def pin(self, archive: bytes, value: int = 2, original: str = FILES[SOURCE]) -> None:
        sha256 = hashlib.sha256(archive).hexdigest()
        after = blob(f"first = 1\nvalue = {value}\n")
        diff = DIFF.format(before=blob(original), after=after, value=value)
        self.patch.write_text(f"A patch.\n\nsdist-sha256: {sha256}\n\n{diff}")

    def start(self, *flags: str, **more: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "revisit.forks.make", str(self.folder), *flags],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,  # type: ignore[call-overload]
        )

    def run(self, *flags: str, **more: object) -> tuple[int, str, str]:
        process = self.start(*flags, **more)
        out, err = process.communicate(timeout=60)
        assert 'make.py", line' not in err, "a traceback of ours"
        return process.returncode, out, err

    def left(self) -> list[str]:
        """What lies in data/, without the lock."""
        return sorted(path.name for path in self.data.iterdir() if path.suffix != ".lock")


@pytest.fixture
def family(tmp_path: Path, index: Index) -> Family:
    return Family(tmp_path, index)


@pytest.fixture(scope="module")
def first_made(tmp_path_factory: pytest.TempPathFactory) -> Family:
    with serving() as index:
        family = Family(tmp_path_factory.mktemp("first"), index)
        status, _, err = family.run()
        assert status == 0, err
        assert index.downloads == 1
        return family


@pytest.fixture
def made(family: Family, first_made: Family) -> Family:
    """A family whose fork has been made."""
    shutil.copytree(first_made.data, family.data)
    return family


def test_the_release_is_unpacked_and_patched_inside_an_enclosing_repository(
    first_made: Family,
) -> None:
    assert first_made.source.read_text() == "first = 1\nvalue = 2\n"
    assert first_made.left() == [TOP]
    assert first_made.backend_ran.exists()


def test_a_second_run_downloads_and_changes_nothing(made: Family, index: Index) -> None:
    # As installing and running the fork do.
    (made.tree / "src/sample.egg-info/PKG-INFO").write_text("its own\n")
    (made.tree / "src/sample/__pycache__").mkdir()
    (made.tree / "src/sample/__pycache__/value.pyc").touch()
    before = made.tree.stat().st_ino
    status, out, _ = made.run()
    assert (status, index.downloads, made.tree.stat().st_ino) == (0, 0, before)
    assert "up to date" in out


def test_check_tells_the_state_and_changes_nothing(family: Family) -> None:
    status, out, _ = family.run("--check")
    assert status == 1
    assert "not made yet" in out
    assert not family.data.exists()
    family.run()
    assert family.run("--check")[0] == 0
    family.source.write_text("mine\n")
    status, out, _ = family.run("--check")
    assert status == 1
    assert "changed: src/sample/value.py" in out
    assert family.source.read_text() == "mine\n"


def test_a_changed_patch_makes_it_again(made: Family, index: Index) -> None:
    made.pin(index.archive, value=3)
    status, out, _ = made.run()
    assert status == 0
    assert "another patch" in out
    assert made.source.read_text() == "first = 1\nvalue = 3\n"
    assert made.left() == [TOP]


def test_a_lost_file_makes_it_again(made: Family) -> None:
    made.source.unlink()
    status, out, _ = made.run()
    assert status == 0
    assert "missing: src/sample/value.py" in out
    assert made.source.read_text() == "first = 1\nvalue = 2\n"
    assert made.left() == [TOP]


def test_edits_are_replaced_and_kept_beside_it(made: Family) -> None:
    for number in (1, 2):
        made.source.write_text(f"mine = {number}\n")
        status, out, _ = made.run()
        assert status == 0
        assert "changed: src/sample/value.py" in out
        assert f"{TOP}.edited-{number}" in out
        assert made.source.read_text() == "first = 1\nvalue = 2\n"
        kept = made.data / f"{TOP}.edited-{number}/src/sample/value.py"
        assert kept.read_text() == f"mine = {number}\n"


def test_a_folder_that_somebody_else_made_is_kept_beside_it(family: Family) -> None:
    family.source.parent.mkdir(parents=True)
    family.source.write_text("theirs\n")
    assert family.run()[0] == 0
    assert family.source.read_text() == "first = 1\nvalue = 2\n"
    assert (family.data / f"{TOP}.edited-1/src/sample/value.py").read_text() == "theirs\n"


def test_another_archive_than_the_pinned_one_is_refused_unread(made: Family, index: Index) -> None:
    expected = hashlib.sha256(index.archive).hexdigest()
    made.pin(index.archive, value=3)
    index.archive = sdist({**FILES, SOURCE: "first = 1\nvalue = 1\nevil = 1\n"})
    status, _, err = made.run()
    assert status == 1
    assert expected in err
    assert hashlib.sha256(index.archive).hexdigest() in err
    assert "another index" in err
    assert not made.backend_ran.exists()
    assert made.source.read_text() == "first = 1\nvalue = 2\n"
    assert made.left() == [TOP]


def test_without_a_network_the_error_says_so_and_the_old_tree_stays(
    made: Family, index: Index
) -> None:
    made.pin(index.archive, value=3)
    made.environment |= {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"}
    status, _, err = made.run()
    assert status == 1
    assert "check the network" in err
    assert "pip config list" in err
    assert made.source.read_text() == "first = 1\nvalue = 2\n"
    assert made.left() == [TOP]


def test_an_index_without_the_release_is_named(family: Family, index: Index) -> None:
    family.patch = family.patch.rename(family.folder / "sample-2.0.patch")
    status, _, err = family.run()
    assert status == 1
    assert "could not download sample-2.0" in err
    assert "another index" in err
    assert family.left() == []


def test_killed_half_way_leaves_nothing_made_and_the_next_run_makes_it(
    family: Family, index: Index
) -> None:
    index.stall = True
    process = family.start(start_new_session=True)
    assert index.half_way.wait(30)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    index.resumed.set()
    assert not family.tree.exists()
    index.stall = False
    assert family.run()[0] == 0
    assert family.source.read_text() == "first = 1\nvalue = 2\n"
    assert family.left() == [TOP]


def test_two_at_once_make_it_once(family: Family, index: Index) -> None:
    processes = [family.start(), family.start()]
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted("up to date" in out for out in said) == [False, True]
    assert index.downloads == 1
    assert family.source.read_text() == "first = 1\nvalue = 2\n"
    assert family.left() == [TOP]


def test_a_patch_that_does_not_apply_is_named(made: Family, index: Index) -> None:
    made.pin(index.archive, original="first = 1\nvalue = 7\n")
    status, _, err = made.run()
    assert status == 1
    assert f"{made.patch} does not apply" in err
    assert "sample/value.py" in err
    assert made.source.read_text() == "first = 1\nvalue = 2\n"
    assert made.left() == [TOP]


def test_a_missing_git_is_named(family: Family, tmp_path: Path) -> None:
    family.environment["PATH"] = str(tmp_path / "no-programs")
    status, _, err = family.run()
    assert status == 1
    assert "git" in err
    assert "PATH" in err
    assert family.left() == []


def test_a_family_folder_copied_away_from_the_package_finds_its_patch(tmp_path: Path) -> None:
    family = tmp_path / "LLaVA1.5"
    family.mkdir()
    name = "transformers-4.31.0.patch"
    (family / name).symlink_to(f"../shared/src/revisit/forks/patches/{name}")
    assert find_patch(family).file.read_bytes() == (PATCHES / name).read_bytes()


def test_a_write_that_fails_leaves_the_old_tree(made: Family, index: Index) -> None:
    index.archive = sdist({**FILES, f"{TOP}/big": "0" * 4_000_000})
    made.pin(index.archive, value=3)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    status, _, err = made.run(preexec_fn=limit)
    assert status == 1
    assert "File too large" in err
    assert made.source.read_text() == "first = 1\nvalue = 2\n"
    assert made.left() == [TOP]


def test_a_place_that_cannot_be_written_is_named(family: Family) -> None:
    family.data.write_text("a file where the folder goes")
    status, _, err = family.run()
    assert status == 1
    assert str(family.data) in err


@pytest.mark.parametrize("flags", [(), ("--check",)])
def test_a_folder_without_a_patch_is_named(family: Family, flags: tuple[str, ...]) -> None:
    family.patch.unlink()
    status, _, err = family.run(*flags)
    assert status == 1
    assert f"{family.folder} has to hold exactly one patch" in err


def test_a_patch_without_the_hash_of_its_release_is_named(family: Family) -> None:
    family.patch.write_text(DIFF)
    status, _, err = family.run()
    assert status == 1
    assert "sdist-sha256" in err


def packed(archive: Path, name: str, kind: bytes) -> Path:
    """A .tar.gz of a good file and one more member."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo(f"{TOP}/good.py"))
        member = tarfile.TarInfo(name)
        member.type = kind
        member.linkname = "../../out.py"
        tar.addfile(member)
    return archive


@pytest.mark.parametrize(
    "name, kind",
    [
        ("../out.py", tarfile.REGTYPE),
        (f"{TOP}/../../out.py", tarfile.REGTYPE),
        (f"{TOP}/link", tarfile.SYMTYPE),
        (f"{TOP}/link", tarfile.LNKTYPE),
        (f"{TOP}/device", tarfile.FIFOTYPE),
    ],
)
def test_an_archive_that_climbs_out_is_refused(tmp_path: Path, name: str, kind: bytes) -> None:
    archive = packed(tmp_path / "unsafe.tar.gz", name, kind)
    with pytest.raises(tarfile.FilterError):
        unpack(archive, tmp_path / "unpacked")
    assert {path.name for path in tmp_path.rglob("*")} <= {archive.name, "unpacked", TOP, "good.py"}


def test_an_absolute_path_in_an_archive_stays_below_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "out.py"
    unpack(packed(tmp_path / "unsafe.tar.gz", str(outside), tarfile.REGTYPE), tmp_path / "unpacked")
    assert not outside.exists()


def test_a_python_without_filters_unpacks_what_the_hash_vouches_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = packed(tmp_path / "safe.tar.gz", f"{TOP}/file.py", tarfile.REGTYPE)
    monkeypatch.delattr(tarfile, "data_filter")
    unpack(archive, tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / TOP / "file.py").exists()


@pytest.mark.skipif(not shutil.which("realpath"), reason="the guide's commands are GNU's")
def test_the_guide_writes_a_patch_anew_from_an_edited_fork(made: Family, tmp_path: Path) -> None:
    (commands,) = re.findall(r"```sh\n(.*?)```", (PATCHES / "README.md").read_text(), re.DOTALL)
    head, _, rest = commands.partition("\n")
    assert head == "name=transformers version=4.50.0 family=Qwen2.5-VL"
    made.source.write_text("zeroth = 0\nfirst = 1\nvalue = 5\n")
    (made.tree / "src/sample/__pycache__").mkdir()
    (made.tree / "src/sample/__pycache__/value.pyc").touch()
    (tmp_path / "python").symlink_to(sys.executable)
    environment = {**made.environment, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    code = f"name=sample version=1.0 family={made.folder.name}\n{rest}"
    subprocess.run(["bash", "-euc", code], cwd=made.folder.parent, env=environment, check=True)
    assert made.patch.read_text().startswith("A patch.\n\nsdist-sha256: ")
    assert list(read_patch(made.patch).hashes) == ["sample/value.py"]
    shutil.rmtree(made.tree)
    assert made.run()[0] == 0
    assert made.source.read_text() == "zeroth = 0\nfirst = 1\nvalue = 5\n"


def test_the_command_starts_without_the_packages_it_installs() -> None:
    code = (
        "import sys, revisit.forks.make, revisit.forks.installed;"
        "print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
