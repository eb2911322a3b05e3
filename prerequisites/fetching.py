"""Download one file with curl: resumed, retried, verified, and in place only when it is whole.

Downloads run before any environment is built: only the standard library is imported, by any Python
from 3.11 on, and curl is on every system.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
"""Where the evaluation scripts look for downloads."""

TABLE: dict[str, Any] = tomllib.loads((HERE / "datasets.toml").read_text("utf-8"))
"""What is downloaded from where; the file explains its keys."""

WAITS = (1, 2, 4, 8, 16, 32, 60)
"""Seconds before each new attempt; after all of them without a new byte, the download fails."""

STOPPED = "\nInterrupted. Run the same command again to go on."

BUSY = {408, 425, 429, 500, 502, 503, 504}
"""HTTP statuses after which another attempt may succeed."""

_CURL = (
    "curl --fail --location --globoff --continue-at - --user-agent revisit --proto =http,https "
    "--connect-timeout 60 --speed-limit 1 --speed-time 60 --write-out"
)
# curl's exit codes, from its manual. After those of `_PASSING`, another attempt may succeed.
_PASSING = {5, 6, 7, 16, 18, 28, 35, 52, 55, 56, 92}
_CANNOT_WRITE, _NO_RANGES, _CERTIFICATE, _TOO_LARGE = 23, 33, 60, 63


class DownloadError(Exception):
    """A download cannot be completed; the message says what was wrong and what to do."""


class Passing(Exception):
    """An error that another attempt may overcome."""


def fetch(url: str, path: Path, size: int | None = None, digest: str = "", room: int = 0) -> None:
    """Download `url` to `path`, which appears when it is whole.

    Args:
        size: bytes that the file must have.
        digest: `"sha256:<hex>"` or `"md5:<hex>"` that it must have.
        room: bytes that must be free on the disk in addition.

    A cut download stays as `<path>.part`, and the next call continues it. Raises `DownloadError`;
    bytes of the wrong size or digest are removed.
    """
    if not url.startswith(("http://", "https://")):
        raise DownloadError(f"{url} is not an address: it has to start with http:// or https://")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    if not digest or (size is not None and bytes_of(part) > size):
        part.unlink(missing_ok=True)  # it may belong to another file
    resumed = part.exists()
    need_space(path.parent, (size or 0) - bytes_of(part) + room)
    print(f"Downloading {url}", flush=True)
    if size is None or bytes_of(part) != size:
        patiently(lambda: _attempt(url, part, size), lambda: bytes_of(part))
    if difference := mismatch(part, size, digest):
        part.unlink()
        if resumed:  # the file on the server may have changed since its first part came
            return fetch(url, path, size, digest, room)
        raise DownloadError(
            f"{url} is not the expected file: {difference}\nIt was thrown away. Run this again; if "
            "it comes out the same, the server has another file: name another source (--help)."
        )
    part.replace(path)


def patiently(action: Callable[[], None], have: Callable[[], int]) -> None:
    """Call `action` until it does not raise `Passing`, with pauses.

    `have` returns the bytes that came so far. Raises `DownloadError` after `WAITS` without a new
    byte.
    """
    most, failures = have(), 0
    while True:
        try:
            return action()
        except Passing as error:
            failures = 1 if have() > most else failures + 1
            most = max(most, have())
            if failures > len(WAITS):
                raise DownloadError(
                    f"{error}. Check the network (a proxy is read from https_proxy) and run this "
                    "again: it goes on where it stopped."
                ) from error
            print(f"{error}; trying again in {WAITS[failures - 1]} s", file=sys.stderr)
            time.sleep(WAITS[failures - 1])


def mismatch(path: Path, size: int | None = None, digest: str = "") -> str:
    """How a file differs from `size` and `digest`, those of `fetch`; "" if it does not.

    `digest` may also be `"git-sha1:<hex>"`, the hash that git has of the contents.
    """
    if size not in (None, bytes_of(path)):
        return f"it has {bytes_of(path):,} bytes, and {size:,} were expected"
    if not digest:
        return ""
    algorithm, _, expected = digest.partition(":")
    if bytes_of(path) > 10**9:
        print(f"Comparing the {algorithm} of {path.name} ...", flush=True)
    header = b"blob %d\0" % bytes_of(path) if algorithm == "git-sha1" else b""
    hasher = hashlib.new(algorithm.removeprefix("git-"), header, usedforsecurity=False)
    with path.open("rb") as file:
        hashlib.file_digest(file, lambda: hasher)
    if hasher.hexdigest() == expected.lower():
        return ""
    return f"its {algorithm} is\n  {hasher.hexdigest()}, and expected was\n  {expected}"


def need_space(folder: Path, needed: int) -> None:
    """Raise `DownloadError` unless `needed` bytes are free on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(
            f"{folder} has {free / 1e9:.1f} GB free and {needed / 1e9:.1f} GB are needed. Free "
            "space, or put the download on another disk with --download_path."
        )


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Let one process at a time pass; the others wait. `path` is the lock's file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        # curl inherits it: if this process is killed, the lock stays until curl has ended too.
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another download is at work here; waiting for it.", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(main: Callable[[], None]) -> int:
    """Run a downloader and return its exit status: 1 after an error, 130 after Ctrl-C."""
    try:
        main()
        return 0
    except DownloadError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(
            f"error: cannot write {error.filename or 'the files'}: {error.strerror or error}. Free "
            "space or repair the permissions, and run this again; what came is kept.",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        return 130
    return 1


def bytes_of(path: Path) -> int:
    """The size of a file; 0 if it is not there."""
    return path.stat().st_size if path.is_file() else 0


def _attempt(url: str, part: Path, size: int | None) -> None:
    """Let curl append the missing bytes to `part`. Raises `Passing` or `DownloadError`."""
    limit = ["--max-filesize", str(size)] if size else []
    command = [*_CURL.split(), "%{http_code} %{content_type}", *limit, "--output", str(part), url]
    try:  # close_fds=False: curl inherits the lock
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, close_fds=False)
    except FileNotFoundError as error:
        raise DownloadError(
            "curl is not on the PATH. Install it from your system's packages (apt install curl, "
            "conda install curl) and run this again."
        ) from error
    code, (status, _, content_type) = run.returncode, run.stdout.partition(" ")
    if code == 0 or status == "416":  # `part` has all bytes
        return
    if code == _NO_RANGES and "html" not in content_type:
        part.unlink()
        raise Passing(f"{url} cannot be resumed, so that it is begun anew")
    if code in _PASSING or int(status or 0) in BUSY:
        answer = f"curl ended with {code}, HTTP {status}, after {bytes_of(part):,} bytes"
        raise Passing(f"{url}: {answer}")
    if code == _CANNOT_WRITE:
        raise OSError(errno.EIO, "curl could not write it", str(part))
    hints = {
        _NO_RANGES: "A page came in place of the file: if this network wants a login, log in and "
        f"run this again; if not, remove {part} to begin anew.",
        _TOO_LARGE: f"It is larger than the {size} bytes that were expected: it is another file.",
        _CERTIFICATE: "Its certificate is not trusted: name yours in CURL_CA_BUNDLE.",
    }
    hint = hints.get(code, "Check the address, or name a mirror (--help).")
    raise DownloadError(f"{url} is not to be had: curl ended with {code}, HTTP {status}. {hint}")
