"""A captions file that survives: JSON Lines, appended caption by caption, resumed by a rerun.

Beside `captions.jsonl` lies `captions.jsonl.run.json`, the record of what made it.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from revisit.evaluation import EvaluationError
from revisit.evaluation.chair import read_captions
from revisit.evaluation.files import read_json, write_json


class CaptionStore:
    """The captions file of one run, open for appending and locked against other processes.

    Opening cuts off an incomplete last line, which a killed process leaves. Every line is on the
    disk when `append` returns; a line that could not be written whole is taken back.

    Attributes:
        captions: image id -> caption, what the file holds.
        record: what lies in the run record; `save_record` writes it.

    Raises:
        EvaluationError: another process has the file open, a line is no caption, captions without
            their run record, or a file that cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record_path = path.with_name(path.name + ".run.json")
        self.record: dict[str, Any] = {}
        self.captions: dict[int, str] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise EvaluationError(f"cannot open {path}: {error.strerror}") from error
        try:
            self._lock()
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
        """Record what decides the captions under `section`, or check it against the record.

        Raises:
            EvaluationError: the captions there were made with other settings; nothing is changed.
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
                f"{self.path} holds {len(self.captions)} captions made with other settings:\n"
                + "\n".join(different)
                + "\ngive another --output_path, or those settings again to continue the file"
            )
        if section not in self.record:
            self.record[section] = given
            self.save_record()

    def append(self, image_id: int, caption: str) -> None:
        """Write one caption, and wait until it is on the disk.

        Raises `EvaluationError` where it cannot be written; the file is then as it was.
        """
        line = json.dumps({"image_id": image_id, "caption": caption}) + "\n"
        before = os.fstat(self._file).st_size
        try:
            rest = memoryview(line.encode())
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)
            raise EvaluationError(
                f"cannot write to {self.path}: {error.strerror}. Its {len(self.captions)} captions "
                "are whole; make room and run the same command again to continue"
            ) from error
        self.captions[image_id] = caption

    def save_record(self) -> None:
        """Write `record` to the run record, whole or not at all."""
        write_json(self.record_path, self.record)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise EvaluationError(
                f"cannot lock {self.path} ({error.strerror}): if another process is writing it, "
                "wait for it or give another --output_path"
            ) from error

    def _cut_incomplete_line(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._file, whole)

    def _read(self) -> None:
        if os.fstat(self._file).st_size == 0:
            return  # nothing to protect: a run record without captions is made anew
        self.captions = read_captions(self.path)
        if not self.record_path.exists():
            raise EvaluationError(
                f"{self.path} holds captions, but {self.record_path.name}, which says what made "
                "them, is not there: put it back, or give another --output_path"
            )
        record = read_json(self.record_path)
        if not isinstance(record, dict):
            raise EvaluationError(f"{self.record_path} is not a run record")
        self.record = record


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name], ensure_ascii=False) if name in settings else "not set"
