"""`revisit fork make` with a real pip, against an index on the loopback that has one release."""

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
from contextlib import closing
from functools import partial

import pytest

from revisit.forks.make import find_patch, unpack
from revisit.forks.patch import PATCHES, read_patch
from servers import Server

TOP = "sample-1.0"
SOURCE = f"{TOP}/src/sample/value.py"
ARCHIVE = f"/{TOP}.tar.gz"
# The release's build backend: pip asks it for the metadata, and needs nothing from elsewhere.
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
    f"{TOP}/pyproject.toml": (
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    ),
    f"{TOP}/backend.py": BACKEND,
    f"{TOP}/src/sample.egg-info/PKG-INFO": "the release's\n",
    SOURCE: "first = 1\nvalue = 1\n",
}
PATCHED = "first = 1\nvalue = 2\n"
DIFF = """diff --git a/src/sample/value.py b/src/sample/value.py
index {before}..{after} 100644
--- a/src/sample/value.py
+++ b/src/sample/value.py
@@ -2 +2 @@
-value = 1
+value = {value}
"""


def git_hash(text):
    return hashlib.sha1(f"blob {len(text)}\0{text}".encode()).hexdigest()


def sdist(files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return gzip.compress(packed.getvalue(), mtime=0)


class Family:
    """A family folder inside a git repository, the package index, and the command run on it."""

    def __init__(self, folder, index):
        self.index = index
        link = f'<a href="{ARCHIVE}">{ARCHIVE[1:]}</a>'.encode()
        index.add("/simple/sample/", link, **{"Content-Type": "text/html"})
        self.folder = folder / "Family"
        self.data = self.folder / "data"
        self.tree = self.data / TOP
        self.source = self.data / SOURCE
        self.patch = self.folder / f"{TOP}.patch"
        self.backend_ran = folder / "backend-ran"
        self.folder.mkdir()
        self.release(sdist(FILES))
        kept = {key: value for key, value in os.environ.items() if key[:4] not in ("PIP_", "GIT_")}
        self.environment = kept | {
            "BACKEND_RAN": str(self.backend_ran),
            "NO_PROXY": "127.0.0.1",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": f"{index.url}/simple",
            "PIP_NO_CACHE_DIR": "1",
            "PIP_RETRIES": "0",
        }
        subprocess.run(["git", "init", "-q", folder], env=self.environment, check=True)

    def release(self, archive, **patch):
        """Put an archive on the index, and a patch that pins it into the family."""
        self.index.add(ARCHIVE, archive)
        self.pin(**patch)

    def pin(self, value=2, original=FILES[SOURCE]):
        sha256 = hashlib.sha256(self.index.files[ARCHIVE]).hexdigest()
        after = git_hash(f"first = 1\nvalue = {value}\n")
        diff = DIFF.format(before=git_hash(original), after=after, value=value)
        self.patch.write_text(f"A patch.\n\nsdist-sha256: {sha256}\n\n{diff}")

    def start(self, *flags, **more):
        command = [sys.executable, "-m", "revisit.forks.make", str(self.folder), *flags]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=self.environment, **pipes, **more)

    def run(self, *flags, **more):
        """The exit status, and what was printed."""
        process = self.start(*flags, **more)
        out, err = process.communicate(timeout=60)
        assert 'make.py", line' not in err, "a traceback of ours"
        return process.returncode, out + err

    def left(self):
        """The names in data/, without the lock."""
        return sorted(path.name for path in self.data.iterdir() if path.suffix != ".lock")

    def assert_made(self):
        assert self.source.read_text() == PATCHED
        assert self.left() == [TOP]


@pytest.fixture
def family(tmp_path):
    with closing(Server()) as index:
        yield Family(tmp_path, index)


@pytest.fixture(scope="module")
def first_made(tmp_path_factory):
    with closing(Server()) as index:
        family = Family(tmp_path_factory.mktemp("first"), index)
        status, printed = family.run()
    assert status == 0, printed
    assert len(index.ranges_asked(ARCHIVE)) == 1
    return family


@pytest.fixture
def made(family, first_made):
    """A family whose fork has been made."""
    shutil.copytree(first_made.data, family.data)
    return family


def test_the_release_is_unpacked_and_patched_inside_an_enclosing_repository(first_made):
    first_made.assert_made()
    assert first_made.backend_ran.exists()


def test_a_second_run_downloads_and_changes_nothing(made):
    # As installing and running the fork do.
    (made.tree / "src/sample.egg-info/PKG-INFO").write_text("another\n")
    (made.tree / "src/sample/__pycache__").mkdir()
    (made.tree / "src/sample/__pycache__/value.pyc").touch()
    before = made.tree.stat().st_ino
    status, printed = made.run()
    assert status == 0 and "up to date" in printed
    assert made.index.asked == [] and made.tree.stat().st_ino == before


def test_check_tells_the_state_and_changes_nothing(family):
    status, printed = family.run("--check")
    assert status == 1 and "not made yet" in printed
    assert not family.data.exists()
    family.run()
    assert family.run("--check")[0] == 0
    family.source.write_text("mine\n")
    status, printed = family.run("--check")
    assert status == 1 and "changed: src/sample/value.py" in printed
    assert family.source.read_text() == "mine\n"


def another_patch(family):
    family.pin(value=3)
    return "made from another patch", "first = 1\nvalue = 3\n"


def a_lost_file(family):
    family.source.unlink()
    return "missing: src/sample/value.py", PATCHED


@pytest.mark.parametrize("change", [another_patch, a_lost_file])
def test_a_change_makes_it_again(made, change):
    message, expected = change(made)
    status, printed = made.run()
    assert status == 0 and message in printed
    assert made.source.read_text() == expected and made.left() == [TOP]


def test_edits_are_replaced_and_kept_beside_it(family):
    family.source.parent.mkdir(parents=True)  # a folder that this program did not make
    for number in (1, 2):
        family.source.write_text(f"mine = {number}\n")
        status, printed = family.run()
        assert status == 0 and family.source.read_text() == PATCHED
        assert f"{TOP}.edited-{number}" in printed
        kept = family.data / f"{TOP}.edited-{number}/src/sample/value.py"
        assert kept.read_text() == f"mine = {number}\n"
    assert "changed: src/sample/value.py" in printed


def another_archive(family):
    family.pin(value=3)
    family.index.add(ARCHIVE, sdist({**FILES, SOURCE: "first = 1\nvalue = 1\nevil = 1\n"}))
    expected = family.patch.read_text().split("sdist-sha256: ")[1][:64]
    return expected, hashlib.sha256(family.index.files[ARCHIVE]).hexdigest(), "another index"


def no_network(family):
    family.pin(value=3)
    family.environment |= {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"}
    return "check the network", "pip config list"


def a_patch_for_another_file(family):
    family.pin(original="first = 1\nvalue = 7\n")
    return f"{family.patch} does not apply", "sample/value.py"


@pytest.mark.parametrize("change", [another_archive, no_network, a_patch_for_another_file])
def test_a_failure_is_explained_and_leaves_the_old_tree(made, change):
    messages = change(made)
    status, printed = made.run()
    assert status == 1 and all(message in printed for message in messages), printed
    made.assert_made()
    assert made.backend_ran.exists() == (change is a_patch_for_another_file)


def test_a_write_that_fails_leaves_the_old_tree(made):
    made.release(sdist({**FILES, f"{TOP}/big": "0" * 4_000_000}), value=3)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    status, printed = made.run(preexec_fn=limit)
    assert status == 1 and "File too large" in printed
    made.assert_made()


def test_killed_half_way_leaves_nothing_made_and_the_next_run_makes_it(family):
    family.index.script[ARCHIVE] = [("stall", 100)]
    process = family.start(start_new_session=True)
    assert family.index.stalled.wait(30)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    family.index.resume.set()
    assert not family.tree.exists()
    assert family.run()[0] == 0
    family.assert_made()


def test_two_at_once_make_it_once(family):
    processes = [family.start(), family.start()]
    printed = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted("up to date" in out for out in printed) == [False, True]
    assert len(family.index.ranges_asked(ARCHIVE)) == 1
    family.assert_made()


def an_index_without_the_release(family):
    family.patch = family.patch.rename(family.folder / "sample-2.0.patch")
    return "could not download sample-2.0", "another index"


def no_git(family):
    family.environment["PATH"] = str(family.folder / "no-programs")
    return "git", "PATH"


def a_file_where_the_folder_goes(family):
    family.data.write_text("a file")
    return (str(family.data),)


def no_patch(family):
    family.patch.unlink()
    return (f"{family.folder} has to hold exactly one patch",)


def no_hash(family):
    family.patch.write_text(DIFF)
    return ("sdist-sha256",)


FAULTS = [an_index_without_the_release, no_git, a_file_where_the_folder_goes, no_patch, no_hash]


@pytest.mark.parametrize("change", FAULTS)
def test_what_prevents_it_is_named_and_nothing_is_left(family, change):
    messages = change(family)
    status, printed = family.run()
    assert status == (2 if change in (no_patch, no_hash) else 1), printed
    assert all(message in printed for message in messages), printed
    assert not family.data.is_dir() or family.left() == []
    if change is no_patch:
        assert family.run("--check") == (status, printed)


def test_a_family_folder_copied_away_from_the_package_finds_its_patch(tmp_path):
    family = tmp_path / "LLaVA1.5"
    family.mkdir()
    name = "transformers-4.31.0.patch"
    (family / name).symlink_to(f"../shared/src/revisit/forks/patches/{name}")
    assert find_patch(family).file.read_bytes() == (PATCHES / name).read_bytes()


def pack(archive, name, kind):
    """A .tar.gz of a good file and one more member."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo(f"{TOP}/good.py"))
        member = tarfile.TarInfo(name)
        member.type = kind
        member.linkname = "../../out.py"
        tar.addfile(member)
    return archive


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../out.py", tarfile.REGTYPE),
        (f"{TOP}/../../out.py", tarfile.REGTYPE),
        (f"{TOP}/link", tarfile.SYMTYPE),
        (f"{TOP}/link", tarfile.LNKTYPE),
        (f"{TOP}/device", tarfile.FIFOTYPE),
    ],
)
def test_an_archive_that_climbs_out_is_refused(tmp_path, name, kind):
    archive = pack(tmp_path / "unsafe.tar.gz", name, kind)
    with pytest.raises(tarfile.FilterError):
        unpack(archive, tmp_path / "unpacked")
    assert {path.name for path in tmp_path.rglob("*")} <= {archive.name, "unpacked", TOP, "good.py"}


def test_an_absolute_path_in_an_archive_stays_below_the_folder(tmp_path):
    outside = tmp_path / "outside" / "out.py"
    unpack(pack(tmp_path / "unsafe.tar.gz", str(outside), tarfile.REGTYPE), tmp_path / "unpacked")
    assert not outside.exists()


def test_a_python_without_filters_unpacks_what_the_hash_vouches_for(tmp_path, monkeypatch):
    archive = pack(tmp_path / "safe.tar.gz", f"{TOP}/file.py", tarfile.REGTYPE)
    monkeypatch.delattr(tarfile, "data_filter")
    unpack(archive, tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / TOP / "file.py").exists()


@pytest.mark.skipif(not shutil.which("realpath"), reason="the guide's commands are GNU's")
def test_the_guide_writes_a_patch_anew_from_an_edited_fork(made, tmp_path):
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
