"""Patch the installed Transformers where it stands, and take the patch out again.

For those who keep a Transformers 4.31.0 or 4.50.0 of their own: it gets the patch that the forks
are made with. What each file is, original, patched or neither, is read from the file alone, so
that an interrupted run is known as one. Transformers is looked for and never imported.
"""

import argparse
import fcntl
import importlib.util
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from revisit.fork import STATE
from revisit.patchfile import PATCHES, Change, FileState, PatchError, Pin, read_changes, read_pin

InstallState = Literal["patched", "unpatched", "half patched", "modified", "another release"]

# 1 stays for errors and 2 for a wrong command line.
EXIT_STATUS: dict[InstallState, int] = {
    "patched": 0,
    "unpatched": 3,
    "half patched": 4,
    "modified": 5,
    "another release": 6,
}

HELP = """\
Let your own Transformers 4.31.0 or 4.50.0 decode with ReVisiT: apply the patch to the package that
this Python imports, after checking by hash that each file to change is the release's own. Then
model.generate(..., use_revisit=True) works as in the forks. A newer release needs no patch.
"""
MORE_HELP = """\
exit status of --check:
  0 patched, 3 unpatched, 4 half patched (by a run that was killed: run it again),
  5 modified (a file is neither the release's nor the patched one),
  6 another release, or none
else 0 if the package is now as asked, and 1 if not; what is refused is left untouched.

`pip uninstall` and `pip install` work on a patched package as before; a reinstall is unpatched.
"""


@dataclass(frozen=True)
class Install:
    """The Transformers that this Python imports, and what its files are to the patch."""

    package: Path
    version: str
    changes: Mapping[Path, Change]
    files: Mapping[Path, FileState]

    @property
    def state(self) -> InstallState:
        """What the files are together; "another release" where there is no patch for it."""
        found = set(self.files.values())
        if not found:
            return "another release"
        if "other" in found:
            return "modified"
        if len(found) == 2:
            return "half patched"
        return "patched" if found == {"patched"} else "unpatched"

    @property
    def is_fork(self) -> bool:
        """Whether `revisit-fork` made it."""
        return (self.package.parents[1] / STATE).exists()

    def __str__(self) -> str:
        fork = ", a fork made by revisit-fork" if self.is_fork else ""
        return f"transformers {self.version} in {self.package}{fork}"


def find_package() -> Path | None:
    """The folder of the Transformers that `import` would find; None if there is none."""
    spec = importlib.util.find_spec("transformers")
    return Path(spec.origin).parent if spec and spec.origin else None


def inspect(package: Path) -> Install:
    """What the Transformers in a folder is; `PatchError` where `revisit` has no patches."""
    pins = {pin.version: pin for pin in map(read_pin, sorted(PATCHES.glob("transformers-*.patch")))}
    if not pins:
        raise PatchError(f"{PATCHES} holds no patches: install the package `revisit` again.")
    # The package's own word: metadata may be another copy's, or missing.
    init = (package / "__init__.py").read_text(errors="replace")
    found = re.search(r'^__version__ = "(.+)"', init, re.MULTILINE)
    version = found[1] if found else "of an unknown release"
    changes = _changes(package, pins[version]) if version in pins else {}
    files = {path: _file_state(path, change) for path, change in changes.items()}
    return Install(package, version, changes, files)


def switch(install: Install, to: Literal["original", "patched"]) -> list[Path]:
    """Make all files of the patch `to`, or none; return those that were changed.

    Raises:
        PatchError: a file is neither original nor patched. Nothing was changed.
        OSError: a file cannot be read or written. What was changed has been put back.
    """
    if install.state == "modified":
        raise PatchError(_modified(install))
    contents = {}
    for path, change in install.changes.items():
        for left in path.parent.glob(f".{path.name}.*.revisit"):  # by a run that was killed
            left.unlink()
        if install.files[path] != to:
            move = change.apply if to == "patched" else change.revert
            contents[path] = move(path.read_bytes())
    _replace(contents)
    return list(contents)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `revisit-patch`. Returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="revisit-patch",
        description=HELP,
        epilog=MORE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--check", action="store_true", help="change nothing: tell the state, also as exit status"
    )
    action.add_argument(
        "--revert", action="store_true", help="restore the release's own files, byte for byte"
    )
    options = parser.parse_args(arguments)
    try:
        package = find_package()
        if package is None:
            print(_missing(), file=sys.stdout if options.check else sys.stderr)
            return EXIT_STATUS["another release"] if options.check else 1
        if options.check:
            return _check(inspect(package))
        with _alone(package):
            _change(inspect(package), revert=options.revert)
        return 0
    except (PatchError, OSError) as error:
        print(f"revisit-patch: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        said = "revisit-patch: interrupted; `revisit-patch --check` tells the state."
        print(said, file=sys.stderr)
        return 130


def _check(install: Install) -> int:
    print(f"{install}: {install.state}")
    if install.state == "another release":
        print(_another(install))
    elif install.state == "modified":
        print(_modified(install))
    elif install.state == "half patched":
        print("A run was interrupted. Finish it with `revisit-patch`, or with `--revert` undo it.")
    return EXIT_STATUS[install.state]


def _change(install: Install, revert: bool) -> None:
    if install.state == "another release":
        raise PatchError(_another(install))
    if install.is_fork and (revert or install.state != "patched"):
        raise PatchError(
            f"{install}, is left alone: `revisit-fork FAMILY` makes it again, and "
            f"`{_reinstall(install)}` puts the unpatched release in its place."
        )
    try:
        changed = switch(install, "original" if revert else "patched")
    except OSError as error:
        place = Path(error.filename).parent if error.filename else install.package
        raise PatchError(
            f"cannot change files in {place}: {error.strerror or error}. Run this as the user who "
            "installed Transformers, with space on the disk, or install it in an environment of "
            f"your own. It is {inspect(install.package).state} now."
        ) from error
    done = "unpatched" if revert else "patched"
    if not changed:
        print(f"{install} is {done} already; nothing was done.")
        return
    print(f"{install} is {done} now. Changed:")
    print(*(f"  {path.relative_to(install.package)}" for path in changed), sep="\n")
    if not revert:
        print("model.generate(..., use_revisit=True) decodes with ReVisiT.")
        print("Undo this with: revisit-patch --revert")


@contextmanager
def _alone(package: Path) -> Iterator[None]:
    """Wait for another run on this package; the system drops the lock when its process ends."""
    folder = os.open(package, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _changes(package: Path, pin: Pin) -> dict[Path, Change]:
    changes = read_changes(pin.patch)
    return {package / change.path.removeprefix("src/transformers/"): change for change in changes}


def _file_state(path: Path, change: Change) -> FileState:
    try:
        return change.state(path.read_bytes())
    except FileNotFoundError:
        return "other"


def _replace(contents: Mapping[Path, bytes]) -> None:
    """Give each file its new content; put back what was changed where that fails."""
    before = {path: path.read_bytes() for path in contents}
    beside: dict[Path, Path] = {}
    changed = []
    try:
        for path, content in contents.items():
            beside[path] = _write_beside(path, content)
        for path, written in beside.items():
            os.replace(written, path)
            changed.append(path)
    except BaseException:
        for path in changed:
            os.replace(_write_beside(path, before[path]), path)
        raise
    finally:
        for written in beside.values():
            written.unlink(missing_ok=True)


def _write_beside(path: Path, content: bytes) -> Path:
    """A new file in the folder of `path`, to take its place: owner and permissions are the same.

    A new one, since package managers link a package's files to their cache.
    """
    old = path.stat()
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".revisit", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(content)
            with suppress(PermissionError):
                os.chown(name, old.st_uid, old.st_gid)
            os.chmod(name, old.st_mode & 0o7777)
            file.flush()
            os.fsync(handle)
        # Another time than the old file's, by which Python sees that its byte code is stale.
        now = max(time.time_ns(), old.st_mtime_ns + 1_000_000_000)
        os.utime(name, ns=(now, now))
    except BaseException:
        os.unlink(name)
        raise
    return Path(name)


def _missing() -> str:
    return (
        f"{sys.executable} finds no Transformers. Install one with its pip, and run revisit-patch "
        "of the same environment: `python -m pip install transformers==4.50.0`."
    )


def _another(install: Install) -> str:
    releases = ", ".join(read_pin(patch).version for patch in sorted(PATCHES.glob("*.patch")))
    return (
        f"{install} is not a release that there is a patch for ({releases}), and needs none: "
        "`with revisit.attach(model) as processor` gives `generate` ReVisiT as a logits processor."
    )


def _modified(install: Install) -> str:
    files = [str(path) for path, state in install.files.items() if state == "other"]
    return "\n  ".join(
        [
            "these files are neither the release's own nor patched by this version of revisit:",
            *files,
            f"Restore them, say with `{_reinstall(install)}`,",
            "and run revisit-patch again; or use `revisit.attach`, which needs no patch.",
        ]
    )


def _reinstall(install: Install) -> str:
    return f"python -m pip install --force-reinstall --no-deps transformers=={install.version}"


if __name__ == "__main__":
    sys.exit(main())
