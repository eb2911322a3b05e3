"""Download the checkpoints of the paper from the Hugging Face hub."""

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import fetching
from fetching import DownloadError, Passing, bytes_of, mismatch

CHECKPOINTS: dict[str, dict[str, Any]] = fetching.TABLE["checkpoints"]

REVISION = ".revisit-revision"
"""The file in a checkpoint that has the revision that was asked for."""

# The formats of weights, best first, as Transformers chooses among them: one is enough.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def why_incomplete(checkpoint: Path, hashes: bool = False) -> str:
    """Which of the files that its config and index name the folder lacks; "" if none.

    With `hashes`, every downloaded file is read and compared with the hash that the hub announced.
    """
    if not checkpoint.is_dir():
        return f"{checkpoint} is missing"
    wrong = _missing(checkpoint) + (_damaged(checkpoint) if hashes else [])
    names = ", ".join(dict.fromkeys(wrong))
    return f"{checkpoint} lacks {names} (missing or damaged)" if names else ""


def download(model: str, parent: Path, revision: str | None = None) -> None:
    """Put the checkpoint of `model`, a key of `CHECKPOINTS`, into `parent`.

    Its folder appears when every file is there and has the hub's hash; until then the files are in
    a folder beside it, and the next call continues there. `revision` is a branch, tag or commit in
    place of the pin of the model's repository. Raises `DownloadError`.
    """
    about = CHECKPOINTS[model]
    checkpoint, work = parent / about["folder"], parent / f".{about['folder']}.making"
    with fetching.lock(parent / f".{about['folder']}.lock"):
        wanted = revision or about["repositories"]["."][1]
        if checkpoint.exists():
            if _is_complete(checkpoint, revision):
                return
            shutil.rmtree(work, ignore_errors=True)
            checkpoint.rename(work)  # no checkpoint before it is whole again
            _remove_damaged(work)
            wanted = _commit(work)
        elif not (work / REVISION).is_file() or (work / REVISION).read_text() != wanted:
            shutil.rmtree(work, ignore_errors=True)  # of another revision
            work.mkdir(parents=True)
            (work / REVISION).write_text(wanted)
        _fetch(work, about, wanted)
        work.rename(checkpoint)
    print(f"{checkpoint} is complete: commit {_commit(checkpoint)}")


def _is_complete(checkpoint: Path, revision: str | None) -> bool:
    """Whether all of it is there; False if files that this program downloaded are damaged."""
    commit, note = _commit(checkpoint), checkpoint / REVISION
    recorded = note.read_text() if note.is_file() else ""
    if commit and revision not in (None, recorded, commit):
        raise DownloadError(
            f"{checkpoint} holds commit {commit} (revision {recorded}), not {revision}. Move it "
            "away, or download elsewhere with --download_path."
        )
    why = why_incomplete(checkpoint, hashes=True)
    if not commit and (why or revision):
        raise DownloadError(
            f"{why or f'{checkpoint} does not say which revision it holds'}. It was not downloaded "
            "by this program and is not touched: move it away and run this again."
        )
    origin = f"commit {commit}" if commit else "put there by hand"
    print(f"{why}. Fetching them again." if why else f"{checkpoint} is complete: {origin}")
    return not why


def _fetch(work: Path, about: dict[str, Any], wanted: str) -> None:
    """Download the files that `work` lacks, and compare the hash of each with the hub's."""

    def have() -> int:
        return sum(bytes_of(path) for path in work.rglob("*"))

    fetching.need_space(work, about["bytes"] - have())

    def attempt() -> None:
        for folder, (name, pin) in about["repositories"].items():
            commit = wanted if folder == "." else pin
            with _hub(name, commit) as hub:
                # Asked by itself, since the download keeps its errors to itself.
                hub.snapshot_download(
                    name,
                    revision=hub.HfApi().model_info(name, revision=commit).sha,
                    local_dir=work / folder,
                    allow_patterns=about["files"],
                    ignore_patterns=["*/*"],
                )
        if missing := _missing(work):
            raise Passing(f"{missing[0]} has not come from the hub")

    fetching.patiently(attempt, have)
    if damaged := _remove_damaged(work):
        raise DownloadError(
            f"these files do not have the hash that the hub announces: {', '.join(damaged)}. They "
            "were thrown away; run this again."
        )


@contextmanager
def _hub(name: str, revision: str) -> Iterator[Any]:
    """The hub's client; its errors become `Passing`, or a `DownloadError` that says what to do."""
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
        message = f"no {name} at {revision} from the hub: {' '.join(str(error).split())}"
        if error.response.status_code in fetching.BUSY:
            raise Passing(message) from error
        raise DownloadError(
            f"{message} Check --revision; where the hub wants a token, make one at "
            "https://huggingface.co/settings/tokens and give it as HF_TOKEN."
        ) from error
    except Exception as error:
        from_network = type(error).__module__.startswith(("httpx", "urllib3", "requests"))
        if from_network or isinstance(error, errors.LocalEntryNotFoundError):
            raise Passing(f"no answer from the hub: {' '.join(str(error).split())}") from error
        raise


def _notes(checkpoint: Path) -> Iterator[tuple[Path, str, str]]:
    """Each file that the hub's client downloaded, its commit, and its hash at the hub.

    The hash is the sha256 of a large file, and git's hash of a small one.
    """
    for note in sorted(checkpoint.rglob(".cache/huggingface/download/*.metadata")):
        commit, tag = note.read_text().splitlines()[:2]
        algorithm = "sha256" if len(tag) == 64 else "git-sha1"
        yield note.parents[3] / note.stem, commit, f"{algorithm}:{tag}"


def _commit(checkpoint: Path) -> str:
    """The commit that was downloaded; "" where somebody else put the checkpoint there."""
    config = checkpoint / "config.json"
    return next((commit for file, commit, _ in _notes(checkpoint) if file == config), "")


def _damaged(checkpoint: Path) -> list[str]:
    """The downloaded files that are missing or have other bytes than the hub announced."""
    return [
        str(file.relative_to(checkpoint))
        for file, _, digest in _notes(checkpoint)
        if not file.is_file() or mismatch(file, digest=digest)
    ]


def _remove_damaged(checkpoint: Path) -> list[str]:
    damaged = _damaged(checkpoint)
    for file in damaged:
        (checkpoint / file).unlink(missing_ok=True)
    return damaged


def _missing(checkpoint: Path) -> list[str]:
    """The files that a checkpoint lacks by its config.json and its index of weights."""
    tower: str | None = _read(checkpoint / "config.json").get("mm_vision_tower")
    needed = ["config.json", "tokenizer.model" if tower else "preprocessor_config.json"]
    weights = next((name for name in _WEIGHTS if (checkpoint / name).is_file()), "weights")
    index = _read(checkpoint / weights) if weights.endswith(".json") else {}
    needed += [weights, *sorted(set(index.get("weight_map", {}).values()))]
    missing = [name for name in needed if not (checkpoint / name).is_file()]
    if tower and not (checkpoint / tower / "config.json").is_file():
        missing.append(f"its vision tower {tower}")
    return missing


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where it is missing or damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _stop(*_: object) -> NoReturn:
    print(fetching.STOPPED, file=sys.stderr, flush=True)
    os._exit(130)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(
        description="Download a checkpoint from the Hugging Face hub, LLaVA-1.5's vision tower "
        "included: only the files that are read, at a pinned commit, each compared with the hub's "
        "hash. A run that was cut goes on where it stopped; what is complete is only checked, "
        "without a network. The commit is recorded in the checkpoint, and kept to.",
    )
    flag = parser.add_argument
    text = "llava: liuhaotian/llava-v1.5-7b (15 GB); qwen: Qwen/Qwen2.5-VL-7B-Instruct (17 GB)"
    flag("--model", choices=[*CHECKPOINTS, "all"], required=True, help=text)
    text = "the folder that gets the checkpoint's (default: where the scripts look, %(default)s)"
    flag("--download_path", type=Path, default=fetching.HERE, help=text)
    text = "a branch, tag or commit of the model's repository (default: the pin); for one model"
    flag("--revision", help=text)
    options = parser.parse_args(arguments)
    if options.model == "all" and options.revision:
        parser.error("--revision belongs to one model: give --model llava or --model qwen")
    # Plain HTTP continues within a cut file; the hub's protocol Xet may not.
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    # The client's threads would finish their files first; what they wrote is kept.
    signal.signal(signal.SIGINT, _stop)

    def work() -> None:
        options.download_path.mkdir(parents=True, exist_ok=True)
        for model in CHECKPOINTS if options.model == "all" else [options.model]:
            download(model, options.download_path, options.revision)

    return fetching.run(work)


if __name__ == "__main__":
    sys.exit(main())
