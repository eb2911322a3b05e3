"""Answers on disk: JSON Lines, appended one by one and continued by a rerun.

Beside `captions.jsonl` lies `captions.jsonl.run.json`, the record of what made it.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from revisit.evaluation import EvaluationError
from revisit.evaluation.files import read_json, read_json_lines, write_json

Key = int | str | tuple[int | str, ...]
"""What a task and its answer have in common: an id, or several."""

if TYPE_CHECKING:
    from filelock import FileLock

VERSION = "revisit version"
"""Of a record's settings; another version continues a file, which then names both."""


@dataclass(frozen=True)
class Form:
    """A file of answers: JSON Lines with an id, or several, and a text."""

    file: str
    keys: tuple[str, ...]
    text: str
    unit: str
    """What a task is, for the progress bar."""

    @property
    def texts(self) -> str:
        """What the answers are called."""
        return f"{self.text}s"

    def key_of(self, entry: Mapping[str, Any]) -> Key:
        """The key of a line; raises KeyError where an id lacks."""
        return entry[self.keys[0]] if len(self.keys) == 1 else tuple(entry[k] for k in self.keys)

    def ids(self, key: Key) -> dict[str, int | str]:
        """A key as the ids of a line."""
        return dict(zip(self.keys, key if isinstance(key, tuple) else (key,), strict=True))

    def shown(self, key: Key) -> str:
        """A key in a message: `image_id 7`."""
        return ", ".join(f"{name} {value}" for name, value in self.ids(key).items())


class AnswerStore:
    """The answers of one run, open for appending and locked against other processes.

    Opening cuts off an incomplete last line, which a killed process leaves. Every line is on the
    disk when `append` returns; a line that could not be written whole is taken back.

    Attributes:
        whole: the file that holds all of the answers in the end.
        texts: the answers that are there, by their keys.
        record: what lies in the run record; `save_record` writes it.

    Raises:
        EvaluationError: another process has the file open, a line is not of the form, lines without
            their run record, or a file that cannot be written.
    """

    def __init__(self, path: Path, form: Form) -> None:
        self.path = self.whole = path
        self.form = form
        self.record: dict[str, Any] = {}
        self.texts: dict[Key, str] = {}
        self._lock = lock(path)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            self._lock.release()
            raise EvaluationError(f"cannot open {path}: {error.strerror}") from error
        try:
            self._cut_incomplete_line()
            if os.fstat(self._file).st_size:  # else a record without lines is made anew
                self.texts = read_answers(path, form)
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
            raise EvaluationError(
                f"{self.whole} holds {len(self.texts)} {self.form.texts} made with other settings:"
                + "".join(f"\n{each}" for each in different)
                + "\ngive another --output_path, or those settings again to continue the file"
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
            rest = memoryview(line(self.form, key, text))
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)
            raise EvaluationError(
                f"cannot write to {self.path}: {error.strerror}. Its {len(self.texts)} "
                f"{self.form.texts} are whole; make room and run the same command again to continue"
            ) from error
        self.texts[key] = text

    def save_record(self) -> None:
        """Write `record` to the run record, whole or not at all."""
        write_json(record_path(self.path), self.record)

    def finish(self, ranks: Mapping[Key, int]) -> bool:
        """End a run; whether `whole` now holds what there is, and this process goes on with it.

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


def lock(path: Path, patience_s: float = 0.0) -> "FileLock":
    """Lock a file against other processes by a hidden file beside it; its folder is made.

    Raises:
        EvaluationError: another process has it locked for longer than `patience_s`.
    """
    from filelock import FileLock, Timeout  # --help needs none

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = FileLock(path.with_name(f".{path.name}.lock"))
        found.acquire(timeout=patience_s, poll_interval=0.02)
        return found
    except Timeout as error:
        raise EvaluationError(
            f"cannot lock {path}: if another process is writing it, wait for it or give another "
            "--output_path"
        ) from error
    except OSError as error:
        raise EvaluationError(f"cannot open {path}: {error.strerror}") from error


def line(form: Form, key: Key, text: str) -> bytes:
    """A line of a file of answers."""
    return json.dumps(form.ids(key) | {form.text: text}).encode() + b"\n"


def read_answers(path: Path, form: Form) -> dict[Key, str]:
    """The answers of a file by their keys, in its order; blank lines are skipped.

    Raises `EvaluationError`, with the line's number, for a line that lacks a key or the text, and
    for a second answer of one key.
    """
    texts: dict[Key, str] = {}
    for where, entry in read_json_lines(path, f"{form.texts} {path}"):
        for name in (*form.keys, form.text):
            if not isinstance(entry, dict) or name not in entry:
                raise EvaluationError(f"{where} has no key {name!r}")
        for name in form.keys:
            if type(entry[name]) not in (int, str):
                raise EvaluationError(f"{where}: {name} {entry[name]!r} is no number and no text")
        if not isinstance(entry[form.text], str):
            raise EvaluationError(f"{where}: {form.text} is not text")
        key = form.key_of(entry)
        if key in texts:
            raise EvaluationError(f"{where} is a second {form.text} of {form.shown(key)}; keep one")
        texts[key] = entry[form.text]
    if not texts:
        raise EvaluationError(f"{path} holds no {form.texts}")
    return texts


def record_path(path: Path) -> Path:
    """Where the record of what made a file lies."""
    return path.with_name(path.name + ".run.json")


def read_record(path: Path) -> dict[str, Any]:
    """The record of the run that made a file of answers; empty where there is none."""
    file = record_path(path)
    if not file.exists():
        return {}
    record = read_json(file)
    if not isinstance(record, dict):
        raise EvaluationError(f"{file} is not a run record")
    return record


def no_record(path: Path, form: Form) -> EvaluationError:
    """What is wrong with answers that have no record."""
    return EvaluationError(
        f"{path} holds {form.texts}, but {record_path(path).name}, which says what made them, is "
        "not there: put it back, or give another --output_path"
    )


def with_versions(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that agree, with both versions where another one goes on."""
    versions = [each[VERSION] for each in (recorded, now) if VERSION in each]
    names = dict.fromkeys(name for each in versions for name in str(each).split(", "))
    return {**now, VERSION: ", ".join(names)} if versions else dict(now)


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name], ensure_ascii=False) if name in settings else "not set"
