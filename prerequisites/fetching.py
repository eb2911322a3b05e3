"""Fetching one file over HTTP: resumed, retried, verified, and in place only when it is whole.

Downloads run before any environment is built, so that only the standard library is imported here.
"""

import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")

WAITS = (1, 2, 4, 8, 16, 32, 60)
"""Seconds before each new attempt; once they are used up without a new byte, it is given up."""

_TIMEOUT = 60  # seconds without a byte
_CHUNK = 1 << 20
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # answers that another attempt may change


class DownloadError(Exception):
    """A download cannot be completed; the message says what was wrong and what to do."""


class Passing(Exception):
    """What another attempt may overcome. `wait`: the seconds that the server asks for."""

    def __init__(self, message: str, wait: int = 0) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class _Origin:
    """What the bytes of a part file are the beginning of: this version of this address."""

    url: str
    validator: str  # a strong ETag or Last-Modified; "" if the server gives neither
    size: int | None


def fetch(
    url: str, path: Path, size: int | None = None, digest: str = "", unpacked: float = 0.0
) -> str:
    """Download `url` to `path`, which appears when it is whole; return its sha256.

    `size`: bytes, and `digest`: `"sha256:<hex>"` or `"md5:<hex>"`, that the file must have.
    `unpacked`: disk that has to be free besides, as a multiple of the file's size. A cut download
    stays as `<path>.part` and the next call goes on with it, unless the server's file has changed.
    Raises `DownloadError`; bytes of the wrong size or digest are thrown away.
    """
    if not re.match(r"https?://", url):
        raise DownloadError(f"{url} is not an address: it has to start with http:// or https://")
    part = path.with_name(f"{path.name}.part")
    patiently(lambda: _attempt(url, part, size, unpacked), lambda: _size(part))
    sha256 = _verified(url, part, size, digest)
    part.replace(path)
    _origin_file(part).unlink(missing_ok=True)
    return sha256


def patiently(action: Callable[[], _T], have: Callable[[], int]) -> _T:
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
            wait = trouble.wait or WAITS[failures - 1]
            print(f"{trouble}; trying again in {wait} s", file=sys.stderr, flush=True)
            time.sleep(wait)


def verify(path: Path, size: int | None = None, digest: str = "") -> tuple[str, str]:
    """The sha256 of a file and what is wrong with it ("" if nothing), read once; `size` and
    `digest`: as for `fetch`."""
    have = _size(path)
    if size not in (None, have):
        return "", f"it has {have:,} bytes, and {size:,} were expected"
    algorithm, _, expected = (digest or "sha256:").partition(":")
    found = {name: hashlib.new(name, usedforsecurity=False) for name in ("sha256", algorithm)}
    with path.open("rb") as file, progress(f"checking {path.stem}", have) as advance:
        while chunk := file.read(_CHUNK):
            for each in found.values():
                each.update(chunk)
            advance(len(chunk))
    got, expected, trouble = found[algorithm].hexdigest(), expected.lower(), ""
    if expected not in ("", got):
        trouble = f"its {algorithm} is\n  {got}, and expected was\n  {expected}"
    return found["sha256"].hexdigest(), trouble


def need_space(folder: Path, needed: int) -> None:
    """Raise `DownloadError` unless `needed` bytes are free on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(
            f"{folder} has {_units(free)} free and {_units(needed)} are needed. Free space, or put "
            "the download on another disk with --download_path."
        )


def read_record(path: Path) -> dict[str, dict[str, object]]:
    """What `write_record` wrote to `path`; empty where it is missing or damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_record(path: Path, value: object) -> None:
    """Write `value` as JSON beside `path` and move it there: never half a file."""
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(value, indent=1) + "\n")
    aside.replace(path)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Let one process at a time pass; the others wait. `path`: the lock's file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The system drops this lock when its process ends, however it ends.
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another download is at work here; waiting for it.", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def progress(label: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show on stderr how far something is; the value is called with the number of new bytes.

    `total`: bytes, if known. A terminal gets one line that changes, a file a line every minute.
    """
    terminal = sys.stderr.isatty()
    started = shown = time.monotonic()
    first = done

    def show(end: str) -> None:
        rate = (done - first) / max(time.monotonic() - started, 1e-3)
        line = f"{label}  {_units(done)}"
        if total:
            left = (total - done) / max(rate, 1)
            line += (
                f" of {_units(total)} ({done / total:.0%})  {left / 60:.0f}:{left % 60:02.0f} left"
            )
        print(f"\r{line}  {_units(rate)}/s".ljust(78), end=end, file=sys.stderr, flush=True)

    def advance(count: int) -> None:
        nonlocal done, shown
        done += count
        now = time.monotonic()
        if now - shown > (0.2 if terminal else 60):
            shown = now
            show("" if terminal else "\n")

    try:
        yield advance
    finally:
        if terminal:
            show("\n")


def run(main: Callable[[], None]) -> int:
    """Run a downloader and return its exit status: 1 after a `DownloadError`, 130 after Ctrl-C."""
    try:
        main()
        return 0
    except DownloadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {cannot_write(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to go on.", file=sys.stderr)
        return 130


def cannot_write(error: OSError) -> str:
    """What to tell about a file that cannot be written or read."""
    where = error.filename or "the files"
    return (
        f"cannot write {where}: {error.strerror or error}. Free space or repair the permissions, "
        "and run this again; what was downloaded is kept."
    )


def _attempt(url: str, part: Path, size: int | None, unpacked: float) -> None:
    """Download what `part` lacks. Raises `Passing` where it is worth another attempt."""
    origin = _read_origin(part)
    start = _size(part) if origin and origin.url == url else 0
    if origin and start and start == origin.size and size in (None, start):
        return  # whole, and stopped before it was verified
    headers = {"User-Agent": "revisit", "Accept-Encoding": "identity"}
    if origin and start and origin.validator:
        headers |= {"Range": f"bytes={start}-", "If-Range": origin.validator}
    request = urllib.request.Request(url, headers=headers)
    with _open(request, part) as response:
        start, total = _place(response, part, origin, start)
        if size is not None and total is not None and total != size:
            kind = response.headers.get("Content-Type", "something")
            raise DownloadError(
                f"{url} serves {total:,} bytes ({kind}), and {size:,} were expected: it is another "
                "file, or something between here and there answers in its place."
            )
        total = size if total is None else total
        need_space(part.parent, (total or 0) - start + int((total or 0) * unpacked))
        if not start:
            part.unlink(missing_ok=True)
            origin = _Origin(url, _validator(response), total)
            write_record(_origin_file(part), asdict(origin))
        have = _receive(response, part, start, total)
    if total is not None and have < total:
        raise Passing(f"the connection broke after {_units(have)} of {_units(total)}")


def _open(request: urllib.request.Request, part: Path) -> http.client.HTTPResponse:
    url = request.full_url
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT)
        return response
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the part is longer than the file is now
            _discard(part)
            raise Passing("the file on the server has changed") from error
        if error.code in _PASSING:
            asked = error.headers.get("Retry-After", "")
            wait = min(int(asked), 600) if asked.isdigit() else 0
            raise Passing(f"the server answers {error.code} {error.reason}", wait) from error
        reason = "no longer there" if error.code in (404, 410) else "not to be had"
        raise DownloadError(
            f"{url} is {reason}: the server answers {error.code} {error.reason}. Check the "
            "address, or name a mirror (--help)."
        ) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DownloadError(
                f"the certificate of {url} is not trusted: {error.reason}. Install your system's "
                "certificates, or name your own with SSL_CERT_FILE."
            ) from error
        raise Passing(f"no connection to {request.host}: {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise Passing(f"no answer from {request.host}: {error}") from error
    except ValueError as error:
        raise DownloadError(f"{url} is not an address: {error}") from error


def _place(
    response: http.client.HTTPResponse, part: Path, origin: _Origin | None, start: int
) -> tuple[int, int | None]:
    """Where in the file the answer begins, and the file's size; `Passing` if it does not fit."""
    if response.status != 206:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    # A server may know ranges and not If-Range: its own words say whether this is the same file.
    if (
        not origin
        or not found
        or _validator(response) != origin.validator
        or (int(found[1]), int(found[2])) != (start, origin.size)
    ):
        _discard(part)
        raise Passing("the file on the server has changed")
    return start, int(found[2])


def _receive(response: http.client.HTTPResponse, part: Path, start: int, total: int | None) -> int:
    """Append the answer's body to `part`; return the bytes that it then has."""
    have = start
    label = part.name.removesuffix(".part")
    with part.open("ab") as file, progress(label, total, start) as advance:
        while True:
            try:
                chunk = response.read1(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise Passing(
                    f"the connection broke after {_units(have)}: {error or type(error).__name__}"
                ) from error
            file.write(chunk)
            file.flush()  # kept, however this process ends
            have += len(chunk)
            advance(len(chunk))
            if not chunk or have > (total or have):
                return have


def _verified(url: str, part: Path, size: int | None, digest: str) -> str:
    """The sha256 of the whole `part`; `DownloadError`, and no part, if it is not as it must be."""
    sha256, trouble = verify(part, size, digest)
    if trouble:
        _discard(part)
        raise DownloadError(
            f"{url} is not the expected file: {trouble}\nIt was thrown away. Run this again; if it "
            "comes out the same, the server has another file: name another source (--help)."
        )
    with part.open("rb") as file:
        os.fsync(file.fileno())
    return sha256


def _validator(response: http.client.HTTPResponse) -> str:
    tag: str = response.headers.get("ETag", "")
    # A weak tag does not promise the same bytes.
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _origin_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_origin(part: Path) -> _Origin | None:
    try:
        return _Origin(**read_record(_origin_file(part)))  # type: ignore[arg-type]
    except TypeError:
        return None


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _origin_file(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _units(count: float) -> str:
    """Bytes for people: 6.6 GB."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
