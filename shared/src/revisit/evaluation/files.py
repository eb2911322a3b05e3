"""JSON files, read with errors that name the file, and written whole or not at all."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from revisit.evaluation import EvaluationError


def read_json(path: Path) -> Any:
    """The value of a JSON file; `EvaluationError` if it cannot be read or parsed."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise EvaluationError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise EvaluationError(f"{path} is not a JSON file: {error}") from error


def read_json_lines(path: Path, what: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a JSON Lines file, or of one JSON list, each after its file and line for
    messages; blank lines are skipped. A byte order mark says how the file is encoded.

    Raises `EvaluationError` where the file cannot be read, which names it as `what`, or a line
    cannot be parsed.
    """
    try:
        content = path.read_bytes()
        text = content.decode(json.detect_encoding(content))
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"cannot read {what or path}: {error}") from error
    if re.match(r"\s*\[\s*[{\]]", text):
        yield from ((f"{path}, entry {n}", each) for n, each in enumerate(read_json(path), 1))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                value = json.loads(line)
            except ValueError as error:
                raise EvaluationError(f"{where} is not JSON: {error}") from error
            yield where, value


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, as `write_whole` does."""
    write_whole(path, json.dumps(value, indent=1).encode() + b"\n")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside `path` and move it there: readers see the old file or the new one.

    Raises `EvaluationError` where the file cannot be written (`path` is then as it was).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise EvaluationError(f"cannot write {path}: {error.strerror}") from error


def sha256(path: Path) -> str:
    """Hex digest of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
