"""`revisit fork patch` on real installs of both releases."""

import hashlib
import importlib.metadata
import importlib.util
import os
import py_compile
import resource
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

import revisit
from revisit.forks import installed as command
from revisit.forks.make import STATE
from revisit.forks.patch import PATCHES, read_patch

REPOSITORY = Path(__file__).parents[3]
FAMILIES = {"4.31.0": "LLaVA1.5", "4.50.0": "Qwen2.5-VL"}
TOUCHED = {
    version: set(read_patch(PATCHES / f"transformers-{version}.patch").hashes)
    for version in FAMILIES
}
HERE = importlib.metadata.version("transformers")
# A fork's environment can run its own release; in another one, both lie on disk only.
RELEASES = [HERE] if HERE in FAMILIES else list(FAMILIES)
PATCHED, UNPATCHED, HALF, MODIFIED, ANOTHER = 0, 3, 4, 5, 6


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def edit(path, content):
    path.unlink()  # not through the link into the cache
    path.write_bytes(content)


class Installed:
    """A release in a folder, and the command run on it."""

    def __init__(self, folder, version):
        self.folder = folder
        self.version = version
        path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        self.files = [folder / name for name in sorted(TOUCHED[version])]

    def python(self, *arguments, **more):
        command = [sys.executable, *arguments]
        options = {"env": self.environment, "capture_output": True, "text": True}
        return subprocess.run(command, **options, **more)

    def run(self, *flags, **more):
        """The exit status, and what was printed."""
        done = self.python("-m", "revisit.forks.installed", *flags, **more)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    def check(self):
        return self.run("--check")[0]

    def left_over(self):
        return list(self.folder.rglob(".revisit-*"))


@pytest.fixture(scope="module", params=RELEASES)
def cache(request, tmp_path_factory):
    """An install of a release's wheel, which pip fetches once."""
    version = request.param
    wheels = request.config.cache.mkdir("wheels")
    pip = [sys.executable, "-m", "pip", "-q"]
    if not list(wheels.glob(f"transformers-{version}-*.whl")):
        only = ["--no-deps", "--only-binary", ":all:", "--dest", str(wheels)]
        subprocess.run([*pip, "download", *only, f"transformers=={version}"], check=True)
    folder = tmp_path_factory.mktemp("cache") / version
    target = ["--no-deps", "--no-index", "--no-compile", "--target", str(folder)]
    (wheel,) = wheels.glob(f"transformers-{version}-*.whl")
    subprocess.run([*pip, "install", *target, str(wheel)], check=True)
    return folder, version


@pytest.fixture
def installed(cache, tmp_path):
    """Hard links to that, as uv and conda install; the cache must come out of it as it was."""
    folder, version = cache
    shutil.copytree(folder, tmp_path / "site", copy_function=os.link)
    return Installed(tmp_path / "site", version)


def test_apply_again_and_revert_byte_for_byte(installed, cache):
    before = digests(installed.folder)
    assert installed.check() == UNPATCHED
    status, printed = installed.run()
    assert status == 0 and "revisit fork revert" in printed
    assert installed.check() == PATCHED
    patched = digests(installed.folder)
    changed = {name for name in patched if patched[name] != before.get(name)}
    assert changed == TOUCHED[installed.version]
    status, printed = installed.run()
    assert status == 0 and "already" in printed
    assert digests(installed.folder) == patched
    assert digests(cache[0]) == before, "written through a hard link"
    assert installed.run("--revert")[0] == 0
    assert installed.check() == UNPATCHED
    status, printed = installed.run("--revert")
    assert status == 0 and "already" in printed
    assert digests(installed.folder) == before


@pytest.mark.skipif(HERE not in FAMILIES, reason="needs a release's own environment to run it")
def test_the_patched_release_gives_the_published_tokens(installed):
    assert installed.run()[0] == 0
    golden = REPOSITORY / FAMILIES[HERE] / "tests" / "test_golden.py"
    code = (
        "import sys, pytest, transformers; print(transformers.__file__);"
        "sys.exit(pytest.main(['-p', 'no:cacheprovider', sys.argv[1]]))"
    )
    tests = installed.python("-c", code, str(golden), cwd=REPOSITORY)
    assert tests.returncode == 0, tests.stdout
    assert tests.stdout.startswith(str(installed.folder))


def assert_refused(installed, *messages):
    """Neither direction is taken, each says why, and no file is touched."""
    before = digests(installed.folder)
    for flags in [(), ("--revert",)]:
        status, printed = installed.run(*flags)
        assert status == 1
        assert all(message in printed for message in ("revisit.enable", *messages)), printed
        assert str(installed.files[0]) not in printed
    assert digests(installed.folder) == before


@pytest.mark.parametrize("first", [(), ("--revert",)], ids=["unpatched", "patched"])
@pytest.mark.parametrize("lost", [False, True], ids=["edited", "lost"])
def test_a_modified_release_is_refused_and_untouched(installed, first, lost):
    if first:
        installed.run()
    mine = installed.files[-1]
    edit(mine, mine.read_bytes() + b"# mine\n")
    if lost:
        mine.unlink()
    assert installed.check() == MODIFIED
    reinstall = f"pip install --force-reinstall --no-deps transformers=={installed.version}"
    assert_refused(installed, str(mine), reinstall)


def test_another_release_is_refused_and_untouched(installed):
    init = installed.folder / "transformers" / "__init__.py"
    version = b'"%s"' % installed.version.encode()
    edit(init, init.read_bytes().replace(version, b'"4.49.9"', 1))
    assert installed.check() == ANOTHER
    assert_refused(installed, "4.49.9", "4.31.0, 4.50.0")


@pytest.mark.parametrize("flags", [(), ("--revert",)], ids=["finished", "undone"])
def test_a_killed_run_is_known_and_finished_or_undone(installed, flags):
    before = digests(installed.folder)
    killed = (
        "import os\nfrom revisit.forks import installed\nreplace = os.replace\n"
        "os.replace = lambda *paths: (replace(*paths), os._exit(9))\ninstalled.main([])"
    )
    assert installed.python("-c", killed).returncode == 9
    status, printed = installed.run("--check")
    assert status == HALF and "interrupted" in printed
    assert installed.left_over()
    assert installed.run(*flags)[0] == 0
    assert installed.check() == (UNPATCHED if flags else PATCHED)
    assert not installed.left_over()
    assert (digests(installed.folder) == before) == bool(flags)


def test_runs_at_once_wait_for_each_other(installed):
    with ThreadPoolExecutor() as threads:
        runs = list(threads.map(lambda _: installed.run(), range(4)))
    assert [status for status, _ in runs] == [0] * 4
    assert sum("already" in printed for _, printed in runs) == 3
    assert installed.check() == PATCHED
    assert not installed.left_over()


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OSError(28, "No space left on device"), 1, "nothing was changed"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_failure_between_two_files_is_put_back(
    installed, error, status, message, monkeypatch, capsys
):
    before = digests(installed.folder)
    replace, calls = os.replace, []

    def fails_once(*paths):
        calls.append(paths)
        if len(calls) == 2:
            raise error
        replace(*paths)

    monkeypatch.setattr(command, "find_package", lambda: installed.folder / "transformers")
    monkeypatch.setattr(os, "replace", fails_once)
    assert command.main([]) == status
    assert message in capsys.readouterr().err
    assert digests(installed.folder) == before


def test_a_write_that_fails_changes_nothing(installed):
    before = digests(installed.folder)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100_000, 100_000))
    status, printed = installed.run(preexec_fn=limit)
    assert status == 1 and "File too large" in printed and "nothing was changed" in printed
    assert digests(installed.folder) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser writes everywhere")
def test_a_folder_that_cannot_be_written_is_named(installed):
    before = digests(installed.folder)
    folder = installed.files[0].parent
    folder.chmod(0o555)
    status, printed = installed.run()
    folder.chmod(0o755)
    assert status == 1 and str(folder) in printed and "the user who installed" in printed
    assert digests(installed.folder) == before


def test_permissions_stay_and_byte_code_goes_stale(installed):
    source = installed.files[0]
    edit(source, source.read_bytes())
    source.chmod(0o640)

    def is_fresh(compiled):
        # What the import system compares: the source's time in seconds, and its size.
        stat = source.stat()
        return compiled.read_bytes()[8:16] == struct.pack("<II", int(stat.st_mtime), stat.st_size)

    for flags in [(), ("--revert",)]:
        compiled = Path(py_compile.compile(str(source)))
        assert is_fresh(compiled)
        assert installed.run(*flags)[0] == 0
        assert not is_fresh(compiled)
        assert source.stat().st_mode & 0o777 == 0o640


def test_a_fork_is_left_alone(installed, tmp_path):
    tree = tmp_path / "fork"
    tree.mkdir()
    installed.folder.rename(tree / "src")
    (tree / STATE).write_text("{}")
    fork = Installed(tree / "src", installed.version)
    before = digests(fork.folder)
    status, printed = fork.run()
    assert status == 1 and "revisit fork make FAMILY" in printed
    assert digests(fork.folder) == before
    (tree / STATE).unlink()
    fork.run()
    (tree / STATE).write_text("{}")
    patched = digests(fork.folder)
    status, printed = fork.run()
    assert status == 0 and "It is a fork" in printed and "already" in printed
    assert fork.check() == PATCHED
    assert fork.run("--revert")[0] == 1
    assert digests(fork.folder) == patched


def test_an_environment_without_transformers_is_named():
    environment = {**os.environ, "PYTHONPATH": str(Path(revisit.__file__).parents[1])}
    command = [sys.executable, "-S", "-m", "revisit.forks.installed"]  # -S: without site-packages
    for flags, status in [((), 1), (("--revert",), 1), (("--check",), ANOTHER)]:
        done = subprocess.run([*command, *flags], env=environment, capture_output=True, text=True)
        assert done.returncode == status
        assert "finds no Transformers" in done.stdout + done.stderr


def test_the_transformers_of_this_environment_is_recognised_without_importing_it():
    code = (
        "import sys; from revisit.forks import installed; status = installed.main(['--check']);"
        "print({'torch', 'transformers', 'numpy'} & set(sys.modules)); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()"
    assert f"transformers {HERE} in " in done.stdout
    if HERE not in FAMILIES:
        assert done.returncode == ANOTHER


@pytest.mark.parametrize("version", FAMILIES)
def test_the_families_and_the_package_have_one_patch(version):
    name = f"transformers-{version}.patch"
    family = REPOSITORY / FAMILIES[version] / name
    assert family.resolve() == REPOSITORY / "shared/src/revisit/forks/patches" / name
    assert family.read_bytes() == (PATCHES / name).read_bytes()


@pytest.mark.skipif(not importlib.util.find_spec("setuptools"), reason="needs its build backend")
def test_shared_alone_installs_the_patches_and_the_command(tmp_path):
    alone = tmp_path / "shared"
    skip = shutil.ignore_patterns("build", "*.egg-info", "__pycache__", ".*")
    shutil.copytree(REPOSITORY / "shared", alone, symlinks=True, ignore=skip)
    flags = ["--no-deps", "--no-index", "--no-build-isolation", "--target", str(tmp_path / "site")]
    subprocess.run([sys.executable, "-m", "pip", "-q", "install", *flags, str(alone)], check=True)
    installed = tmp_path / "site" / "revisit" / "forks" / "patches"
    for patch in PATCHES.glob("*.patch"):
        assert (installed / patch.name).read_bytes() == patch.read_bytes()
    assert (tmp_path / "site" / "bin" / "revisit").exists()


def test_the_exit_statuses_are_those_of_the_help():
    for state, status in command.EXIT_STATUS.items():
        assert f"{status} {state}" in command.__doc__
    assert sorted(command.EXIT_STATUS.values()) == [PATCHED, UNPATCHED, HALF, MODIFIED, ANOTHER]
