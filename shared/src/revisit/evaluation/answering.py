"""What every evaluation of a model shares: tasks are answered in batches, and a rerun goes on.

A task is a question about an image. Captioning (`revisit.evaluation.captioning`) asks one question
about many images, POPE (`revisit.evaluation.polling`) many questions about each.

A captioner is a loaded model that answers. A family's script stays thin: it says how to load its
model and how to make the model's inputs. Everything else is here: batches and their seeds, images
that cannot be read, the progress bar, the record of what made the answers, and how a run ends.
"""

import argparse
import hashlib
import platform
import re
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image
from tqdm import tqdm

from revisit import __version__
from revisit.evaluation import EvaluationError
from revisit.evaluation.captions import CAPTIONS, CaptionStore
from revisit.evaluation.flags import decoder_settings, decoding_arguments
from revisit.evaluation.images import ImageError, open_image

# Files of a model folder that decide what the model says.
_MODEL_FILES = {".bin", ".jinja", ".json", ".model", ".pt", ".safetensors", ".txt"}


class Task(NamedTuple):
    """A question about an image."""

    key: int | str
    """The image's id for a caption, the question's for an answer: one task has it."""
    image: str
    """A file's name, in `--data_path`."""
    question: str


class Answer(NamedTuple):
    """What the model said."""

    text: str
    tokens: int
    """The new tokens that were decoded, up to and with the one that ends the answer."""


class UnusableImages(Exception):
    """Some images of a batch that the model cannot take; the others it can."""

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__(f"images that cannot be used: {reasons}")
        self.reasons = reasons
        """By an image's place in the batch, what is wrong with it."""


def unusable_images(
    error: Exception, images: Sequence[Image.Image], take: Callable[[int, Image.Image], object]
) -> UnusableImages:
    """The images that an error of a batch is about: those that fail alone, where a plain one does
    not.

    Args:
        error: what the batch failed with. It is raised again where it is of no image: where memory
            is short, every image fails, or none does.
        take: reads an image with the question at a place of the batch, or raises.
    """
    reasons = {}
    if not _out_of_memory(error):
        for place, image in enumerate(images):
            try:
                take(place, image)
            except Exception as why:
                if _out_of_memory(why):
                    raise
                reasons[place] = str(why) or type(why).__name__
    if not reasons:
        raise error
    try:
        take(min(reasons), Image.new("RGB", (224, 224), "grey"))
    except Exception:
        raise error from None
    return UnusableImages(reasons)


def _out_of_memory(error: Exception) -> bool:
    import torch

    short = (MemoryError, torch.cuda.OutOfMemoryError)
    return isinstance(error, short) or "alloc" in str(error) or "out of memory" in str(error)


class Captioner(Protocol):
    """A loaded model with the decoding settings of the command line applied.

    One that is better given more tasks at once than `--batch_size`, since it batches by itself, has
    an attribute `batch_size`: an int, which counts instead.
    """

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the answers and is no flag: prompt template, revision of a hub model...

        Values are JSON values. A rerun whose captioner has other settings is refused.
        """

    def decode(self, args: argparse.Namespace) -> None:
        """Decode from now on as these settled flags say, which differ in nothing but decoding.

        Raises as `Load` does.
        """

    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> Sequence[Answer]:
        """The answer to each question about the RGB image beside it, in order.

        There are as many questions as images, at most a batch. The random generators of torch are
        seeded before each call: draw from no other. `UnusableImages` has the batch done again
        without them. Another exception ends the run; the answers of earlier batches are kept.
        """


Load = Callable[[argparse.Namespace], Captioner]
"""Loads a model as settled flags say: in them `model_path` is the str given; `device` is "cpu",
"cuda", "cuda:N" or "auto" (Transformers' `device_map="auto"`); `dtype` a torch dtype's name; `seed`
an int; the decoding flags are best read by the functions of `revisit.evaluation.flags`.

An `OSError` or `ValueError` ends the program with its message: say there what is wrong with the
checkpoint, or with a flag that only the model can judge (a layer out of its range).
"""


def exit_status(program: str, run: Callable[[], int]) -> int:
    """What `run` returns; 2 after the message of an `EvaluationError`, 130 on Ctrl-C."""
    try:
        return run()
    except EvaluationError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130


@contextmanager
def loading(model_path: str) -> Iterator[None]:
    """Turn what a model's loading raises into an `EvaluationError` that names the model."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise EvaluationError(f"cannot load {model_path}: {error}") from error


def settle_dtype(args: argparse.Namespace, own_dtype: Callable[[str], str]) -> None:
    """Let `args.dtype` be what `auto` means for this model; `own_dtype` raises as `load` does."""
    if args.dtype == "auto":
        with loading(args.model_path):
            args.dtype = own_dtype(args.model_path)


def common_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What decides the answers, as far as the flags say it that all evaluations have."""
    settings: dict[str, Any] = {
        "model": _fingerprint(args.model_path),
        "dtype": args.dtype,
        "data_path": str(args.data_path.resolve()),
        "seed": args.seed,
        **decoding_arguments(args),
        **decoder_settings(args),
        **{f"{name} version": version(name) for name in ("torch", "transformers")},
        "revisit version": __version__,
    }
    if args.do_sample or args.revisit_selection == "random":
        settings["batch_size"] = args.batch_size  # rows of a batch share a stream of draws
    return settings


def _fingerprint(model_path: str) -> dict[str, str | None]:
    """Name and digest of a model folder: names, sizes, first and last MiB of its files."""
    folder = Path(model_path)
    if not folder.is_dir():
        return {"name": model_path, "sha256": None}
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in _MODEL_FILES and path.is_file():
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder)}\n{size}\n".encode())
            with path.open("rb") as file:
                digest.update(file.read(2**20))
                file.seek(max(2**20, size - 2**20))
                digest.update(file.read())
    return {"name": folder.resolve().name, "sha256": digest.hexdigest()}


class Outcome(NamedTuple):
    """How a run ended."""

    status: int
    """The exit status: 0 when nothing is missing, 1 when the model failed on a batch, or images
    cannot be read. Of several processes the one that ends last speaks of the images."""
    whole: bool
    """Whether the file is whole, and this process is the one that goes on with it."""


def answer_tasks(
    load: Callable[[], Captioner],
    tasks: Sequence[Task],
    store: CaptionStore,
    args: argparse.Namespace,
) -> Outcome:
    """Answer the tasks that have no answer in the store yet, and say how far it came.

    The store has agreed to the settings already. `load` is called where an answer is missing.
    """
    store.record["failed"] = []
    size = args.batch_size
    if any(task.key not in store.texts for task in tasks):
        with loading(args.model_path):
            captioner = load()
        store.agree("captioner", captioner.settings)
        size = getattr(captioner, "batch_size", size)
        try:
            mine = _batches(tasks, size)[args.process.rank :: args.process.world_size]
            _answer(captioner, mine, store, args)
        except EvaluationError:
            raise
        except Exception as error:
            _report_stop(error, store, tasks)
            return Outcome(1, False)
    shares = {
        task.key: number % args.process.world_size
        for number, batch in enumerate(_batches(tasks, size))
        for task in batch
    }
    whole = store.finish(shares)
    if whole:
        _report(store, tasks)
    return Outcome(int(whole and bool(store.record["failed"])), whole)


def _batches(tasks: Sequence[Task], size: int) -> list[Sequence[Task]]:
    return [tasks[start : start + size] for start in range(0, len(tasks), size)]


def _answer(
    captioner: Captioner,
    batches: Sequence[Sequence[Task]],
    store: CaptionStore,
    args: argparse.Namespace,
) -> None:
    """Answer this process's batches.

    A batch is the same neighbours, with the same seed, in every run and whatever the number of
    processes: where a rerun finds half of one done it decodes all of it again, and gets what one
    run of one process gets.
    """
    import torch

    run = _new_run(args, store)
    store.record.setdefault("runs", []).append(run)
    missing = [[task for task in batch if task.key not in store.texts] for batch in batches]
    asked, left = sum(map(len, batches)), sum(map(len, missing))
    with tqdm(
        total=asked,
        initial=asked - left,
        unit=store.form.unit,
        desc=str(args.process) if args.process.world_size > 1 else None,
        disable=args.process.rank > 0,  # the first tells how far about all of them are
    ) as progress:
        for batch, lacking in zip(batches, missing, strict=True):
            if not lacking:
                continue
            images, errors = _open({task.image for task in batch}, args.data_path, run)
            while any(task.image in images for task in lacking):
                sound = [task for task in batch if task.image in images]
                torch.manual_seed(_batch_seed(args.seed, batch, store))
                began = time.perf_counter()
                try:
                    answers = captioner.answer(
                        [images[task.image] for task in sound], [task.question for task in sound]
                    )
                except UnusableImages as unusable:
                    for place, why in unusable.reasons.items():
                        images.pop(sound[place].image, None)
                        errors[sound[place].image] = why
                    continue
                run["seconds"] += time.perf_counter() - began
                run["tokens"] += sum(answer.tokens for answer in answers)
                run["peak_bytes"] = _peak_bytes(args.device)
                for task, answer in zip(sound, answers, strict=True):
                    if task.key not in store.texts:
                        store.append(task.key, answer.text)
                        run[store.form.noun] += 1
                break
            for task in lacking:
                if error := errors.get(task.image):
                    progress.write(f"{task.image}: {error}", file=sys.stderr)
                    entry = {store.form.key: task.key, "file": task.image, "error": error}
                    store.record["failed"].append(entry)
            store.save_record()
            progress.update(len(lacking))


def _new_run(args: argparse.Namespace, store: CaptionStore) -> dict[str, Any]:
    """An entry of the record. `tokens` were decoded in `seconds`, those of answers that were there
    already included; loading the model and reading the images take none of them."""
    import torch

    _forget_peak(args.device)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "model_path": args.model_path,
        # Each of several processes has a GPU of its own.
        "device": args.device.split(":")[0] if args.process.world_size > 1 else args.device,
        "processor": _processor(args.device),
        "threads": torch.get_num_threads(),
        "process": args.process.rank,
        "processes": args.process.world_size,
        "batch_size": args.batch_size,
        "python": platform.python_version(),
        "changed_images": {},  # what `open_image` did to some, by their files
        store.form.noun: 0,
        "tokens": 0,
        "seconds": 0.0,
        "peak_bytes": 0,
        "peak_bytes_of": "GPU" if _gpus(args.device) else "process",
    }


def _gpus(device: str) -> list[str]:
    """The GPUs that the model is on."""
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return []
    every = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return every if device == "auto" else [device]


def _processor(device: str) -> str:
    """What computes, by its maker's name."""
    import torch

    if gpus := _gpus(device):
        return ", ".join(map(torch.cuda.get_device_name, gpus))
    names = Path("/proc/cpuinfo")
    told = names.read_text() if names.exists() else ""
    model = re.search(r"^model name\s*: (.*)$", told, re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


def _forget_peak(device: str) -> None:
    """Let `_peak_bytes` begin anew: of a sweep, other runs came before in this process."""
    import torch

    for gpu in (gpus := _gpus(device)):
        torch.cuda.reset_peak_memory_stats(gpu)
    if not gpus and sys.platform == "linux":
        with suppress(OSError):  # where it may not be written, it stays the process's own
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _peak_bytes(device: str) -> int:
    """On a GPU the most that tensors took since the run began, on all of its GPUs together; on the
    CPU the most that the process had in memory, on Linux since the run began."""
    import torch

    if gpus := _gpus(device):
        return sum(map(torch.cuda.max_memory_allocated, gpus))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _open(
    names: Iterable[str], folder: Path, run: dict[str, Any]
) -> tuple[dict[str, Image.Image], dict[str, str]]:
    """By name, the RGB images that can be read, and what is wrong with the others."""
    images, errors = {}, {}
    for name in names:
        try:
            images[name], notes = open_image(folder / name)
            if notes:
                run["changed_images"][name] = notes
        except ImageError as error:
            errors[name] = str(error)
    return images, errors


def _batch_seed(seed: int, batch: Sequence[Task], store: CaptionStore) -> int:
    # A batch of captions is known by its images' names, as it was before there were questions.
    names = [task.image if store.form is CAPTIONS else task.key for task in batch]
    digest = hashlib.sha256(f"{seed}\n{names}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _report_stop(error: Exception, store: CaptionStore, tasks: Sequence[Task]) -> None:
    traceback.print_exc()
    print(
        f"stopped by {type(error).__name__}: {error}\n"
        f"{len(store.texts)} of {len(tasks)} {store.form.noun} are in {store.path}; the same "
        "command continues (out of memory: with a smaller --batch_size)",
        file=sys.stderr,
    )


def _report(store: CaptionStore, tasks: Sequence[Task]) -> None:
    print(f"{len(store.texts)} of {len(tasks)} {store.form.noun} in {store.path}")
    if failed := store.record["failed"]:
        lacking = len({entry["file"] for entry in failed})
        print(
            f"WARNING: {lacking} images could not be read or used, and have no {store.form.text}; "
            f"they are listed in {store.record_path}, and the same command tries them again",
            file=sys.stderr,
        )
