"""Make the patched Transformers of a family: download the pinned release through pip, check its
hash, unpack it to FAMILY/data/ and apply FAMILY's one patch. Does nothing where that has been done,
and makes it again where the patch or the files changed (files you edited are kept beside it)."""

import argparse
import fcntl
import hashlib
import itertools
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from revisit.forks.patch import PATCHES, Patch, ReleaseError, read_patch

STATE = ".revisit-fork.json"
# Files that installing and running a fork write into it, and its state.
_LATER = re.compile(rf"(^|/)(\.[^/]+/|__pycache__/|[^/]+\.egg-info/)|^{re.escape(STATE)}$")


def find_patch(family: Path) -> Patch:
    """The one patch of a family folder; `ReleaseError` where there is none, or another one."""
    found = sorted(family.glob("*.patch"))
    if len(found) != 1:
        raise ReleaseError(
            f"{family} has to hold exactly one patch; it has {len(found)}. Name a family folder, "
            "such as LLaVA1.5, and restore a lost patch with `git checkout`."
        )
    # It is a link to the package's patch; in a copied folder the link's name still finds it.
    return read_patch(found[0] if found[0].exists() else PATCHES / found[0].name)


def why_make(tree: Path, patch: Patch) -> tuple[str, bool]:
    """Why `tree` has to be made ("" if it is as `make` left it), and whether it holds edits."""
    if not tree.exists():
        return "not made yet", False
    try:
        state = json.loads((tree / STATE).read_bytes())
        made, source = dict(state["files"]), state["patch_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"not made by `revisit fork make`, or its {STATE} is damaged", True
    files = _digests(tree)
    edited = bool(files.items() - made.items())
    words = {name: "changed" if name in files else "missing" for name in made}
    if wrong := [f"{words[name]}: {name}" for name in made if files.get(name) != made[name]]:
        return ", ".join(wrong[:10]) + ", ..." * (len(wrong) > 10), edited
    return "made from another patch" * (source != _sha256(patch.file)), edited


def make(tree: Path, patch: Patch, keep: bool) -> None:
    """Make the fork `tree`; an old one is replaced, or with `keep` stays beside it.

    It appears in one step when all is done; a failure before leaves the old one as it was.
    """
    work = tree.with_name(f".{patch.file.stem}.making")
    shutil.rmtree(work, ignore_errors=True)  # a killed run may have left it
    try:
        work.mkdir()
        unpack(download(patch, work), work)
        made = work / patch.file.stem
        patch.apply(made / "src", patch.hashes, "patched")
        write_state(made, patch)
        if keep:
            others = (tree.with_name(f"{tree.name}.edited-{n}") for n in itertools.count(1))
            kept = tree.rename(next(path for path in others if not path.exists()))
            print(f"The old folder had edits. It is kept as {kept}.")
        elif tree.exists():
            tree.rename(work / "old")
        made.rename(tree)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"Made {tree}. Install it with: python -m pip install -e {tree}")


def download(patch: Patch, folder: Path) -> Path:
    """Have pip, set up for mirrors and proxies, fetch the source archive if it has the hash."""
    name, _, version = patch.file.stem.partition("-")
    wanted = folder / "requirement.txt"
    wanted.write_text(f"{name}=={version} --hash=sha256:{patch.sdist_sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--no-binary", name, "--dest", str(folder), "-r", str(wanted)]
    if subprocess.run(command).returncode:
        raise ReleaseError(
            f"pip could not download {patch.file.stem}; its message stands above. If the package "
            "index has no archive of the pinned hash, use another index. If it cannot be reached, "
            "check the network, and pip's index, proxy and certificates (`pip config list`)."
        )
    return folder / f"{patch.file.stem}.tar.gz"


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .tar.gz; `tarfile.FilterError` where one of its members would leave `folder`."""
    with tarfile.open(archive) as tar:
        # Python before 3.11.4 has no filter: there the hash that pip checked has to do.
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(folder)


def write_state(tree: Path, patch: Patch) -> None:
    """Record in the fork `tree` the hashes of its patch and of each of its files."""
    state = {"patch_sha256": _sha256(patch.file), "files": _digests(tree)}
    (tree / STATE).write_text(json.dumps(state, indent=1))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `revisit fork make`. Returns its exit status."""
    parser = argparse.ArgumentParser("revisit fork make", description=__doc__)
    parser.add_argument("family", type=Path, help="family folder, such as LLaVA1.5")
    text = "change nothing: print the state, exit with 0 if it is up to date and 1 if not"
    parser.add_argument("--check", action="store_true", help=text)
    options = parser.parse_args(arguments)
    try:
        patch = find_patch(options.family)
    except ReleaseError as error:
        print(f"revisit fork make: {error}", file=sys.stderr)
        return 2  # wrong use: the folder is no family's
    try:
        tree = options.family / "data" / patch.file.stem
        if options.check:
            reason, _ = why_make(tree, patch)
            print(f"{tree}: {reason or 'up to date'}")
            return int(bool(reason))
        tree.parent.mkdir(exist_ok=True)
        with tree.with_name(f".{tree.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until its process ends, however it ends
            reason, edited = why_make(tree, patch)
            print(f"{tree}: {reason or 'up to date'}", flush=True)
            if reason:
                make(tree, patch, keep=edited)
        return 0
    except (ReleaseError, OSError, tarfile.TarError) as error:
        print(f"revisit fork make: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("revisit fork make: interrupted; run it again to make the fork.", file=sys.stderr)
        return 130


def _digests(tree: Path) -> dict[str, str]:
    files = (path for path in sorted(tree.rglob("*")) if path.is_file())
    names = {path.relative_to(tree).as_posix(): path for path in files}
    return {name: _sha256(path) for name, path in names.items() if not _LATER.search(name)}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
