"""Files of answers, JSON Lines with ids and texts, and the records of the runs that made them.

Beside `captions.jsonl` lies `captions.jsonl.run.json`, its run record.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revisit.evaluation import EvaluationError
from revisit.evaluation.files import read_json, read_json_lines

Key = int | str | tuple[int | str, ...]
"""The id, or ids, that a task and its answer share."""

VERSION = "revisit version"
"""A key of recorded settings. Another version continues a file, whose record then names both."""


@dataclass(frozen=True)
class Form:
    """The form of a file of answers: JSON Lines with an id, or several, and a text."""

    file: str
    """The file's name."""
    keys: tuple[str, ...]
    """The ids' keys."""
    text: str
    """The key of the answer, such as caption."""
    unit: str
    """The unit of the progress bar, such as image."""

    @property
    def texts(self) -> str:
        """The plural, such as captions."""
        return f"{self.text}s"

    def key_of(self, entry: Mapping[str, Any]) -> Key:
        """The key of a line; raises KeyError where an id is missing."""
        return entry[self.keys[0]] if len(self.keys) == 1 else tuple(entry[k] for k in self.keys)

    def ids(self, key: Key) -> dict[str, int | str]:
        """A key as the ids of a line."""
        return dict(zip(self.keys, key if isinstance(key, tuple) else (key,), strict=True))

    def line(self, key: Key, text: str) -> bytes:
        """An answer as a line of the file."""
        return json.dumps(self.ids(key) | {self.text: text}).encode() + b"\n"

    def shown(self, key: Key) -> str:
        """A key in a message: `image_id 7`."""
        return ", ".join(f"{name} {value}" for name, value in self.ids(key).items())


def read_answers(path: Path, form: Form) -> dict[Key, str]:
    """The answers of a file by their keys, in its order; blank lines are skipped.

    Raises `EvaluationError`, with the line's number, for a line without a key or the text, and
    for a second answer of one key.
    """
    answers: dict[Key, str] = {}
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
        if key in answers:
            raise EvaluationError(f"{where} is a second {form.text} of {form.shown(key)}; keep one")
        answers[key] = entry[form.text]
    if not answers:
        raise EvaluationError(f"{path} holds no {form.texts}")
    return answers


def record_path(path: Path) -> Path:
    """The run record beside a file of answers."""
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
    """The error for answers that have no record."""
    return EvaluationError(
        f"{path} holds {form.texts}, but {record_path(path).name}, which says what made them, is "
        "not there: put it back, or give another --output_path"
    )


def with_versions(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that agree, with both versions where another one continues."""
    versions = [each[VERSION] for each in (recorded, now) if VERSION in each]
    names = dict.fromkeys(name for each in versions for name in str(each).split(", "))
    return {**now, VERSION: ", ".join(names)} if versions else dict(now)
