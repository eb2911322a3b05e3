"""JSON files: read with clear errors, written whole or not at all."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from revisit.evaluation import EvaluationError


def read_json(path: Path) -> Any:
    """The value that the JSON file holds; `EvaluationError` if it cannot be read or parsed."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise EvaluationError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise EvaluationError(f"{path} is not a JSON file: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` beside `path` and move it there: readers see the old file or the new one.

    Raises `EvaluationError` where the file cannot be written (`path` is then as it was).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
            file.write("\n")
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
