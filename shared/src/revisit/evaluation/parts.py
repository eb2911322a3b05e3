"""One file of captions or answers that several processes write: each its part, merged at the end.

While they work, `captions.jsonl.part-1-of-2` is what process 1 of 2 has made, with a run record of
its own. A process that begins reads the file and all parts, also those of earlier runs, of whatever
number of processes. Every process holds the file together with the others as long as it runs; the
one that ends last gets it for itself, and merges the parts in the order of the tasks.
"""

import fcntl
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from revisit.evaluation import EvaluationError
from revisit.evaluation.captions import CaptionStore, Form, is_at, open_locked, record_path
from revisit.evaluation.files import read_json
from revisit.evaluation.processes import Process

Texts = dict[int | str, str]
Record = dict[str, Any]

# What parts have to have in common: sections of their run records.
_SECTIONS = ("settings", "images", "annotations", "captioner")

# How long a process that begins waits for one that merges.
_PATIENCE_S = 10.0


def open_store(path: Path, form: Form, process: Process) -> CaptionStore:
    """The file, or this process's part of it where there are several, or were in an earlier run.

    Raises `EvaluationError` as `CaptionStore` does, and where parts do not belong together.
    """
    if process.world_size > 1 or _parts(path):
        return PartStore(path, form, process)
    return CaptionStore(path, form)


class PartStore(CaptionStore):
    """The part of one process. Its `texts` are also those of the file and of the other parts; its
    record begins with the settings and the sample of theirs."""

    def __init__(self, path: Path, form: Form, process: Process) -> None:
        self._together = open_locked(
            path, fcntl.LOCK_SH if process.world_size > 1 else fcntl.LOCK_EX, _PATIENCE_S
        )
        try:
            part = path.with_name(f"{path.name}.part-{process.rank}-of-{process.world_size}")
            super().__init__(part, form)
            self.process = process
            self.whole = path
            texts, record = _read_all(path, form)
            self.texts |= texts
            self.record |= {name: record[name] for name in _SECTIONS if name in record}
            self.save_record()  # before the first line, which is refused without it
        except BaseException:
            os.close(self._together)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        os.close(self._together)

    def finish(self, shares: Mapping[int | str, int]) -> bool:
        """Merge the parts, where no other process is at work any more: then this is the file.

        Where something is missing nothing is merged: whose share it is is said, and how to go on.
        """
        self.save_record()
        try:
            fcntl.flock(self._together, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"{self.process} has done its share; the one that ends last merges the parts")
            return False
        if not is_at(self._together, self.whole):
            return False  # another one has merged them in between
        texts, record = _read_all(self.whole, self.form, self.record["settings"])
        # What failed in an earlier, whole run is tried again by a process that may yet start.
        tried = [_read_record(part) for part in _parts(self.whole)]
        failed = {
            entry[self.form.key]
            for part in tried
            if part.get("settings") == self.record["settings"]
            for entry in part.get("failed", [])
        }
        lacking = Counter(
            rank for key, rank in shares.items() if key not in texts and key not in failed
        )
        if lacking:
            self._say_what_lacks(lacking, shares)
            return False
        self._merge({key: texts[key] for key in (*shares, *texts) if key in texts}, record)
        return True

    def _say_what_lacks(self, lacking: Mapping[int, int], shares: Mapping[int | str, int]) -> None:
        told = "; ".join(
            f"process {rank} lacks {count} of its {Counter(shares.values())[rank]} {self.form.noun}"
            for rank, count in sorted(lacking.items())
        )
        print(
            f"{self.process} has done its share, and nobody else is at work. {told}: if it does "
            f"not start any more, the same command continues, with any number of processes. The "
            f"{self.form.noun} so far are in {self.whole} and in the parts beside it"
        )

    def _merge(self, texts: Texts, record: Record) -> None:
        """Whenever this is cut short, what is there merges to the same."""
        parts = _parts(self.whole)
        self.path, self.record_path = self.whole, record_path(self.whole)
        self.texts, self.record = texts, self.record | record
        self.save_record()  # first: without it the file would be refused
        _write(self.whole, b"".join(self.form.line(key, text) for key, text in texts.items()))
        for part in parts:
            part.unlink(missing_ok=True)
            record_path(part).unlink(missing_ok=True)


def _parts(path: Path) -> list[Path]:
    """The parts of the file that are there, of any run."""
    named = re.compile(re.escape(path.name) + r"\.part-\d+-of-\d+")
    if not path.parent.is_dir():
        return []
    return sorted(each for each in path.parent.iterdir() if named.fullmatch(each.name))


def _read_all(
    path: Path, form: Form, settings: Mapping[str, Any] | None = None
) -> tuple[Texts, Record]:
    """What the file and its parts hold, and what their records say together.

    The record of an empty one counts only if it has these `settings`.

    Raises `EvaluationError` where they were made with different settings, or are damaged.
    """
    texts: Texts = {}
    whole: Record = {"runs": [], "failed": []}
    made_by: dict[str, Path] = {}
    for file in (path, *_parts(path)):
        found = _read_lines(file, form)
        record = _read_record(file)
        if not found and (settings is None or record.get("settings") != settings):
            continue
        if not record:
            raise EvaluationError(
                f"{file} holds {form.noun}, but {record_path(file).name}, which says what made "
                "them, is not there: put it back, or move the other away"
            )
        for name in _SECTIONS:
            if name not in record:
                continue
            if whole.setdefault(name, record[name]) != record[name]:
                raise EvaluationError(
                    f"{made_by[name]} and {file} were made with different {name}, as their records "
                    "(.run.json) say: move away the one that is not to be continued"
                )
            made_by.setdefault(name, file)
        texts = {**found, **texts}
        whole["runs"] += [run for run in record.get("runs", []) if run not in whole["runs"]]
        whole["failed"] += record.get("failed", [])
    whole["runs"].sort(key=lambda run: str(run["started"]))
    failed = {each[form.key]: each for each in whole["failed"] if each[form.key] not in texts}
    whole["failed"] = list(failed.values())
    return texts, whole


def _read_lines(file: Path, form: Form) -> Texts:
    """The whole lines: the last one may be about to be written."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return {}
    texts: Texts = {}
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            entry = json.loads(line)
            texts[entry[form.key]] = entry[form.text]
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(f"{file}, line {number} is no line of {form.noun}") from error
    return texts


def _read_record(file: Path) -> Record:
    if not record_path(file).exists():
        return {}
    record = read_json(record_path(file))
    if not isinstance(record, dict):
        raise EvaluationError(f"{record_path(file)} is not a run record")
    return record


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise EvaluationError(f"cannot write {path}: {error.strerror}") from error
