"""Let your own Transformers 4.31.0 or 4.50.0 decode with ReVisiT: apply the forks' patch to the
package that this Python imports, after checking by hash that each file to change is as released.
Then model.generate(..., use_revisit=True) works as in the forks. A newer release needs none.

exit status of --check:
  0 patched, 3 unpatched, 4 half patched (by a run that was killed: run it again),
  5 modified (a file is neither the release's nor the patched one),
  6 another release, or none
else 0 if the package is now as asked, and 1 if not; what is refused is left untouched.
`pip uninstall` and `pip install` work on a patched package as before; a reinstall is unpatched.
"""

import argparse
import fcntl
import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from revisit.forks.make import STATE
from revisit.forks.patch import PATCHES, ReleaseError, Side, read_patch

# 1 stays for errors and 2 for a wrong command line.
EXIT_STATUS = {"patched": 0, "unpatched": 3, "half patched": 4, "modified": 5, "another release": 6}
_ADVICE = {
    "patched": "`revisit fork revert` undoes it.",
    "unpatched": "`revisit fork patch` patches it.",
    "half patched": "A run was interrupted: `revisit fork patch` finishes it, and `revisit fork "
    "revert` undoes it.",
    "modified": "Neither the release's nor patched by this version of revisit: {modified}. "
    "`{reinstall}` restores it; or use `revisit.enable(model)`, which needs no patch.",
    "another release": "There are patches for {releases} alone, and no other release needs one: "
    "`revisit.enable(model)` has its `generate` decode with ReVisiT.",
    "fork": "It is a fork, and left alone: `revisit fork make FAMILY` makes it again, "
    "`{reinstall}` puts the release in its place.",
}


class Install:
    """The Transformers in a folder; its state, a key of `EXIT_STATUS`, is read from its files."""

    def __init__(self, package: Path) -> None:
        # Read from the package: metadata may be missing, or belong to another copy.
        init = (package / "__init__.py").read_text(errors="replace")
        found = re.search(r'^__version__ = "([\w.]+)"', init, re.MULTILINE)
        self.package = package
        self.version = found[1] if found else "(unknown)"
        self.is_fork = (package.parents[1] / STATE).exists()
        file = PATCHES / f"transformers-{self.version}.patch"
        self.patch = patch = read_patch(file) if file.exists() else None
        self.sides = {p: patch.side(package.parent, p) for p in patch.hashes} if patch else {}
        states: set[str] = {*self.sides.values()} or {"another release"}
        mixed = "modified" if "modified" in states else "half patched"
        self.state = mixed if len(states) > 1 else states.pop()

    def __str__(self) -> str:
        modified = [path for path, side in self.sides.items() if side == "modified"]
        advice = _ADVICE["fork" if self.is_fork else self.state].format(
            modified=", ".join(str(self.package.parent / path) for path in modified),
            reinstall=f"pip install --force-reinstall --no-deps transformers=={self.version}",
            releases=", ".join(sorted(file.stem.split("-")[1] for file in PATCHES.glob("*.patch"))),
        )
        return f"transformers {self.version} in {self.package}: {self.state}. {advice}"


def find_package() -> Path | None:
    """The folder of the Transformers that `import` would find, not imported; None without one."""
    spec = importlib.util.find_spec("transformers")
    return Path(spec.origin).parent if spec and spec.origin else None


def switch(install: Install, to: Side) -> list[str]:
    """Bring all files of the patch to this side, or none; return the changed ones.

    Old files are replaced, not written to: they may be links into a package manager's cache.
    """
    site = install.package.parent
    paths = [path for path, side in install.sides.items() if side != to]
    if install.state in ("modified", "another release") or (install.is_fork and paths):
        raise ReleaseError(str(install))
    for left in install.package.glob(".revisit-*"):  # by a run that was killed
        shutil.rmtree(left)
    if not install.patch or not paths:
        return []
    with tempfile.TemporaryDirectory(prefix=".revisit-", dir=install.package) as scratch:
        old, new = Path(scratch, "old"), Path(scratch, "new")
        for folder in (old, new):
            for path in paths:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(site / path, folder / path)
        install.patch.apply(new, paths, to)
        try:
            for path in paths:
                was = (site / path).stat()
                with suppress(PermissionError):
                    os.chown(new / path, was.st_uid, was.st_gid)
                os.chmod(new / path, was.st_mode)
                os.replace(new / path, site / path)
        except BaseException:
            for path in paths:
                os.replace(old / path, site / path)
            raise
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `revisit fork patch|check|revert`. Returns its exit status."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("revisit fork patch", description=__doc__, formatter_class=raw)
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--check", action="store_true", help="change nothing, tell the state")
    one.add_argument("--revert", action="store_true", help="restore the release, byte for byte")
    options = parser.parse_args(arguments)
    to: Side = "unpatched" if options.revert else "patched"
    try:
        if not (package := find_package()):
            print(f"{sys.executable} finds no Transformers: install one first.", file=sys.stderr)
            return EXIT_STATUS["another release"] if options.check else 1
        if options.check:
            print(install := Install(package))
            return EXIT_STATUS[install.state]
        with (package / "__init__.py").open() as lock:
            with suppress(OSError):  # some network file systems have no locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            changed = switch(Install(package), to)
            print(Install(package), "Changed:" if changed else "It was so already.", *changed)
        return 0
    except ReleaseError as error:
        print(f"revisit fork: {error}", file=sys.stderr)
    except OSError as error:
        advice = "Run this as the user who installed Transformers, with space on the disk."
        print(f"revisit fork: nothing was changed: {error}. {advice}", file=sys.stderr)
    except KeyboardInterrupt:
        print("revisit fork: interrupted; `revisit fork check` says the state.", file=sys.stderr)
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
