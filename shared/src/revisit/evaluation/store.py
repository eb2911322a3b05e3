"""The answers of a run while it writes them: appended one by one, and continued by a rerun."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from revisit.evaluation import EvaluationError
from revisit.evaluation.answer_files import (
    VERSION,
    Form,
    Key,
    no_record,
    read_answers,
    read_record,
    record_path,
    with_versions,
)
from revisit.evaluation.files import write_json


class AnswerStore:
    """The answers of one run, open for appending and locked against other processes.

    Opening cuts off an incomplete last line, which a killed process leaves. Every line is on the
    disk when `append` returns; a line that could not be written whole is taken back.

    Attributes:
        whole: the file of all answers, at the end of the run.
        answers: the answers in the file, by their keys.
        record: the content of the run record; `save_record` writes it.

    Raises:
        EvaluationError: another process has the file open, a line is not of the form, lines without
            their run record, or a file that cannot be written.
    """

    def __init__(self, path: Path, form: Form) -> None:
        self.path = self.whole = path
        self.form = form
        self.record: dict[str, Any] = {}
        self.answers: dict[Key, str] = {}
        self._lock = lock(path)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            self._lock.release()
            raise EvaluationError(f"cannot open {path}: {error.strerror}") from error
        try:
            self._cut_incomplete_line()
            if os.fstat(self._file).st_size:  # a record without lines is written anew
                self.answers = read_answers(path, form)
                self.record = read_record(path)
                if not self.record:
                    raise no_record(path, form)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others open the file."""
        os.close(self._file)
        self._lock.release()

    def agree(self, section: str, settings: Mapping[str, Any]) -> None:
        """Record what decides the answers under `section`, or check it against the record.

        Raises:
            EvaluationError: the answers there were made with other settings; nothing is changed.
        """
        now = json.loads(json.dumps(settings))
        recorded = self.record.get(section, now)
        different = [
            f"  {name}: {_shown(recorded, name)}, now {_shown(now, name)}"
            for name in sorted(recorded.keys() | now.keys())
            if name != VERSION and _shown(recorded, name) != _shown(now, name)
        ]
        if different:
            count = f"{len(self.answers)} {self.form.texts}"
            raise EvaluationError(
                f"{self.whole} holds {count} made with other settings:\n"
                + "\n".join(different)
                + "\ngive another --output_path, or the settings of before to continue the file"
            )
        merged = with_versions(recorded, now)
        if self.record.get(section) != merged:
            self.record[section] = merged
            self.save_record()

    def append(self, key: Key, text: str) -> None:
        """Write one line, and wait until it is on the disk.

        Raises `EvaluationError` where it cannot be written; the file is then as it was.
        """
        before = os.fstat(self._file).st_size
        try:
            rest = memoryview(self.form.line(key, text))
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)
            raise EvaluationError(
                f"cannot write to {self.path}: {error.strerror}. Its {len(self.answers)} "
                f"{self.form.texts} are whole; make room and run the same command again to continue"
            ) from error
        self.answers[key] = text

    def save_record(self) -> None:
        """Write `record` to the run record, whole or not at all."""
        write_json(record_path(self.path), self.record)

    def finish(self, ranks: Mapping[Key, int]) -> bool:
        """End a run. Returns whether `whole` now has every answer there will be, and this process
        goes on with it.

        `ranks`: the key of every task, in order, and the rank of the process that answers it.
        """
        self.save_record()
        return True

    def _cut_incomplete_line(self) -> None:
        content = self.path.read_bytes()
        if content[:1] not in (b"", b"{"):
            raise EvaluationError(
                f"{self.path} is not {self.form.texts} line by line, which a run could append to: "
                "give another --output_path"
            )
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._file, whole)


def lock(path: Path, patience_s: float = 0.0) -> FileLock:
    """Lock a file against other processes by a hidden file beside it; its folder is made.

    Raises:
        EvaluationError: another process has it locked for longer than `patience_s`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file_lock = FileLock(path.with_name(f".{path.name}.lock"))
        file_lock.acquire(timeout=patience_s, poll_interval=0.02)
        return file_lock
    except Timeout as error:
        raise EvaluationError(
            f"cannot lock {path}: if another process is writing it, wait for it or give another "
            "--output_path"
        ) from error
    except OSError as error:
        raise EvaluationError(f"cannot open {path}: {error.strerror}") from error


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name], ensure_ascii=False) if name in settings else "not set"
