"""Fetching one file by curl: resumed, retried, verified, and in place only when it is whole.

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
"""Seconds before each new attempt; once they are used up without a new byte, it is given up."""

STOPPED = "\nInterrupted. Run the same command again to go on."

_CURL = (
    "curl --fail --location --globoff --continue-at - --user-agent revisit --proto =http,https "
    "--connect-timeout 60 --speed-limit 1 --speed-time 60 --write-out"
)
BUSY = {408, 425, 429, 500, 502, 503, 504}
"""HTTP statuses that may pass by themselves."""

# curl's exit codes, from its manual: those that may pass by themselves, and those with a hint.
_PASSING = {5, 6, 7, 16, 18, 28, 35, 52, 55, 56, 92}
_CANNOT_WRITE, _NO_RANGES, _CERTIFICATE, _TOO_LARGE = 23, 33, 60, 63


class DownloadError(Exception):
    """A download cannot be completed; the message says what was wrong and what to do."""


class Passing(Exception):
    """What another attempt may overcome."""


def fetch(url: str, path: Path, size: int | None = None, digest: str = "", room: int = 0) -> None:
    """Download `url` to `path`, which appears when it is whole.

    `size`: bytes, and `digest`: `"sha256:<hex>"` or `"md5:<hex>"`, that the file must have. `room`:
    bytes that have to be free besides. A cut download stays as `<path>.part`, and the next call
    goes on with it. Raises `DownloadError`; bytes of the wrong size or digest are thrown away.
    """
    if not url.startswith(("http://", "https://")):
        raise DownloadError(f"{url} is not an address: it has to start with http:// or https://")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    if not digest or (size is not None and bytes_of(part) > size):
        part.unlink(missing_ok=True)  # nothing would show that it belongs to another file
    resumed = part.exists()
    need_space(path.parent, (size or 0) - bytes_of(part) + room)
    print(f"Downloading {url}", flush=True)
    if size is None or bytes_of(part) != size:
        patiently(lambda: _attempt(url, part, size), lambda: bytes_of(part))
    if trouble := mismatch(part, size, digest):
        part.unlink()
        if resumed:  # the file on the server may have changed since its first part came
            return fetch(url, path, size, digest, room)
        raise DownloadError(
            f"{url} is not the expected file: {trouble}\nIt was thrown away. Run this again; if it "
            "comes out the same, the server has another file: name another source (--help)."
        )
    part.replace(path)


def patiently(action: Callable[[], None], have: Callable[[], int]) -> None:
    """Do it, and again after a pause while it raises `Passing`.

    `have`: the bytes that came so far. Raises `DownloadError` after `WAITS` without a new one.
    """
    most, failures = have(), 0
    while True:
        try:
            return action()
        except Passing as trouble:
            failures = 1 if have() > most else failures + 1
            most = max(most, have())
            if failures > len(WAITS):
                raise DownloadError(
                    f"{trouble}. Check the network (a proxy is read from https_proxy) and run this "
                    "again: it goes on where it stopped."
                ) from trouble
            print(f"{trouble}; trying again in {WAITS[failures - 1]} s", file=sys.stderr)
            time.sleep(WAITS[failures - 1])


def mismatch(path: Path, size: int | None = None, digest: str = "") -> str:
    """What is wrong with a file, "" if nothing; `size` and `digest`: as for `fetch`, and
    `"git-sha1:<hex>"`, the name that git gives to the contents."""
    if size not in (None, bytes_of(path)):
        return f"it has {bytes_of(path):,} bytes, and {size:,} were expected"
    algorithm, _, expected = digest.partition(":")
    if not digest:
        return ""
    if bytes_of(path) > 10**9:
        print(f"Comparing the {algorithm} of {path.name} ...", flush=True)
    new: Any = algorithm
    if algorithm == "git-sha1":
        new = lambda: hashlib.sha1(b"blob %d\0" % bytes_of(path), usedforsecurity=False)  # noqa: E731
    with path.open("rb") as file:
        got = hashlib.file_digest(file, new).hexdigest()
    if got == expected.lower():
        return ""
    return f"its {algorithm} is\n  {got}, and expected was\n  {expected}"


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
    """Let one process at a time pass; the others wait. `path`: the lock's file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        # curl inherits it: where this process is killed, the lock stays until curl has ended too.
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
    """Let curl append to `part` what it lacks. Raises `Passing` where it is worth another try."""
    limit = ["--max-filesize", str(size)] if size else []
    command = [*_CURL.split(), "%{http_code} %{content_type}", *limit, "--output", str(part), url]
    try:  # with close_fds=False curl inherits what is marked so: the lock
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, close_fds=False)
    except FileNotFoundError as error:
        raise DownloadError(
            "curl is not on the PATH. Install it from your system's packages (apt install curl, "
            "conda install curl) and run this again."
        ) from error
    code, (status, _, kind) = run.returncode, run.stdout.partition(" ")
    if code == 0 or status == "416":  # there is no more than `part` has
        return
    if code == _NO_RANGES and "html" not in kind:
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
