"""One file of answers that several processes write: each a shard, merged at the end.

While they work, `captions.jsonl.part-1-of-2` is what process 1 of 2 has made, with a run record of
its own. A process that begins reads the file and all shards, also those of earlier runs, of
whatever number of processes. Each holds the lock of its shard as long as it runs, and the file's
while it begins and ends; the one that ends last finds no other shard locked, and merges all in the
order of the tasks.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks.benchmark import Form, Key
from revisit.evaluation.store import (
    VERSION,
    AnswerStore,
    line,
    lock,
    no_record,
    read_record,
    record_path,
    with_versions,
    write_whole,
)

if TYPE_CHECKING:
    from filelock import FileLock

Texts = dict[Key, str]
Record = dict[str, Any]

# What shards have to have in common: sections of their run records.
_SECTIONS = ("settings", "images", "annotations", "captioner")

# How long a process that begins or ends waits for one that merges.
_PATIENCE_S = 10.0


class Process(NamedTuple):
    """One of `world_size` processes that share the work."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Its number on its machine, which has a GPU for each."""

    def __str__(self) -> str:
        return f"process {self.rank} of {self.world_size}"


def this_process(environment: Mapping[str, str]) -> Process:
    """What `torchrun` and `accelerate launch` say in RANK, WORLD_SIZE and LOCAL_RANK; one process
    where they are not set.

    Raises:
        EvaluationError: they do not fit together.
    """
    found = {name: environment.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if found["WORLD_SIZE"] in (None, "1"):
        return Process()
    try:
        rank, world_size, local = (int(value) for value in found.values() if value is not None)
        if 0 <= rank < world_size and local >= 0:
            return Process(rank, world_size, local)
    except ValueError:
        pass
    raise EvaluationError(
        f"the environment has {', '.join(f'{name}={value}' for name, value in found.items())}: for "
        "several processes all three are numbers, and RANK is below WORLD_SIZE, as torchrun sets "
        "them; for one process unset WORLD_SIZE"
    )


def open_store(path: Path, form: Form, process: Process) -> AnswerStore:
    """The file, or this process's shard of it where there are several, or were in an earlier run.

    Raises `EvaluationError` as `AnswerStore` does, and where shards do not belong together.
    """
    if process.world_size > 1 or _shards(path):
        return ShardStore(path, form, process)
    return AnswerStore(path, form)


class ShardStore(AnswerStore):
    """The shard of one process. Its `texts` are also those of the file and of the other shards; its
    record begins with the settings and the sample of theirs."""

    def __init__(self, path: Path, form: Form, process: Process) -> None:
        self._whole_lock: FileLock | None = lock(path, _PATIENCE_S)
        shard = path.with_name(f"{path.name}.part-{process.rank}-of-{process.world_size}")
        try:
            path.touch()
            if process.world_size == 1 and _at_work(path, shard):
                raise EvaluationError(
                    f"{path} has shards that another process is writing: wait for it, or give "
                    "another --output_path"
                )
            super().__init__(shard, form)
        except BaseException:
            self._whole_lock.release()
            raise
        try:
            self.process = process
            self.whole = path
            found = _read_all(path, form)
            self.texts |= found.texts
            self.record |= {name: found.record[name] for name in _SECTIONS if name in found.record}
            self.save_record()  # before the first line, which is refused without it
        except BaseException:
            self.close()
            raise
        if process.world_size > 1:
            self._release_whole()

    def close(self) -> None:
        """Let others open the shard, and the file."""
        super().close()
        self._release_whole()

    def _release_whole(self) -> None:
        if self._whole_lock is not None:
            self._whole_lock.release()
            self._whole_lock = None

    def finish(self, shares: Mapping[Key, int]) -> bool:
        """Merge the shards, where no other process is at work any more: then this is the file.

        Where something is missing nothing is merged: whose share it is is said, and how to go on.
        """
        self.save_record()
        self._whole_lock = self._whole_lock or lock(self.whole, _PATIENCE_S)
        if _at_work(self.whole, self.path):
            print(f"{self.process} has done its share; the one that ends last merges the shards")
            return False
        found = _read_all(self.whole, self.form, self.record["settings"])
        lacking = Counter(
            rank
            for key, rank in shares.items()
            if key not in found.texts and key not in found.tried
        )
        if lacking:
            self._say_what_lacks(lacking, shares)
            return False
        texts = {key: found.texts[key] for key in (*shares, *found.texts) if key in found.texts}
        self._merge(texts, found.record)
        return True

    def _say_what_lacks(self, lacking: Mapping[int, int], shares: Mapping[Key, int]) -> None:
        counts = Counter(shares.values())
        said = "; ".join(
            f"process {rank} lacks {count} of its {counts[rank]} {self.form.texts}"
            for rank, count in sorted(lacking.items())
        )
        print(
            f"{self.process} has done its share, and nobody else is at work. {said}: if it does "
            f"not start any more, the same command continues, with any number of processes. The "
            f"{self.form.texts} so far are in {self.whole} and in the shards beside it"
        )

    def _merge(self, texts: Texts, record: Record) -> None:
        """Whenever this is cut short, what is there merges to the same."""
        shards = _shards(self.whole)
        self.path = self.whole
        self.texts, self.record = texts, self.record | record
        self.save_record()  # first: without it the file would be refused
        lines = (line(self.form, key, text) for key, text in texts.items())
        write_whole(self.whole, b"".join(lines))
        for shard in shards:
            shard.unlink(missing_ok=True)
            record_path(shard).unlink(missing_ok=True)
            shard.with_name(f".{shard.name}.lock").unlink(missing_ok=True)


class Found(NamedTuple):
    """What a file and its shards hold."""

    texts: Texts
    record: Record
    """What their records say together."""
    tried: set[Key]
    """Whose image could not be read by a process of this run."""


def _shards(path: Path) -> list[Path]:
    """The shards of the file that are there, of any run."""
    named = re.compile(re.escape(path.name) + r"\.part-\d+-of-\d+")
    if not path.parent.is_dir():
        return []
    return sorted(each for each in path.parent.iterdir() if named.fullmatch(each.name))


def _at_work(path: Path, mine: Path) -> bool:
    """Whether another process holds a shard; whoever asks holds the file's own lock."""
    for shard in _shards(path):
        if shard != mine:
            try:
                lock(shard).release()
            except EvaluationError:
                return True
    return False


def _read_all(path: Path, form: Form, settings: Mapping[str, Any] | None = None) -> Found:
    """What the file and its shards hold. The record of an empty one counts only if it has these
    `settings`.

    Raises `EvaluationError` where they were made with different settings, or are damaged.
    """
    texts: Texts = {}
    whole: Record = {"runs": [], "failed": []}
    made_by: dict[str, Path] = {}
    tried: set[Key] = set()
    for file in (path, *_shards(path)):
        answers = _read_lines(file, form)
        record = read_record(file)
        same = settings is not None and _same(record.get("settings"), settings)
        if not answers and not same:
            continue
        if not record:
            raise no_record(file, form)
        for name in _SECTIONS:
            if name not in record:
                continue
            if not _same(whole.setdefault(name, record[name]), record[name]):
                raise EvaluationError(
                    f"{made_by[name]} and {file} were made with different {name}, as their records "
                    "(.run.json) say: move away the one that is not to be continued"
                )
            if name == "settings":
                whole[name] = with_versions(whole[name], record[name])
            made_by.setdefault(name, file)
        texts = {**answers, **texts}
        whole["runs"] += [run for run in record.get("runs", []) if run not in whole["runs"]]
        failed = record.get("failed", [])
        whole["failed"] += failed
        if same and file != path:  # what failed in an earlier, whole run is tried again
            tried |= {form.key_of(entry) for entry in failed}
    whole["runs"].sort(key=lambda run: str(run["started"]))
    lacking = {form.key_of(each): each for each in whole["failed"]}
    whole["failed"] = [each for key, each in lacking.items() if key not in texts]
    return Found(texts, whole, tried)


def _same(first: Any, second: Any) -> bool:
    """Whether sections of records agree, whatever version wrote them."""
    return bool(_without_version(first) == _without_version(second))


def _without_version(section: Any) -> Any:
    if not isinstance(section, dict):
        return section
    return {name: value for name, value in section.items() if name != VERSION}


def _read_lines(file: Path, form: Form) -> Texts:
    """The whole lines: the last one may be about to be written."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return {}
    texts: Texts = {}
    for number, written in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            entry = json.loads(written)
            texts[form.key_of(entry)] = entry[form.text]
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(f"{file}, line {number} is no line of {form.texts}") from error
    return texts
