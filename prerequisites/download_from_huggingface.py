"""Download the checkpoints of the paper from the Hugging Face hub."""

import argparse
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fetching import (
    DownloadError,
    Passing,
    cannot_write,
    lock,
    need_space,
    patiently,
    progress,
    run,
    write_record,
)

PREREQUISITES = Path(__file__).resolve().parent
"""Where the evaluation scripts look."""

RECORD = ".revisit-download.json"
"""The file in a checkpoint that says which commits it holds, and each file's size and hash."""

_T = TypeVar("_T")


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


@dataclass(frozen=True)
class Part:
    """One repository at one commit. `files`: name -> size in bytes and "algorithm:hex"."""

    name: str
    revision: str
    commit: str
    folder: str
    files: dict[str, tuple[int, str]] = field(default_factory=dict)


def why_incomplete(checkpoint: Path, hashes: bool = False) -> str:
    """What the folder lacks of a checkpoint, by its record or, where somebody else put it there,
    by the files that it names itself; "" if nothing. `hashes`: read and compare all contents."""
    if not checkpoint.is_dir():
        return f"{checkpoint} is missing"
    parts = read_parts(checkpoint)
    if parts:
        wrong = wrong_files(checkpoint, parts, hashes)
        return f"{checkpoint} has missing or damaged files: {', '.join(wrong)}" if wrong else ""
    missing = _missing_by_names(checkpoint)
    return f"{checkpoint} lacks {', '.join(missing)}" if missing else ""


def download(model: str, parent: Path, revision: str | None = None) -> None:
    """Put the checkpoint of `model`, a key of `CHECKPOINTS`, into `parent`.

    Its folder appears when every file is there and has the hub's size and hash; until then what has
    come is kept beside it, and gone on with. `revision` replaces the pinned one of the model's own
    repository. Raises `DownloadError`.
    """
    name = CHECKPOINTS[model].folder
    own, *others = CHECKPOINTS[model].repositories
    checkpoint, work = parent / name, parent / f".{name}.making"
    with lock(parent / f".{name}.lock"):
        damaged = checkpoint.exists()
        if damaged and _is_complete(checkpoint, own, revision):
            return
        if damaged:
            shutil.rmtree(work, ignore_errors=True)
            checkpoint.rename(work)  # not a checkpoint before it is whole again
            parts = read_parts(work)
            _throw_away(work, wrong_files(work, parts, hashes=True))
        else:
            work.mkdir(exist_ok=True)
            wanted = [Repository(own.name, revision or own.revision), *others]
            parts = [_plan(work, repository) for repository in wanted]
            if parts != read_parts(work):
                shutil.rmtree(work)  # of another revision
                work.mkdir()
            write_record(work / RECORD, {"repositories": [asdict(part) for part in parts]})
        _fetch_all(work, parts)
        work.rename(checkpoint)
    print(f"{checkpoint} is complete: {_commits(parts)}")


def read_parts(checkpoint: Path) -> list[Part]:
    """The record of a checkpoint; empty if there is none, or none that can be read."""
    try:
        entries = json.loads((checkpoint / RECORD).read_bytes())["repositories"]
        return [_read_part(**entry) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _read_part(files: dict[str, Any], **names: str) -> Part:
    known = {name: (int(size), str(digest)) for name, (size, digest) in files.items()}
    return Part(**names, files=known)


def wrong_files(checkpoint: Path, parts: Iterable[Part], hashes: bool) -> list[str]:
    """The recorded files that are missing or of another size, or, with `hashes`, of other bytes."""
    files = {
        (Path(part.folder) / name).as_posix(): known
        for part in parts
        for name, known in part.files.items()
    }
    wrong = [
        name
        for name, (size, _) in files.items()
        if not (checkpoint / name).is_file() or (checkpoint / name).stat().st_size != size
    ]
    if hashes and not wrong:
        total = sum(size for size, _ in files.values())
        with progress("checking what came", total) as advance:
            wrong = [
                name
                for name, (size, known) in files.items()
                if _hash(checkpoint / name, known.partition(":")[0], size, advance) != known
            ]
    return wrong


def _is_complete(checkpoint: Path, own: Repository, revision: str | None) -> bool:
    """Whether nothing is to be done; False if files that were downloaded here are damaged."""
    parts = read_parts(checkpoint)
    if parts and revision not in (None, parts[0].revision, parts[0].commit):
        raise DownloadError(
            f"{checkpoint} holds commit {parts[0].commit} of {parts[0].name} (revision "
            f"{parts[0].revision}), not {revision}. Move it away, or download elsewhere with "
            "--download_path."
        )
    why = why_incomplete(checkpoint, hashes=True)
    if not parts and (why or revision):
        raise DownloadError(
            f"{why or f'{checkpoint} does not say which revision it holds'}. It was not downloaded "
            "by this program and is not touched: move it away and run this again."
        )
    if why:
        print(f"{why}. Fetching them again.", flush=True)
        return False
    print(f"{checkpoint} is complete: {_commits(parts) or f'put there by hand, as {own.name}'}")
    return True


def _plan(work: Path, repository: Repository) -> Part:
    """What to download: as an earlier run began, or as the hub says now."""
    for part in read_parts(work):
        if part.name == repository.name and repository.revision in (part.revision, part.commit):
            return part
    hub = _client()

    def ask() -> Any:
        return hub.HfApi().model_info(
            repository.name, revision=repository.revision, files_metadata=True, timeout=60
        )

    info = _asking(repository, ask, work)
    there = {
        file.rfilename: (
            int(file.size or 0),
            f"sha256:{file.lfs.sha256}" if file.lfs else f"git-sha1:{file.blob_id}",
        )
        for file in info.siblings
    }
    files = {name: there[name] for name in _needed(there)}
    if not files:
        raise DownloadError(
            f"{repository.name} at {repository.revision} holds no weights that Transformers reads."
        )
    return Part(repository.name, repository.revision, info.sha, repository.folder, files)


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


def _fetch_all(work: Path, parts: Sequence[Part]) -> None:
    """Download what `work` lacks, and compare all of it with what the hub announced."""
    total = sum(size for part in parts for size, _ in part.files.values())
    need_space(work, max(total - _bytes_in(work), 0))
    for part in parts:
        folder = work / part.folder
        for file, (size, _) in part.files.items():
            if not (folder / file).is_file() or (folder / file).stat().st_size != size:
                _asking(part, partial(_get, part, file, folder), work)
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's notes
    wrong = wrong_files(work, parts, hashes=True)
    _throw_away(work, wrong)
    if wrong:
        raise DownloadError(
            f"these files do not have the size or hash that the hub announces: {', '.join(wrong)}. "
            "They were thrown away; run this again."
        )


def _get(part: Part, file: str, folder: Path) -> None:
    # One file after the other: the client's threads would not end on Ctrl-C.
    _client().hf_hub_download(part.name, file, revision=part.commit, local_dir=folder)


def _client() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise DownloadError(
            f"{sys.executable} has no huggingface_hub. Run this in a family's environment: after "
            "`source .nox/llava/bin/activate` (`conda activate ./.nox/llava` where nox used conda) "
            "or `conda activate revisit_llava` (or qwen)."
        ) from error
    return huggingface_hub


def _throw_away(folder: Path, files: Iterable[str]) -> None:
    for file in files:
        (folder / file).unlink(missing_ok=True)


def _bytes_in(folder: Path) -> int:
    files = (Path(path, name) for path, _, names in os.walk(folder) for name in names)
    return sum(file.stat().st_size for file in files)


def _asking(source: Repository | Part, action: Callable[[], _T], work: Path) -> _T:
    """What the hub's client answers, its errors in our words; passing ones are waited out."""

    def ask() -> _T:
        try:
            return action()
        except Exception as error:
            raise _translated(error, source) from error

    return patiently(ask, lambda: _bytes_in(work))


def _translated(error: BaseException, source: Repository | Part) -> BaseException:
    """`DownloadError` or `Passing` for an error of the hub, the network or the disk."""
    errors = _client().errors
    where = f"{source.name} at {source.revision}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    token = "Make a token at https://huggingface.co/settings/tokens and give it as HF_TOKEN."
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
        return _translated(error.__cause__, source)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return DownloadError(
            f"{where} is not complete here, and HF_HUB_OFFLINE forbids the network. Unset it."
        )
    if isinstance(error, errors.GatedRepoError):
        return DownloadError(f"{where} is gated: accept the terms on its page on the hub. {token}")
    if isinstance(error, errors.RevisionNotFoundError):
        return DownloadError(f"{source.name} has no revision {source.revision}. Check --revision.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return DownloadError(f"the hub shows no {where}. If it asks for a token: {token}")
    if status in (401, 403):
        return DownloadError(
            f"the hub refuses {where} ({status}): it wants a token, or the one that you gave is "
            f"invalid or may not read it. {token}"
        )
    if status and 400 <= status < 500 and status not in (408, 425, 429):
        return DownloadError(f"the hub refuses {where}: {said}")
    if isinstance(error, OSError) and error.errno in _DISK:
        return DownloadError(cannot_write(error))
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return DownloadError(f"the hub's certificate is not trusted: {said}. Set SSL_CERT_FILE.")
    if isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "urllib3")):
        return Passing(f"no {where} from the hub: {said}")
    return error


_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}


def _hash(path: Path, algorithm: str, size: int, advance: Callable[[int], None]) -> str:
    """ "sha256:<hex>" of the file, or "git-sha1:<hex>", the name that git gives to its contents."""
    digest = hashlib.sha256()
    if algorithm == "git-sha1":
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            advance(len(chunk))
    return f"{algorithm}:{digest.hexdigest()}"


def _missing_by_names(checkpoint: Path) -> list[str]:
    """What a checkpoint without a record lacks, by its own config.json and index of weights."""
    names = {path.name for path in checkpoint.iterdir()}
    needed = ["config.json"]
    weights = next((group[0] for group in _WEIGHTS if group[0] in names), None)
    try:
        if weights and weights.endswith(".json"):
            index = json.loads((checkpoint / weights).read_bytes())
            needed += sorted(set(index["weight_map"].values()))
        config = json.loads((checkpoint / "config.json").read_bytes())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        config = {}
    tower = config.get("mm_vision_tower")
    needed += ["tokenizer.model" if tower else "preprocessor_config.json"]
    missing = [name for name in needed if name not in names]
    missing += [] if weights else ["weights"]
    if tower and not (checkpoint / tower / "config.json").is_file():
        missing.append(f"its vision tower {tower}")
    return missing


def _commits(parts: Iterable[Part]) -> str:
    return ", ".join(f"{part.name} at commit {part.commit}" for part in parts)


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
    models = list(CHECKPOINTS) if options.model == "all" else [options.model]

    def work() -> None:
        options.download_path.mkdir(parents=True, exist_ok=True)
        for model in models:
            download(model, options.download_path, options.revision)

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
