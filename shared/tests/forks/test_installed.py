"""`revisit fork patch` on real installs of both releases."""

import hashlib
import importlib.metadata
import importlib.util
import os
import py_compile
import resource
import shutil
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


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def edit(path: Path, content: bytes) -> None:
    path.unlink()  # not through the link into the cache
    path.write_bytes(content)


class Installed:
    """A release in a folder of its own, and the command run on it."""

    def __init__(self, folder: Path, version: str) -> None:
        self.folder = folder
        self.version = version
        path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        self.files = [folder / name for name in sorted(TOUCHED[version])]

    def python(self, *arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            **more,  # type: ignore[call-overload]
        )

    def run(self, *flags: str, **more: object) -> tuple[int, str]:
        done = self.python("-m", "revisit.forks.installed", *flags, **more)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    def left_over(self) -> list[Path]:
        return list(self.folder.rglob(".revisit-*"))


@pytest.fixture(scope="module", params=RELEASES)
def cache(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """An install of a release's wheel, which pip fetches once."""
    version = request.param
    wheels = request.config.cache.mkdir("wheels")
    pip = [sys.executable, "-m", "pip", "-q"]
    if not list(wheels.glob(f"transformers-{version}-*.whl")):
        only = ["--no-deps", "--only-binary", ":all:", "--dest", str(wheels)]
        subprocess.run([*pip, "download", *only, f"transformers=={version}"], check=True)
    folder = tmp_path_factory.mktemp("cache") / version
    place = ["--no-deps", "--no-index", "--no-compile", "--target", str(folder)]
    (wheel,) = wheels.glob(f"transformers-{version}-*.whl")
    subprocess.run([*pip, "install", *place, str(wheel)], check=True)
    return folder, version


@pytest.fixture
def installed(cache: tuple[Path, str], tmp_path: Path) -> Installed:
    """Hard links to that, as uv and conda install; the cache must come out of it as it was."""
    folder, version = cache
    shutil.copytree(folder, tmp_path / "site", copy_function=os.link)
    return Installed(tmp_path / "site", version)


def test_apply_again_and_revert_byte_for_byte(
    installed: Installed, cache: tuple[Path, str]
) -> None:
    before = digests(installed.folder)
    assert installed.run("--check")[0] == UNPATCHED
    status, out = installed.run()
    assert status == 0
    assert "revisit fork revert" in out
    assert installed.run("--check")[0] == PATCHED
    patched = digests(installed.folder)
    assert {name for name in patched if patched[name] != before.get(name)} == TOUCHED[
        installed.version
    ]
    status, out = installed.run()
    assert status == 0
    assert "already" in out
    assert digests(installed.folder) == patched
    assert digests(cache[0]) == before, "written through a hard link"
    assert installed.run("--revert")[0] == 0
    assert installed.run("--check")[0] == UNPATCHED
    assert digests(installed.folder) == before
    status, out = installed.run("--revert")
    assert status == 0
    assert "already" in out
    assert digests(installed.folder) == before


@pytest.mark.skipif(HERE not in FAMILIES, reason="needs a release's own environment to run it")
def test_the_patched_release_gives_the_published_tokens(installed: Installed) -> None:
    assert installed.run()[0] == 0
    golden = REPOSITORY / FAMILIES[HERE] / "tests" / "test_golden.py"
    code = (
        "import sys, pytest, transformers; print(transformers.__file__);"
        "sys.exit(pytest.main(['-p', 'no:cacheprovider', sys.argv[1]]))"
    )
    tests = installed.python("-c", code, str(golden), cwd=REPOSITORY)
    assert tests.returncode == 0, tests.stdout
    assert tests.stdout.startswith(str(installed.folder))


@pytest.mark.parametrize("first", [(), ("--revert",)], ids=["unpatched", "patched"])
@pytest.mark.parametrize("lost", [False, True], ids=["edited", "lost"])
def test_a_modified_release_is_refused_and_untouched(
    installed: Installed, first: tuple[str, ...], lost: bool
) -> None:
    if first:
        installed.run()
    mine = installed.files[-1]
    edit(mine, mine.read_bytes() + b"# mine\n")
    if lost:
        mine.unlink()
    before = digests(installed.folder)
    assert installed.run("--check")[0] == MODIFIED
    for flags in [(), ("--revert",)]:
        status, out = installed.run(*flags)
        assert status == 1
        assert str(mine) in out
        assert str(installed.files[0]) not in out
        assert f"pip install --force-reinstall --no-deps transformers=={installed.version}" in out
        assert "revisit.enable" in out
    assert digests(installed.folder) == before


def test_another_release_is_refused_and_untouched(installed: Installed) -> None:
    init = installed.folder / "transformers" / "__init__.py"
    version = b'"%s"' % installed.version.encode()
    edit(init, init.read_bytes().replace(version, b'"4.49.9"', 1))
    before = digests(installed.folder)
    status, out = installed.run("--check")
    assert status == ANOTHER
    for flags in [(), ("--revert",)]:
        status, out = installed.run(*flags)
        assert status == 1
        assert "4.49.9" in out
        assert "4.31.0, 4.50.0" in out
        assert "revisit.enable" in out
    assert digests(installed.folder) == before


@pytest.mark.parametrize("flags", [(), ("--revert",)], ids=["finished", "undone"])
def test_a_killed_run_is_known_and_finished_or_undone(
    installed: Installed, flags: tuple[str, ...]
) -> None:
    before = digests(installed.folder)
    killed = (
        "import os\nfrom revisit.forks import installed\nreplace = os.replace\n"
        "os.replace = lambda *paths: (replace(*paths), os._exit(9))\ninstalled.main([])"
    )
    assert installed.python("-c", killed).returncode == 9
    status, out = installed.run("--check")
    assert status == HALF
    assert "interrupted" in out
    assert installed.left_over()
    status, out = installed.run(*flags)
    assert status == 0
    assert installed.run("--check")[0] == (UNPATCHED if flags else PATCHED)
    assert not installed.left_over()
    assert (digests(installed.folder) == before) == bool(flags)


def test_runs_at_once_wait_for_each_other(installed: Installed) -> None:
    with ThreadPoolExecutor() as threads:
        runs = list(threads.map(lambda _: installed.run(), range(4)))
    assert [status for status, _ in runs] == [0] * 4
    assert sum("already" in out for _, out in runs) == 3
    assert installed.run("--check")[0] == PATCHED
    assert not installed.left_over()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_between_two_files_is_put_back(
    installed: Installed,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = digests(installed.folder)
    replace, calls = os.replace, []

    def fails_once(*paths: Path) -> None:
        calls.append(paths)
        if len(calls) == 2:
            raise error
        replace(*paths)

    monkeypatch.setattr(command, "find_package", lambda: installed.folder / "transformers")
    monkeypatch.setattr(os, "replace", fails_once)
    status, said = (
        (1, "nothing was changed") if isinstance(error, OSError) else (130, "interrupted")
    )
    assert command.main([]) == status
    assert said in capsys.readouterr().err
    assert digests(installed.folder) == before


def test_a_write_that_fails_changes_nothing(installed: Installed) -> None:
    before = digests(installed.folder)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100_000, 100_000))
    status, out = installed.run(preexec_fn=limit)
    assert status == 1
    assert "File too large" in out
    assert "nothing was changed" in out
    assert digests(installed.folder) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser writes everywhere")
def test_a_folder_that_cannot_be_written_is_named(installed: Installed) -> None:
    before = digests(installed.folder)
    folder = installed.files[0].parent
    folder.chmod(0o555)
    status, out = installed.run()
    folder.chmod(0o755)
    assert status == 1
    assert str(folder) in out
    assert "the user who installed" in out
    assert digests(installed.folder) == before


def test_permissions_stay_and_byte_code_goes_stale(installed: Installed) -> None:
    source = installed.files[0]
    edit(source, source.read_bytes())
    source.chmod(0o640)

    def is_fresh(compiled: Path) -> bool:
        # What the import system compares: the source's time in seconds, and its size.
        stamp = b"".join(
            (number & 0xFFFFFFFF).to_bytes(4, "little")
            for number in (int(source.stat().st_mtime), source.stat().st_size)
        )
        return compiled.read_bytes()[8:16] == stamp

    for flags in [(), ("--revert",)]:
        compiled = Path(py_compile.compile(str(source)))
        assert is_fresh(compiled)
        assert installed.run(*flags)[0] == 0
        assert not is_fresh(compiled)
        assert source.stat().st_mode & 0o777 == 0o640


def test_a_fork_is_left_alone(installed: Installed, tmp_path: Path) -> None:
    tree = tmp_path / "fork"
    tree.mkdir()
    installed.folder.rename(tree / "src")
    (tree / STATE).write_text("{}")
    fork = Installed(tree / "src", installed.version)
    before = digests(fork.folder)
    status, out = fork.run()
    assert (status, "revisit fork make FAMILY" in out) == (1, True)
    assert digests(fork.folder) == before
    (tree / STATE).unlink()
    fork.run()
    (tree / STATE).write_text("{}")
    patched = digests(fork.folder)
    status, out = fork.run()
    assert (status, "It is a fork" in out, "already" in out) == (0, True, True)
    assert fork.run("--check")[0] == PATCHED
    assert fork.run("--revert")[0] == 1
    assert digests(fork.folder) == patched


def test_nothing_installed_is_said() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(revisit.__file__).parents[1])}
    command = [sys.executable, "-S", "-m", "revisit.forks.installed"]  # -S: without site-packages
    for flags, status in [((), 1), (("--revert",), 1), (("--check",), ANOTHER)]:
        done = subprocess.run([*command, *flags], env=environment, capture_output=True, text=True)
        assert done.returncode == status
        assert "finds no Transformers" in done.stdout + done.stderr


def test_the_transformers_of_this_environment_is_recognised_without_importing_it() -> None:
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
def test_the_families_and_the_package_have_one_patch(version: str) -> None:
    name = f"transformers-{version}.patch"
    family = REPOSITORY / FAMILIES[version] / name
    assert (
        family.resolve() == REPOSITORY / "shared" / "src" / "revisit" / "forks" / "patches" / name
    )
    assert family.read_bytes() == (PATCHES / name).read_bytes()


@pytest.mark.skipif(not importlib.util.find_spec("setuptools"), reason="needs its build backend")
def test_shared_alone_installs_the_patches_and_the_command(tmp_path: Path) -> None:
    alone = tmp_path / "shared"
    skip = shutil.ignore_patterns("build", "*.egg-info", "__pycache__", ".*")
    shutil.copytree(REPOSITORY / "shared", alone, symlinks=True, ignore=skip)
    flags = ["--no-deps", "--no-index", "--no-build-isolation", "--target", str(tmp_path / "site")]
    subprocess.run([sys.executable, "-m", "pip", "-q", "install", *flags, str(alone)], check=True)
    for version in FAMILIES:
        name = f"transformers-{version}.patch"
        content = (tmp_path / "site" / "revisit" / "forks" / "patches" / name).read_bytes()
        assert content == (PATCHES / name).read_bytes()
    assert (tmp_path / "site" / "bin" / "revisit").exists()


def test_the_exit_statuses_are_those_of_the_help() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "revisit.forks.installed", "--help"], capture_output=True, text=True
    )
    for state, status in command.EXIT_STATUS.items():
        assert f"{status} {state}" in done.stdout
    assert sorted(command.EXIT_STATUS.values()) == [PATCHED, UNPATCHED, HALF, MODIFIED, ANOTHER]
