"""Make a family's fork of Transformers: the pinned release, checked, unpacked and patched.

A family folder holds one patch, say `transformers-4.31.0.patch`, which pins the release (see
`revisit.patchfile`): from it `data/transformers-4.31.0/` is made. This runs before Transformers is
installed, so that only the standard library is imported here.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from revisit import patchfile
from revisit.patchfile import PATCHES, PatchError, Pin, read_changes

STATE = ".revisit-fork.json"


class ForkError(Exception):
    """The fork cannot be made; the message says what was wrong and what to do."""


def read_pin(family: Path) -> Pin:
    """The pin of a family folder, from its one patch; `ForkError` or `PatchError` if unclear."""
    patches = sorted(family.glob("*.patch"))
    if len(patches) != 1:
        found = ", ".join(patch.name for patch in patches) or "no patch"
        raise ForkError(
            f"{family} has to hold exactly one patch, such as transformers-4.31.0.patch; it holds "
            f"{found}. Name a family folder, such as LLaVA1.5, and restore a lost patch with "
            "`git checkout`."
        )
    patch = patches[0]
    # It links to the package's own patch: a folder copied to elsewhere still names it.
    return patchfile.read_pin(patch if patch.exists() else PATCHES / patch.name)


def why_make(tree: Path, pin: Pin) -> tuple[str, bool]:
    """Why `tree` has to be made ("" if it is as `make` left it), and whether it holds foreign work.

    Foreign are files that `make` did not write, or not as they are now: somebody's edits.
    """
    if not tree.exists():
        return "not made yet", False
    try:
        state = json.loads((tree / STATE).read_bytes())
        made: dict[str, str] = dict(state["files"])
        source = (state["sdist_sha256"], state["patch_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"not made by revisit-fork, or its {STATE} is damaged", True
    present = _digests(tree)
    foreign = any(made.get(name) != digest for name, digest in present.items())
    wrong = [
        f"{'changed' if name in present else 'missing'}: {name}"
        for name, digest in made.items()
        if present.get(name) != digest
    ]
    if wrong:
        more = [f"and {len(wrong) - 10} more"] if len(wrong) > 10 else []
        return "\n  ".join(["files are not as they were made:", *wrong[:10], *more]), foreign
    if source != (pin.sha256, _sha256(pin.patch)):
        return "made from another patch", foreign
    return "", foreign


def make(family: Path) -> Path:
    """Make the fork of `family` where it is missing, outdated or damaged; return its folder.

    The folder appears in one step when all is done: whatever fails before leaves the old one as it
    was. An old folder with somebody's edits is kept beside the new one. Raises `ForkError`.
    """
    pin = read_pin(family)
    data = family / "data"
    tree = data / pin.folder
    try:
        data.mkdir(exist_ok=True)
        with _lock(data / f".{pin.folder}.lock"):
            reason, foreign = why_make(tree, pin)
            if not reason:
                print(f"{tree} is up to date.")
                return tree
            print(f"Making {tree}: {reason}", flush=True)
            work = data / f".{pin.folder}.making"
            shutil.rmtree(work, ignore_errors=True)  # what a killed run left
            try:
                work.mkdir()
                made = unpack(download(pin, work), work / "unpacked", pin.folder)
                apply_patch(pin.patch, made)
                _write_state(made, pin)
                _replace(tree, made, _kept(tree) if foreign else work / "old")
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise ForkError(
            f"cannot write {error.filename or tree}: {error.strerror or error}. Free space or "
            f"repair the permissions, and run this again. {tree} was not touched."
        ) from error
    print(f"Made {tree}. Install it with: python -m pip install -e {tree}")
    return tree


def download(pin: Pin, folder: Path) -> Path:
    """The source archive of the release, in `folder`, its hash checked.

    pip fetches it, so that the mirror, proxy and certificates set up for pip are used; given the
    hash, it refuses another archive before running anything of it.
    """
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{pin.name}=={pin.version} --hash=sha256:{pin.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--no-binary", pin.name, "--dest", str(folder), "-r", str(requirement)]
    said = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as pip:
        assert pip.stderr is not None
        for line in pip.stderr:
            sys.stderr.write(line)
            said.append(line)
    if pip.returncode:
        raise ForkError(_download_trouble(pin, "".join(said)))
    archive = folder / f"{pin.folder}.tar.gz"
    if not archive.exists():
        raise ForkError(f"the package index has no {archive.name}. Use one that serves sources.")
    if (got := _sha256(archive)) != pin.sha256:
        raise ForkError(_other_hash(pin, got))
    return archive


def unpack(archive: Path, folder: Path, top: str) -> Path:
    """Unpack the .tar.gz into the new `folder` and return its single top folder, named `top`.

    Raises `ForkError`, with nothing unpacked, where a member is a link or device, or lies outside
    `top`. Egg-info is left out: each installation writes its own.
    """
    wanted = []
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                parts = PurePosixPath(member.name).parts
                plain = member.isfile() or member.isdir()
                if not plain or not parts or parts[0] != top or ".." in parts:
                    raise ForkError(
                        f"{archive.name} is unsafe: its member {member.name!r} is a link or "
                        f"leaves {top}/. Nothing was unpacked; use another package index."
                    )
                if not any(part.endswith(".egg-info") for part in parts):
                    wanted.append(member)
            folder.mkdir()
            if hasattr(tarfile, "data_filter"):
                tar.extractall(folder, wanted, filter="data")
            else:  # Python before 3.11.4 relies on the check above
                tar.extractall(folder, wanted)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise ForkError(f"{archive.name} cannot be read: {error}. Run this again.") from error
    return folder / top


def apply_patch(patch: Path, tree: Path) -> None:
    """Apply the patch, whose paths are relative to `tree`: all of it or nothing.

    Raises `ForkError` where a file is not the one that the patch was made for.
    """
    try:
        changes = read_changes(patch)
        patched = {
            tree / change.path: change.apply((tree / change.path).read_bytes())
            for change in changes
        }
    except (PatchError, FileNotFoundError) as error:
        raise ForkError(
            f"{patch} does not apply to {tree.name}:\n{error}\nRestore it with "
            f"`git checkout -- {patch.resolve()}`, or repair your own changes to it."
        ) from error
    for path, content in patched.items():
        path.write_bytes(content)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `revisit-fork`. Returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="revisit-fork",
        description="Make the patched Transformers of a family: download the pinned release "
        "through pip, check its hash, unpack it to FAMILY/data/ and apply FAMILY's patch. Does "
        "nothing where that has been done, and makes it again where the patch or the files "
        "changed (files you edited are kept beside it).",
    )
    parser.add_argument("family", type=Path, help="family folder, such as LLaVA1.5")
    parser.add_argument(
        "--check",
        action="store_true",
        help="change nothing: print the state, exit with 0 if it is up to date and 1 if not",
    )
    options = parser.parse_args(arguments)
    try:
        if not options.check:
            make(options.family)
            return 0
        pin = read_pin(options.family)
        tree = options.family / "data" / pin.folder
        reason, _ = why_make(tree, pin)
        print(f"{tree}: {reason or 'up to date'}")
        return int(bool(reason))
    except (ForkError, PatchError) as error:
        print(f"revisit-fork: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("revisit-fork: interrupted; nothing was changed.", file=sys.stderr)
        return 130


def _download_trouble(pin: Pin, said: str) -> str:
    if got := re.search(r"Got\s+([0-9a-f]{64})", said):
        return _other_hash(pin, got[1])
    if "No module named pip" in said:
        return f"{sys.executable} has no pip. Install it with: {sys.executable} -m ensurepip"
    if disk := re.search(r"OSError: (.*)", said):
        return f"pip could not write its files: {disk[1]}. Free space and run this again."
    if re.search(r"Retrying|Could not fetch URL|Connection|Max retries|timed out", said):
        return (
            f"the package index cannot be reached, so {pin.folder} was not downloaded. Check the "
            "network, and pip's index, proxy and certificates (`python -m pip config list`)."
        )
    if "No matching distribution" in said:
        return (
            f"the package index has no source archive of {pin.folder}, or cannot be reached. "
            "`python -m pip config list` shows the index, PIP_INDEX_URL sets another."
        )
    return f"pip could not download {pin.folder}; its own words stand above."


def _other_hash(pin: Pin, got: str) -> str:
    return (
        f"the package index serves another {pin.folder} than the pinned one.\n"
        f"  expected sha256 {pin.sha256} ({pin.patch})\n  got      sha256 {got}\n"
        "The download was thrown away. If you use a mirror, ask who runs it, or use another index."
    )


def _write_state(tree: Path, pin: Pin) -> None:
    state = {
        "release": pin.folder,
        "sdist_sha256": pin.sha256,
        "patch_sha256": _sha256(pin.patch),
        "files": _digests(tree),
    }
    (tree / STATE).write_text(json.dumps(state, indent=1))


def _replace(tree: Path, made: Path, aside: Path) -> None:
    if not tree.exists():
        made.rename(tree)
        return
    tree.rename(aside)
    try:
        made.rename(tree)
    except BaseException:
        aside.rename(tree)
        raise
    if aside.parent == tree.parent:
        print(f"The old folder had edits. It is kept as {aside}.")


def _kept(tree: Path) -> Path:
    number = 1
    while (kept := tree.with_name(f"{tree.name}.edited-{number}")).exists():
        number += 1
    return kept


def _digests(tree: Path) -> dict[str, str]:
    # Not what running and installing write into the tree: byte code, egg-info, the state itself.
    found = {}
    for folder, subfolders, names in os.walk(tree):
        subfolders[:] = [
            s for s in subfolders if not re.search(r"^\.|^__pycache__$|\.egg-info$", s)
        ]
        for path in (Path(folder, name) for name in names):
            if path.is_file():
                found[path.relative_to(tree).as_posix()] = _sha256(path)
    found.pop(STATE, None)
    return dict(sorted(found.items()))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    # The system drops this lock when its process ends, however it ends.
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another revisit-fork is at work here; waiting for it.", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
