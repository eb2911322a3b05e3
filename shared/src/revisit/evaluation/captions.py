"""A file of captions or answers that survives: JSON Lines, appended one by one, resumed by a rerun.

Beside `captions.jsonl` lies `captions.jsonl.run.json`, the record of what made it.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks.chair import read_captions
from revisit.evaluation.benchmarks.pope import read_answers
from revisit.evaluation.files import read_json, write_json


class Form(NamedTuple):
    """What a line of the file is: `{key: ..., text: ...}`."""

    key: str
    text: str
    unit: str
    """What a task is, for the progress bar."""
    read: Callable[[Path], dict[Any, str]]
    """Key -> text, from a file; `EvaluationError` names what is wrong in it."""

    @property
    def noun(self) -> str:
        """What the texts are called."""
        return f"{self.text}s"

    def line(self, key: int | str, text: str) -> bytes:
        """A line of the file."""
        return json.dumps({self.key: key, self.text: text}).encode() + b"\n"


CAPTIONS = Form("image_id", "caption", "image", read_captions)
ANSWERS = Form("question_id", "answer", "question", read_answers)


class CaptionStore:
    """The captions or answers of one run, open for appending and locked against other processes.

    Opening cuts off an incomplete last line, which a killed process leaves. Every line is on the
    disk when `append` returns; a line that could not be written whole is taken back.

    Attributes:
        whole: the file that holds all of the texts in the end.
        texts: what the file holds: image id -> caption, or question id -> answer.
        record: what lies in the run record; `save_record` writes it.

    Raises:
        EvaluationError: another process has the file open, a line is not of the form, lines without
            their run record, or a file that cannot be written.
    """

    def __init__(self, path: Path, form: Form) -> None:
        self.path = self.whole = path
        self.form = form
        self.record_path = record_path(path)
        self.record: dict[str, Any] = {}
        self.texts: dict[int | str, str] = {}
        self._file = open_locked(path, fcntl.LOCK_EX)
        try:
            self._cut_incomplete_line()
            self._read()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> "CaptionStore":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def agree(self, section: str, settings: Mapping[str, Any]) -> None:
        """Record what decides the texts under `section`, or check it against the record.

        Raises:
            EvaluationError: the texts there were made with other settings; nothing is changed.
        """
        given = json.loads(json.dumps(settings))
        recorded = self.record.get(section, given)
        different = [
            f"  {name}: {_shown(recorded, name)}, now {_shown(given, name)}"
            for name in sorted(recorded.keys() | given.keys())
            if _shown(recorded, name) != _shown(given, name)
        ]
        if different:
            raise EvaluationError(
                f"{self.whole} holds {len(self.texts)} {self.form.noun} made with other settings:\n"
                + "\n".join(different)
                + "\ngive another --output_path, or those settings again to continue the file"
            )
        if section not in self.record:
            self.record[section] = given
            self.save_record()

    def append(self, key: int | str, text: str) -> None:
        """Write one line, and wait until it is on the disk.

        Raises `EvaluationError` where it cannot be written; the file is then as it was.
        """
        line = self.form.line(key, text)
        before = os.fstat(self._file).st_size
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)
            raise EvaluationError(
                f"cannot write to {self.path}: {error.strerror}. Its {len(self.texts)} "
                f"{self.form.noun} are whole; make room and run the same command again to continue"
            ) from error
        self.texts[key] = text

    def save_record(self) -> None:
        """Write `record` to the run record, whole or not at all."""
        write_json(self.record_path, self.record)

    def finish(self, shares: Mapping[int | str, int]) -> bool:
        """End a run; whether `whole` now holds what there is, and this process is to tell of it.

        `shares`: the key of every task, in order, and the rank of the process that has it to do.
        """
        self.save_record()
        return True

    def _cut_incomplete_line(self) -> None:
        content = self.path.read_bytes()
        if content[:1] not in (b"", b"{"):
            raise EvaluationError(
                f"{self.path} is not {self.form.noun} line by line, which a run could append to: "
                "give another --output_path"
            )
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._file, whole)

    def _read(self) -> None:
        if os.fstat(self._file).st_size == 0:
            return  # nothing to protect: a run record without lines is made anew
        self.texts = self.form.read(self.path)
        if not self.record_path.exists():
            raise EvaluationError(
                f"{self.path} holds {self.form.noun}, but {self.record_path.name}, which says what "
                "made them, is not there: put it back, or give another --output_path"
            )
        record = read_json(self.record_path)
        if not isinstance(record, dict):
            raise EvaluationError(f"{self.record_path} is not a run record")
        self.record = record


def record_path(path: Path) -> Path:
    """Where the record of what made a file lies."""
    return path.with_name(path.name + ".run.json")


def open_locked(path: Path, operation: int, patience_s: float = 0.0) -> int:
    """A file, open for appending, locked by `fcntl.flock`; it is made where it is not there.

    Args:
        operation: `LOCK_EX` against all other processes, `LOCK_SH` together with those that ask so.
        patience_s: how long to wait for another process that has it locked.

    Raises:
        EvaluationError: it cannot be opened, or another process has it locked.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise EvaluationError(f"cannot open {path}: {error.strerror}") from error
        try:
            fcntl.flock(file, operation | fcntl.LOCK_NB)
            if is_at(file, path):
                return file
        except OSError as error:
            if time.monotonic() >= deadline:
                os.close(file)
                raise EvaluationError(
                    f"cannot lock {path} ({error.strerror}): if another process is writing it, "
                    "wait for it or give another --output_path"
                ) from error
            time.sleep(0.1)
        os.close(file)


def is_at(file: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`, and none has taken its place."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name], ensure_ascii=False) if name in settings else "not set"
