"""A patch file: the release it is for, and what it does to each file, forwards and backwards.

It is what `git diff --full-index -U0` writes, named after the release, `transformers-4.31.0.patch`,
below a preamble with the line `sdist-sha256: <64 hex digits>`, the source archive's hash. git's
`index` lines hold the hash of each file before and after: they tell an original from a patched file
and prove every result, so that a place is never searched for and context lines are not needed.
"""

import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

PATCHES = Path(__file__).parent / "patches"
FileState = Literal["original", "patched", "other"]

_FILE = re.compile(
    rb"diff --git a/(?P<path>\S+) b/(?P=path)\n"
    rb"index (?P<before>[0-9a-f]{40})\.\.(?P<after>[0-9a-f]{40}) \d+\n"
    rb"--- a/(?P=path)\n\+\+\+ b/(?P=path)\n"
    rb"(?P<hunks>(?:@@ .*\n(?:[ +\\-].*\n)+)+)"
)
_HUNK = re.compile(
    rb"@@ -(?P<old>\d+)(?:,\d+)? \+(?P<new>\d+)(?:,\d+)? @@.*\n(?P<body>(?:[ +\\-].*\n)+)"
)


class PatchError(Exception):
    """A patch cannot be read or applied; the message says what was wrong and what to do."""


@dataclass(frozen=True)
class Pin:
    """One release on the package index, and the patch for it."""

    name: str
    version: str
    sha256: str
    patch: Path

    @property
    def folder(self) -> str:
        """The top folder of the source archive, and the name of the fork's folder."""
        return f"{self.name}-{self.version}"


@dataclass(frozen=True)
class Hunk:
    """Lines, with their ends, that stand at `old_at` (0-based) before and at `new_at` after."""

    old_at: int
    old: list[bytes]
    new_at: int
    new: list[bytes]


@dataclass(frozen=True)
class Change:
    """What a patch does to one file: `path` from the archive's top, and git's hashes of it."""

    path: str
    before: str
    after: str
    hunks: list[Hunk]

    def state(self, content: bytes) -> FileState:
        """What a file with this content is to the patch."""
        states: dict[str, FileState] = {self.before: "original", self.after: "patched"}
        return states.get(_blob(content), "other")

    def apply(self, content: bytes) -> bytes:
        """The patched file from the original one; `PatchError` where it is not the original."""
        hunks = [(hunk.old_at, hunk.old, hunk.new) for hunk in self.hunks]
        return self._rewrite(content, hunks, self.before, self.after)

    def revert(self, content: bytes) -> bytes:
        """The original file from the patched one; `PatchError` where it is not the patched."""
        hunks = [(hunk.new_at, hunk.new, hunk.old) for hunk in self.hunks]
        return self._rewrite(content, hunks, self.after, self.before)

    def _rewrite(
        self, content: bytes, hunks: list[tuple[int, list[bytes], list[bytes]]], old: str, new: str
    ) -> bytes:
        if _blob(content) != old:
            raise PatchError(f"{self.path} is not the file that the patch was made for")
        lines = io.BytesIO(content).readlines()
        for at, out, into in reversed(hunks):  # from the end: the places above stay right
            lines[at : at + len(out)] = into
        result = b"".join(lines)
        if _blob(result) != new:
            raise PatchError(f"the patch of {self.path} is damaged: its lines give another file")
        return result


def read_pin(patch: Path) -> Pin:
    """The release that a patch is for, from its name and preamble; `PatchError` if unclear."""
    name = re.fullmatch(r"(?P<name>\w+)-(?P<version>\d[\w.]*)", patch.stem)
    try:
        content = patch.read_bytes()
    except OSError as error:
        raise PatchError(f"{patch} cannot be read: {error.strerror}.") from error
    preamble = content.partition(b"diff --git")[0].decode(errors="replace")
    sha256 = re.search(r"^sdist-sha256: ([0-9a-f]{64})\s*$", preamble, re.MULTILINE)
    if not name or not sha256:
        raise PatchError(
            f"{patch} does not pin a release: its name has to be NAME-VERSION.patch, and a line "
            "`sdist-sha256: <64 hex digits>` has to stand before its first diff."
        )
    return Pin(name["name"], name["version"], sha256[1], patch)


def read_changes(patch: Path) -> list[Change]:
    """What a patch does to its files; `PatchError` where it is not what git writes."""
    content = patch.read_bytes()
    at = len(content.partition(b"diff --git ")[0])
    changes = []
    while file := _FILE.match(content, at):
        path = file["path"].decode()
        if path.startswith("/") or ".." in PurePosixPath(path).parts:
            raise PatchError(f"{patch} is unsafe: it writes to {path}")
        hunks = [_hunk(found) for found in _HUNK.finditer(file["hunks"])]
        changes.append(Change(path, file["before"].decode(), file["after"].decode(), hunks))
        at = file.end()
    if not changes or at != len(content):
        line = content.count(b"\n", 0, at) + 1
        raise PatchError(
            f"{patch}, line {line}: no change of a text file with both of its hashes, as "
            "`git diff --full-index -U0` writes it."
        )
    return changes


def _hunk(found: re.Match[bytes]) -> Hunk:
    old: list[bytes] = []
    new: list[bytes] = []
    sides = {b" ": [old, new], b"-": [old], b"+": [new]}
    above: list[list[bytes]] = []
    for line in io.BytesIO(found["body"]).readlines():
        if line.startswith(b"\\"):  # the line above is its file's last, and has no newline
            for side in above:
                side[-1] = side[-1].removesuffix(b"\n")
            continue
        above = sides[line[:1]]
        for side in above:
            side.append(line[1:])
    # git counts lines from 1, and of no lines names the one above their place.
    return Hunk(int(found["old"]) - bool(old), old, int(found["new"]) - bool(new), new)


def _blob(content: bytes) -> str:
    """git's hash of a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
