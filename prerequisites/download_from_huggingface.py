"""Download the checkpoints of the paper from the Hugging Face hub."""

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NoReturn

from fetching import (
    BUSY,
    STOPPED,
    DownloadError,
    Passing,
    bytes_of,
    lock,
    mismatch,
    need_space,
    patiently,
    read_record,
    run,
    write_record,
)

PREREQUISITES = Path(__file__).resolve().parent
"""Where the evaluation scripts look."""

RECORD = ".revisit-download.json"
"""The file beside a repository's that says which commit it is, and each file's size and hash."""


@dataclass(frozen=True)
class Repository:
    """A model on the hub. `revision`: the commit, branch or tag that is downloaded; `folder`: where
    in the checkpoint."""

    name: str
    revision: str
    folder: str = "."


@dataclass(frozen=True)
class Checkpoint:
    """A folder that a model is loaded from. `repositories`: the model's own first."""

    folder: str
    repositories: tuple[Repository, ...]


_TOWER = "openai/clip-vit-large-patch14-336"
CHECKPOINTS = {
    "llava": Checkpoint(
        "llava-v1.5-7b",
        (
            Repository("liuhaotian/llava-v1.5-7b", "4481d270cc22fd5c4d1bb5df129622006ccd9234"),
            # LLaVA's config.json names its vision tower so: the loader finds it in this folder.
            Repository(_TOWER, "ce19dc912ca5cd21c8a653c79e251e808ccabcd1", folder=_TOWER),
        ),
    ),
    "qwen": Checkpoint(
        "Qwen2.5-VL-7B-Instruct",
        (Repository("Qwen/Qwen2.5-VL-7B-Instruct", "cc594898137f460bfe9f0759e9844b3ce807cfb5"),),
    ),
}
"""The pins. A branch that is asked for instead is resolved by its first download; its commit is
recorded and kept to."""

# The formats of weights, best first, as Transformers chooses among them: one is enough.
_WEIGHTS = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
)
_OTHERS = ("*.json", "*.model", "*.txt", "*.jinja")  # settings, tokenizer, chat template


def why_incomplete(checkpoint: Path, hashes: bool = False) -> str:
    """What the folder lacks of a checkpoint, by its record or, where somebody else put it there,
    by the files that it names itself; "" if nothing. `hashes`: read and compare all contents."""
    if not checkpoint.is_dir():
        return f"{checkpoint} is missing"
    wrong = _wrong_files(checkpoint, hashes)
    if not read_files(checkpoint):
        wrong += _missing_by_names(checkpoint)
    return f"{checkpoint} lacks {', '.join(wrong)} (missing or damaged)" if wrong else ""


def download(model: str, parent: Path, revision: str | None = None) -> None:
    """Put the checkpoint of `model`, a key of `CHECKPOINTS`, into `parent`.

    Its folder appears when every file is there and has the hub's size and hash; until then what has
    come is kept beside it, and gone on with. `revision` replaces the pinned one of the model's own
    repository. Raises `DownloadError`.
    """
    name, repositories = CHECKPOINTS[model].folder, list(CHECKPOINTS[model].repositories)
    checkpoint, work = parent / name, parent / f".{name}.making"
    with lock(parent / f".{name}.lock"):
        if checkpoint.exists():
            if _is_complete(checkpoint, revision):
                return
            shutil.rmtree(work, ignore_errors=True)
            checkpoint.rename(work)  # not a checkpoint before it is whole again
            for wrong in _wrong_files(work, hashes=True):
                (work / wrong).unlink(missing_ok=True)
            revision = read_record(work / RECORD)["commit"]
        repositories[0] = replace(repositories[0], revision=revision or repositories[0].revision)
        for repository in repositories:
            _plan(work / repository.folder, repository)
        _fetch(work, repositories)
        commit = read_record(work / RECORD)["commit"]
        work.rename(checkpoint)
    print(f"{checkpoint} is complete: commit {commit}")


def read_files(checkpoint: Path) -> dict[str, tuple[int, str]]:
    """The files on record, in the checkpoint and below: name -> size in bytes, "algorithm:hex"."""
    return {
        str(record.parent.relative_to(checkpoint) / name): (size, digest)
        for record in checkpoint.rglob(RECORD)
        for name, (size, digest) in read_record(record).get("files", {}).items()
    }


def _wrong_files(checkpoint: Path, hashes: bool) -> list[str]:
    """The recorded files that are missing or of another size, or, with `hashes`, of other bytes."""
    return [
        name
        for name, (size, digest) in read_files(checkpoint).items()
        if mismatch(checkpoint / name, size, digest if hashes else "")
    ]


def _is_complete(checkpoint: Path, revision: str | None) -> bool:
    """Whether nothing is to be done; False if files that were downloaded here are damaged."""
    record = read_record(checkpoint / RECORD) if read_files(checkpoint) else {}
    if record and revision not in (None, record["revision"], record["commit"]):
        raise DownloadError(
            f"{checkpoint} holds commit {record['commit']} (revision {record['revision']}), not "
            f"{revision}. Move it away, or download elsewhere with --download_path."
        )
    why = why_incomplete(checkpoint, hashes=True)
    if not record and (why or revision):
        raise DownloadError(
            f"{why or f'{checkpoint} does not say which revision it holds'}. It was not downloaded "
            "by this program and is not touched: move it away and run this again."
        )
    origin = f"commit {record['commit']}" if record else "put there by hand"
    print(f"{why}. Fetching them again." if why else f"{checkpoint} is complete: {origin}")
    return not why


def _plan(folder: Path, repository: Repository) -> None:
    """Record in `folder` what is to come: as an earlier run began, or as the hub says now."""
    record = read_record(folder / RECORD)
    if repository.revision in (record.get("revision"), record.get("commit")):
        return
    found: list[Any] = []

    def ask() -> None:
        with _explained(repository.name, repository.revision) as hub:
            api, revision = hub.HfApi(), repository.revision
            found.append(api.model_info(repository.name, revision=revision, files_metadata=True))

    patiently(ask, lambda: 0)
    there = {
        file.rfilename: (
            int(file.size or 0),
            f"sha256:{file.lfs.sha256}" if file.lfs else f"git-sha1:{file.blob_id}",
        )
        for file in found[0].siblings
    }
    files = {name: there[name] for name in _needed(there)}
    if not files:
        raise DownloadError(
            f"{repository.name} at {repository.revision} holds no weights that Transformers reads."
        )
    shutil.rmtree(folder, ignore_errors=True)  # of another revision
    folder.mkdir(parents=True)
    names = {"name": repository.name, "revision": repository.revision, "commit": found[0].sha}
    write_record(folder / RECORD, {**names, "files": files})


def _needed(names: Iterable[str]) -> list[str]:
    """The files of a repository that loading it reads: one format of weights, no subfolder."""
    top = sorted(name for name in names if "/" not in name and "\\" not in name)
    for patterns in _WEIGHTS:
        weights = [[name for name in top if fnmatch(name, pattern)] for pattern in patterns]
        if all(weights):
            others = [
                name
                for name in top
                if any(fnmatch(name, pattern) for pattern in _OTHERS)
                and not name.endswith(".index.json")
            ]
            return others + [name for group in weights for name in group]
    return []


def _fetch(work: Path, repositories: Sequence[Repository]) -> None:
    """Download what `work` lacks, and compare all of it with what the hub announced."""
    need_space(work, sum(size for size, _ in read_files(work).values()) - _bytes_in(work))

    def attempt() -> None:
        for repository in repositories:
            folder = work / repository.folder
            record = read_record(folder / RECORD)
            with _explained(record["name"], record["commit"]) as hub:
                hub.snapshot_download(
                    record["name"],
                    revision=record["commit"],
                    local_dir=folder,
                    allow_patterns=list(record["files"]),
                )
        # Where the hub does not answer, the client returns and says nothing.
        if missing := _wrong_files(work, hashes=False):
            raise Passing(f"{missing[0]} has not come from the hub")

    if _wrong_files(work, hashes=False):
        patiently(attempt, lambda: _bytes_in(work))
    if wrong := _wrong_files(work, hashes=True):
        for name in wrong:
            (work / name).unlink()
        raise DownloadError(
            f"these files do not have the hash that the hub announces: {', '.join(wrong)}. They "
            "were thrown away; run this again."
        )
    for repository in repositories:  # the client's notes
        shutil.rmtree(work / repository.folder / ".cache", ignore_errors=True)


@contextmanager
def _explained(name: str, revision: str) -> Iterator[Any]:
    """The hub's client; its errors leave as `Passing`, or as what a user can do about them."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise DownloadError(
            f"{sys.executable} has no huggingface_hub. Run this in a family's environment: after "
            "`source .nox/llava/bin/activate` (`conda activate ./.nox/llava` where nox used conda) "
            "or `conda activate revisit_llava` (or qwen)."
        ) from error
    try:
        yield huggingface_hub
    except errors.OfflineModeIsEnabled as error:
        raise DownloadError("HF_HUB_OFFLINE forbids the network. Unset it.") from error
    except errors.HfHubHTTPError as error:
        words = f"no {name} at {revision} from the hub: {' '.join(str(error).split())}"
        if error.response.status_code in BUSY:
            raise Passing(words) from error
        raise DownloadError(
            f"{words} Check --revision; where the hub wants a token, make one at "
            "https://huggingface.co/settings/tokens and give it as HF_TOKEN."
        ) from error
    except Exception as error:
        of_network = type(error).__module__.startswith(("httpx", "urllib3", "requests"))
        if of_network or isinstance(error, errors.LocalEntryNotFoundError):
            raise Passing(f"no answer from the hub: {' '.join(str(error).split())}") from error
        raise


def _bytes_in(folder: Path) -> int:
    return sum(bytes_of(path) for path in folder.rglob("*"))


def _missing_by_names(checkpoint: Path) -> list[str]:
    """What a checkpoint without a record lacks, by its own config.json and index of weights."""
    config = read_record(checkpoint / "config.json")
    tower: str | None = config.get("mm_vision_tower")
    needed = ["config.json", "tokenizer.model" if tower else "preprocessor_config.json"]
    weights = next((group[0] for group in _WEIGHTS if (checkpoint / group[0]).is_file()), "weights")
    index = read_record(checkpoint / weights) if weights.endswith(".json") else {}
    needed += [weights, *sorted(set(index.get("weight_map", {}).values()))]
    lost = tower and not (checkpoint / tower / "config.json").is_file()
    missing = [name for name in needed if not (checkpoint / name).is_file()]
    return [*missing, f"its vision tower {tower}"] if lost else missing


def _stop(*_: object) -> NoReturn:
    print(STOPPED, file=sys.stderr, flush=True)
    os._exit(130)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(
        description="Download a checkpoint from the Hugging Face hub, LLaVA-1.5's vision tower "
        "included: only the files that are read, at a pinned commit, each compared with the hub's "
        "hash. A run that was cut goes on where it stopped; what is complete is only checked, "
        "without a network. The commit is recorded in the checkpoint, and kept to.",
    )
    parser.add_argument(
        "--model",
        choices=[*CHECKPOINTS, "all"],
        required=True,
        help="llava: liuhaotian/llava-v1.5-7b (about 15 GB); qwen: Qwen/Qwen2.5-VL-7B-Instruct "
        "(about 17 GB)",
    )
    parser.add_argument(
        "--download_path",
        type=Path,
        default=PREREQUISITES,
        help="the folder that gets the checkpoint's folder (default: where the evaluation scripts "
        "look, %(default)s)",
    )
    parser.add_argument(
        "--revision",
        help="a branch, tag or commit of the model's repository, such as main, its newest "
        "(default: the pinned commit); not with --model all",
    )
    options = parser.parse_args(arguments)
    if options.model == "all" and options.revision:
        parser.error("--revision belongs to one model: give --model llava or --model qwen")
    # Plain HTTP goes on within a cut file; the hub's own protocol, Xet, need not.
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    # The client's threads would finish their files first; what they wrote is kept.
    signal.signal(signal.SIGINT, _stop)
    models = list(CHECKPOINTS) if options.model == "all" else [options.model]

    def work() -> None:
        options.download_path.mkdir(parents=True, exist_ok=True)
        for model in models:
            download(model, options.download_path, options.revision)

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
