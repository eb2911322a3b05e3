"""A patch: the release it is for, and the hash of each of its files before and after.

Its file is named after the release, `transformers-4.31.0.patch`. It has a preamble with the line
`sdist-sha256: <64 hex digits>`, the hash of the source archive, and then the output of `git diff
--full-index -U0`. git's `index` lines have the hashes of each file: they show whether a file is
patched, and prove that `git apply` made the right one. `patches/README.md` says how one is made.
"""

import hashlib
import os
import re
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Literal, NamedTuple

PATCHES = Path(__file__).parent / "patches"
Side = Literal["unpatched", "patched", "modified"]

_CHANGE = re.compile(
    r"diff --git a/src/(?P<path>\w[\w-]*(?:[/.][\w-]+)*) b/src/(?P=path)\n"  # never climbs
    r"index (?P<unpatched>[0-9a-f]{40})\.\.(?P<patched>[0-9a-f]{40}) 100\d{3}"
)
# Outside a repository, where git skips untracked files, and without settings that change lines.
_ALONE = dict.fromkeys(["GIT_DIR", "HOME", "XDG_CONFIG_HOME"], os.devnull)
_ALONE["GIT_CONFIG_NOSYSTEM"] = "1"


class ReleaseError(Exception):
    """A release cannot be fetched, patched or restored; the message says why and what to do."""


class Patch(NamedTuple):
    """A patch, named after its release; git's hashes of each file, by its path below src/."""

    file: Path
    sdist_sha256: str
    hashes: dict[str, dict[str, Side]]

    def side(self, folder: Path, path: str) -> Side:
        """Which side of the patch the file below `folder` is on; "modified" if lost or neither."""
        content = (folder / path).read_bytes() if (folder / path).exists() else b""
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        return self.hashes[path].get(blob.hexdigest(), "modified")

    def apply(self, folder: Path, paths: Collection[str], to: Side) -> None:
        """Have git bring files below `folder` from the other side; `ReleaseError`, files spoilt."""
        fit = [f"--include={path}" for path in paths if self.side(folder, path) != "modified"]
        git = ["git", "apply", "-p2", "--unidiff-zero", *fit, "--exclude=*"]
        git += [*["--reverse"] * (to == "unpatched"), str(self.file.absolute())]
        try:
            done = subprocess.run(git, cwd=folder, env=os.environ | _ALONE, capture_output=True)
        except FileNotFoundError as error:
            raise ReleaseError("git, which applies the patch, is not on the PATH.") from error
        if wrong := [path for path in paths if self.side(folder, path) != to]:
            raise ReleaseError(
                f"{self.file} does not apply to {', '.join(wrong)}: it was made for another file, "
                "or is damaged. Restore it with `git checkout`, or repair your changes to it.\n"
                + done.stderr.decode(errors="replace")
            )


def read_patch(file: Path) -> Patch:
    """Read a patch; `ReleaseError` where it pins no release or is not in git's format."""
    text = file.read_text(encoding="utf-8", errors="replace")
    pin = re.search(r"^sdist-sha256: ([0-9a-f]{64})$", text, re.MULTILINE)
    if not pin or not re.fullmatch(r"\w+-\d[\w.]*", file.stem):
        raise ReleaseError(
            f"{file} does not pin a release: its name has to be NAME-VERSION.patch, and a line "
            "`sdist-sha256: <64 hex digits>` has to stand before its first diff."
        )
    hashes: dict[str, dict[str, Side]] = {}
    for change in re.findall(r"^diff .*\n.*", text, re.MULTILINE) or ["nothing"]:
        if not (found := _CHANGE.fullmatch(change)):
            raise ReleaseError(
                f"{file} is damaged or unsafe: it has to change text files below src/, with "
                f"both hashes of each, as `git diff --full-index -U0` writes it, and not\n{change}"
            )
        hashes[found["path"]] = {found["unpatched"]: "unpatched", found["patched"]: "patched"}
    return Patch(file, pin[1], hashes)
