"""One file of answers that several processes write: each a shard, merged at the end.

While they work, `captions.jsonl.part-1-of-2` is what process 1 of 2 has made, with its run record.
A process that begins reads the file and all shards, also those of earlier runs, of whatever number
of processes. Each holds the lock of its shard as long as it runs, and the file's while it begins
and ends; the one that ends last finds no other shard locked, and merges all in the order of the
tasks.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from revisit.evaluation import EvaluationError
from revisit.evaluation.answer_files import (
    VERSION,
    Form,
    Key,
    no_record,
    read_record,
    record_path,
    with_versions,
)
from revisit.evaluation.files import write_whole
from revisit.evaluation.process import Process
from revisit.evaluation.store import AnswerStore, lock

# Sections of their run records that shards have to have in common.
_SECTIONS = ("settings", "images", "annotations", "captioner")

# How long a process that begins or ends waits for one that merges.
_PATIENCE_S = 10.0


def open_store(path: Path, form: Form, process: Process) -> AnswerStore:
    """The file, or this process's shard of it where there are several, or were in an earlier run.

    Raises `EvaluationError` as `AnswerStore` does, and where shards do not belong together.
    """
    if process.world_size > 1 or _shards(path):
        return ShardStore(path, form, process)
    return AnswerStore(path, form)


class ShardStore(AnswerStore):
    """The shard of one process. Its `answers` include those of the file and of the other
    shards; its record begins with their settings and sample."""

    def __init__(self, path: Path, form: Form, process: Process) -> None:
        shard = path.with_name(f"{path.name}.part-{process.rank}-of-{process.world_size}")
        with ExitStack() as on_error:
            self._whole_lock = lock(path, _PATIENCE_S)
            on_error.callback(self._whole_lock.release)
            path.touch()
            if process.world_size == 1 and _at_work(path, shard):
                raise EvaluationError(
                    f"{path} has shards that another process is writing: wait for it, or give "
                    "another --output_path"
                )
            super().__init__(shard, form)
            on_error.callback(self.close)
            self.process = process
            self.whole = path
            found = _read_all(path, form)
            self.answers |= found.answers
            self.record |= {name: found.record[name] for name in _SECTIONS if name in found.record}
            self.save_record()  # before the first line, which is refused without it
            on_error.pop_all()
        if process.world_size > 1:
            self._whole_lock.release()

    def close(self) -> None:
        """Let others open the shard, and the file."""
        super().close()
        self._whole_lock.release()

    def finish(self, ranks: Mapping[Key, int]) -> bool:
        """Merge the shards, where no other process is at work any more: then this is the file.

        Where answers are missing nothing is merged: a message says which processes lack them, and
        how to go on.
        """
        self.save_record()
        if not self._whole_lock.is_locked:
            self._whole_lock = lock(self.whole, _PATIENCE_S)
        if _at_work(self.whole, self.path):
            print(f"{self.process} has done its share; the one that ends last merges the shards")
            return False
        found = _read_all(self.whole, self.form, self.record["settings"])
        done = found.answers.keys() | found.tried
        missing = Counter(rank for key, rank in ranks.items() if key not in done)
        if missing:
            self._report_missing(missing, Counter(ranks.values()))
            return False
        in_order = [key for key in (*ranks, *found.answers) if key in found.answers]
        answers = {key: found.answers[key] for key in in_order}
        self._merge(answers, found.record)
        return True

    def _report_missing(self, missing: Mapping[int, int], totals: Mapping[int, int]) -> None:
        shares = "; ".join(
            f"process {rank} lacks {count} of its {totals[rank]} {self.form.texts}"
            for rank, count in sorted(missing.items())
        )
        print(
            f"{self.process} has done its share, and nobody else is at work. {shares}: if it does "
            f"not start any more, the same command continues, with any number of processes. The "
            f"{self.form.texts} so far are in {self.whole} and in the shards beside it"
        )

    def _merge(self, answers: dict[Key, str], record: dict[str, Any]) -> None:
        """Write the whole file, then remove the shards: cut short anywhere, a merge can be made
        again from what is there."""
        shards = _shards(self.whole)
        self.path = self.whole
        self.answers, self.record = answers, self.record | record
        self.save_record()  # first: without it the file would be refused
        lines = (self.form.line(key, text) for key, text in answers.items())
        write_whole(self.whole, b"".join(lines))
        for shard in shards:
            shard.unlink(missing_ok=True)
            record_path(shard).unlink(missing_ok=True)
            shard.with_name(f".{shard.name}.lock").unlink(missing_ok=True)


class Found(NamedTuple):
    """The content of a file and its shards."""

    answers: dict[Key, str]
    record: dict[str, Any]
    """The sections, starts and failures of all their records."""
    tried: set[Key]
    """Tasks whose image a process of this run could not read."""


def _shards(path: Path) -> list[Path]:
    """The shards of the file that are there, of any run."""
    pattern = re.compile(re.escape(path.name) + r"\.part-\d+-of-\d+")
    if not path.parent.is_dir():
        return []
    return sorted(file for file in path.parent.iterdir() if pattern.fullmatch(file.name))


def _at_work(path: Path, this_shard: Path) -> bool:
    """Whether another process holds a shard; the caller holds the file's lock."""
    for shard in _shards(path):
        if shard != this_shard:
            try:
                lock(shard).release()
            except EvaluationError:
                return True
    return False


def _read_all(path: Path, form: Form, settings: Mapping[str, Any] | None = None) -> Found:
    """Read the file and its shards. The record of an empty one counts only if it has these
    `settings`.

    Raises `EvaluationError` where they were made with different settings, or are damaged.
    """
    answers: dict[Key, str] = {}
    whole: dict[str, Any] = {"runs": [], "failed": []}
    made_by: dict[str, Path] = {}
    tried: set[Key] = set()
    for file in (path, *_shards(path)):
        lines, record = _read_lines(file, form), read_record(file)
        of_this_run = settings is not None and _agree(record.get("settings"), settings)
        if not lines and not of_this_run:
            continue
        if not record:
            raise no_record(file, form)
        for name in _SECTIONS:
            if name not in record:
                continue
            if not _agree(whole.setdefault(name, record[name]), record[name]):
                raise EvaluationError(
                    f"{made_by[name]} and {file} were made with different {name}, as their records "
                    "(.run.json) say: move away the one that is not to be continued"
                )
            if name == "settings":
                whole[name] = with_versions(whole[name], record[name])
            made_by.setdefault(name, file)
        answers = {**lines, **answers}
        whole["runs"] += [run for run in record.get("runs", []) if run not in whole["runs"]]
        failed = record.get("failed", [])
        whole["failed"] += failed
        if of_this_run and file != path:  # failures of an earlier, whole run are tried again
            tried |= {form.key_of(entry) for entry in failed}
    whole["runs"].sort(key=lambda run: str(run["started"]))
    failures = {form.key_of(entry): entry for entry in whole["failed"]}
    whole["failed"] = [entry for key, entry in failures.items() if key not in answers]
    return Found(answers, whole, tried)


def _agree(first: Any, second: Any) -> bool:
    """Whether sections of records are the same, whatever version wrote them."""
    if isinstance(first, dict) and isinstance(second, dict):
        first, second = first | {VERSION: ""}, second | {VERSION: ""}
    return bool(first == second)


def _read_lines(file: Path, form: Form) -> dict[Key, str]:
    """The answers of whole lines: the last one may be about to be written."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return {}
    answers: dict[Key, str] = {}
    for number, written in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            entry = json.loads(written)
            answers[form.key_of(entry)] = entry[form.text]
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(f"{file}, line {number} is no line of {form.texts}") from error
    return answers
