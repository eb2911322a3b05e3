"""A model's answers to tasks, in batches; a rerun goes on where an earlier one stopped.

A captioner is a loaded model that answers. `revisit.commands.engines` has those of Transformers, of
vLLM and of servers; a family's script adds how its model is loaded and how its inputs are made.
Here are batches and their seeds, images that cannot be read, the progress bar, the record of what
made the answers, and how a run ends.
"""

import hashlib
import logging
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import psutil
from PIL import Image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from revisit import __version__
from revisit.config import ReVisiTConfig
from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks.benchmark import Task
from revisit.evaluation.images import ImageError, open_image
from revisit.evaluation.run import Run, decoder_settings
from revisit.evaluation.store import VERSION, AnswerStore, record_path

# Files of a model folder that decide what the model says.
_MODEL_FILES = {".bin", ".jinja", ".json", ".model", ".pt", ".safetensors", ".txt"}

_LOG = logging.getLogger("revisit")


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
    error: Exception,
    images: Sequence[Image.Image | None],
    take: Callable[[int, Image.Image], object],
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
            if image is None:
                continue
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
    """A loaded model that decodes as a run says.

    One that is better given more tasks at once than `Place.batch_size`, since it batches by itself,
    has an attribute `batch_size`: an int, which counts instead.
    """

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the answers beside the run: prompt template, revision of a hub model...

        Values are JSON values. A rerun whose captioner has other settings is refused.
        """

    def decode(self, run: Run) -> None:
        """Decode from now on as this run says, which differs in nothing but decoding and seed.

        Raises as `Load` does.
        """

    def answer(
        self, images: Sequence[Image.Image | None], questions: Sequence[str]
    ) -> Sequence[Answer]:
        """The answer to each question about the RGB image beside it, in order; None is no image.

        There are as many questions as images, at most a batch. The random generators of torch are
        seeded before each call: draw from no other. `UnusableImages` has the batch done again
        without them. Another exception ends the run; the answers of earlier batches are kept.
        """


Load = Callable[[Run], Captioner]
"""Loads the model of a run, which decodes as the run says; device and dtype are settled.

An `OSError` or `ValueError` ends the program with its message: say there what is wrong with the
checkpoint, or with a setting that only the model can judge (a layer out of its range).
"""


@contextmanager
def loading(model_path: str) -> Iterator[None]:
    """Turn what a model's loading raises into an `EvaluationError` that names the model."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise EvaluationError(f"cannot load {model_path}: {error}") from error


def common_settings(run: Run) -> dict[str, Any]:
    """What decides the answers, as far as the run says it whatever the benchmark."""
    settings: dict[str, Any] = {
        "model": _fingerprint(run.model_path),
        "dtype": run.place.dtype or "the server's",
        "data_path": str(run.benchmark.data_path.resolve()),
        "seed": run.seed,
        **run.generation.arguments(),
        **decoder_settings(run.decoder),
        **{f"{name} version": version(name) for name in ("torch", "transformers")},
        VERSION: __version__,
    }
    drawn = isinstance(run.decoder, ReVisiTConfig) and run.decoder.selection == "random"
    if run.generation.do_sample or drawn:
        settings["batch_size"] = run.place.batch_size  # rows of a batch share a stream of draws
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


def answer_tasks(load: Load, tasks: Sequence[Task], store: AnswerStore, run: Run) -> Outcome:
    """Answer the tasks that have no answer in the store yet, and say how far it came.

    The store has agreed to the settings already. `load` is called where an answer is missing.
    """
    store.record["failed"] = []
    size = run.place.batch_size
    if any(task.key not in store.texts for task in tasks):
        with loading(run.model_path):
            captioner = load(run)
        store.agree("captioner", captioner.settings)
        size = getattr(captioner, "batch_size", size)
        try:
            mine = _batches(tasks, size)[run.process.rank :: run.process.world_size]
            _answer(captioner, mine, store, run)
        except EvaluationError:
            raise
        except Exception as error:
            _report_stop(error, store, tasks)
            return Outcome(1, False)
    shares = {
        task.key: number % run.process.world_size
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
    captioner: Captioner, batches: Sequence[Sequence[Task]], store: AnswerStore, run: Run
) -> None:
    """Answer this process's batches.

    A batch is the same neighbours, with the same seed, in every run and whatever the number of
    processes: where a rerun finds half of one done it decodes all of it again, and gets what one
    run of one process gets.
    """
    start = _new_start(run, store)
    store.record.setdefault("runs", []).append(start)
    missing = [[task for task in batch if task.key not in store.texts] for batch in batches]
    asked, left = sum(map(len, batches)), sum(map(len, missing))
    with (
        logging_redirect_tqdm([_LOG]),
        tqdm(
            total=asked,
            initial=asked - left,
            unit=store.form.unit,
            desc=str(run.process) if run.process.world_size > 1 else None,
            disable=run.process.rank > 0,  # the first tells how far about all of them are
        ) as progress,
    ):
        for batch, lacking in zip(batches, missing, strict=True):
            if not lacking:
                continue
            errors = _answer_batch(captioner, batch, store, run, start)
            for task in lacking:
                if task.image is not None and (error := errors.get(task.image)):
                    _LOG.info("%s: %s", task.image, error)
                    entry = {**store.form.ids(task.key), "file": task.image, "error": error}
                    store.record["failed"].append(entry)
            store.save_record()
            progress.update(len(lacking))


def _answer_batch(
    captioner: Captioner,
    batch: Sequence[Task],
    store: AnswerStore,
    run: Run,
    start: dict[str, Any],
) -> dict[str, str]:
    """Answer what a batch lacks; by its name, what is wrong with an image that cannot be used."""
    import torch

    names = {task.image for task in batch if task.image is not None}
    images, errors = _open(names, run.benchmark.data_path, start)
    while True:
        sound = [task for task in batch if task.image is None or task.image in images]
        if all(task.key in store.texts for task in sound):
            return errors
        torch.manual_seed(_batch_seed(run.seed, batch, store))
        began = time.perf_counter()
        shown = [None if task.image is None else images[task.image] for task in sound]
        try:
            answers = captioner.answer(shown, [task.question for task in sound])
        except UnusableImages as unusable:
            for place, why in unusable.reasons.items():
                name = str(sound[place].image)
                images.pop(name, None)
                errors[name] = why
            continue
        start["seconds"] += time.perf_counter() - began
        start["tokens"] += sum(answer.tokens for answer in answers)
        start["peak_bytes"] = _peak_bytes(run.place.device)
        for task, answer in zip(sound, answers, strict=True):
            if task.key not in store.texts:
                store.append(task.key, answer.text)
                start[store.form.texts] += 1


def _new_start(run: Run, store: AnswerStore) -> dict[str, Any]:
    """An entry of the record. `tokens` were decoded in `seconds`, those of answers that were there
    already included; loading the model and reading the images take none of them."""
    import torch

    device, processes = run.place.device or "cpu", run.process.world_size
    _forget_peak(device)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "model_path": run.model_path,
        # Each of several processes has a GPU of its own.
        "device": device.split(":")[0] if processes > 1 else device,
        "processor": _processor(device),
        "threads": torch.get_num_threads(),
        "process": run.process.rank,
        "processes": processes,
        "batch_size": run.place.batch_size,
        "python": platform.python_version(),
        "changed_images": {},  # what `open_image` did to some, by their files
        store.form.texts: 0,
        "tokens": 0,
        "seconds": 0.0,
        "peak_bytes": 0,
        "peak_bytes_of": "GPU" if _gpus(device) else "process",
    }


def _gpus(device: str | None) -> list[str]:
    """The GPUs that the model is on."""
    import torch

    if device in ("cpu", None) or not torch.cuda.is_available():
        return []
    every = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return every if device == "auto" else [str(device)]


def _processor(device: str) -> str:
    """What computes, by its maker's name."""
    import torch

    if gpus := _gpus(device):
        return ", ".join(map(torch.cuda.get_device_name, gpus))
    names = Path("/proc/cpuinfo")
    known = names.read_text() if names.exists() else ""
    model = re.search(r"^model name\s*: (.*)$", known, re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


def _forget_peak(device: str) -> None:
    """Let `_peak_bytes` begin anew: of a sweep, other runs came before in this process."""
    import torch

    for gpu in (gpus := _gpus(device)):
        torch.cuda.reset_peak_memory_stats(gpu)
    if not gpus and sys.platform == "linux":
        with suppress(OSError):  # where it may not be written, it stays the process's own
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _peak_bytes(device: str | None) -> int:
    """On a GPU the most that tensors took since the run began, on all of its GPUs together; on the
    CPU the most that the process had in memory: on Linux since the run began, on Windows since the
    process began. Elsewhere nobody counts it, and it is what the process has now."""
    import torch

    if gpus := _gpus(device):
        return sum(map(torch.cuda.max_memory_allocated, gpus))
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    memory = psutil.Process().memory_info()
    return 1024 * int(peak[1]) if peak else getattr(memory, "peak_wset", memory.rss)


def _open(
    names: Iterable[str], folder: Path, start: dict[str, Any]
) -> tuple[dict[str, Image.Image], dict[str, str]]:
    """By name, the RGB images that can be read, and what is wrong with the others."""
    images, errors = {}, {}
    for name in names:
        try:
            images[name], notes = open_image(folder / name)
            if notes:
                start["changed_images"][name] = notes
        except ImageError as error:
            errors[name] = str(error)
    return images, errors


def _batch_seed(seed: int, batch: Sequence[Task], store: AnswerStore) -> int:
    # A batch of captions is known by its images' names, as it was before there were questions.
    names = [task.image if store.form.text == "caption" else task.key for task in batch]
    digest = hashlib.sha256(f"{seed}\n{names}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _report_stop(error: Exception, store: AnswerStore, tasks: Sequence[Task]) -> None:
    _LOG.error(
        "stopped by %s: %s\n%d of %d %s are in %s; the same command continues (out of memory: with "
        "a smaller --batch_size)",
        type(error).__name__,
        error,
        len(store.texts),
        len(tasks),
        store.form.texts,
        store.path,
        exc_info=error,
    )


def _report(store: AnswerStore, tasks: Sequence[Task]) -> None:
    print(f"{len(store.texts)} of {len(tasks)} {store.form.texts} in {store.path}", flush=True)
    if failed := store.record["failed"]:
        _LOG.warning(
            "%d images could not be read or used, and have no %s; they are listed in %s, and the "
            "same command tries them again",
            len({entry["file"] for entry in failed}),
            store.form.text,
            record_path(store.path),
        )
