"""A model's answers to tasks, in batches; a rerun continues where an earlier one stopped.

Here are the batches and their seeds, images that cannot be read, the progress bar, and how a run
ends.
"""

import hashlib
import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from revisit.evaluation import EvaluationError
from revisit.evaluation.answer_files import record_path
from revisit.evaluation.benchmarks.benchmark import Task
from revisit.evaluation.captioner import Captioner, Load, UnusableImages, loading
from revisit.evaluation.images import ImageError, open_image
from revisit.evaluation.record import new_start, peak_bytes
from revisit.evaluation.run import Run
from revisit.evaluation.store import AnswerStore

_LOG = logging.getLogger("revisit")


class Outcome(NamedTuple):
    """How a run ended."""

    status: int
    """The exit status: 0 when nothing is missing, 1 when the model failed on a batch, or images
    cannot be read. Of several processes the one that ends last reports the images."""
    whole: bool
    """Whether the file has every answer there will be, and this process goes on with it."""


def answer_tasks(load: Load, tasks: Sequence[Task], store: AnswerStore, run: Run) -> Outcome:
    """Answer the tasks that have no answer in the store yet, and report how many have one.

    The store has agreed to the settings already. `load` is called where an answer is missing.
    """
    store.record["failed"] = []
    batch_size = run.place.batch_size
    if any(task.key not in store.answers for task in tasks):
        with loading(run.model_path):
            captioner = load(run)
        store.agree("captioner", captioner.settings)
        batch_size = getattr(captioner, "batch_size", batch_size)
        share = _batches(tasks, batch_size)[run.process.rank :: run.process.world_size]
        try:
            _answer_batches(captioner, share, store, run)
        except EvaluationError:
            raise
        except Exception as error:
            _report_stop(error, store, tasks)
            return Outcome(1, False)
    ranks = {
        task.key: number % run.process.world_size
        for number, batch in enumerate(_batches(tasks, batch_size))
        for task in batch
    }
    whole = store.finish(ranks)
    if whole:
        _report(store, tasks)
    return Outcome(int(whole and bool(store.record["failed"])), whole)


def _batches(tasks: Sequence[Task], size: int) -> list[Sequence[Task]]:
    return [tasks[start : start + size] for start in range(0, len(tasks), size)]


def _answer_batches(
    captioner: Captioner, batches: Sequence[Sequence[Task]], store: AnswerStore, run: Run
) -> None:
    """Answer this process's batches.

    A batch is the same neighbours, with the same seed, in every run and whatever the number of
    processes: where a rerun finds half of one done it decodes all of it again, and gets what one
    run of one process gets.
    """
    start = new_start(run, store.form.texts)
    store.record.setdefault("runs", []).append(start)
    missing = [[task for task in batch if task.key not in store.answers] for batch in batches]
    total = sum(map(len, batches))
    with (
        logging_redirect_tqdm([_LOG]),
        tqdm(
            total=total,
            initial=total - sum(map(len, missing)),
            unit=store.form.unit,
            desc=str(run.process) if run.process.world_size > 1 else None,
            disable=run.process.rank > 0,  # the first process shows about how far all are
        ) as progress,
    ):
        for batch, unanswered in zip(batches, missing, strict=True):
            if not unanswered:
                continue
            errors = _answer_batch(captioner, batch, store, run, start)
            for task in unanswered:
                if task.image is not None and (error := errors.get(task.image)):
                    _LOG.info("%s: %s", task.image, error)
                    entry = {**store.form.ids(task.key), "file": task.image, "error": error}
                    store.record["failed"].append(entry)
            store.save_record()
            progress.update(len(unanswered))


def _answer_batch(
    captioner: Captioner,
    batch: Sequence[Task],
    store: AnswerStore,
    run: Run,
    start: dict[str, Any],
) -> dict[str, str]:
    """Answer the tasks of a batch. Returns the errors of images that cannot be used, by name."""
    import torch

    images, errors = _open_images(batch, run, start)
    while True:
        usable = [task for task in batch if task.image is None or task.image in images]
        if all(task.key in store.answers for task in usable):
            return errors
        torch.manual_seed(_batch_seed(run.seed, batch, store))
        began = time.perf_counter()
        shown = [None if task.image is None else images[task.image] for task in usable]
        try:
            answers = captioner.answer(shown, [task.question for task in usable])
        except UnusableImages as unusable:
            for index, reason in unusable.reasons.items():
                name = str(usable[index].image)
                images.pop(name, None)
                errors[name] = reason
            continue
        start["seconds"] += time.perf_counter() - began
        start["tokens"] += sum(answer.tokens for answer in answers)
        start["peak_bytes"] = peak_bytes(run.place.device)
        for task, answer in zip(usable, answers, strict=True):
            if task.key not in store.answers:
                store.append(task.key, answer.text)
                start[store.form.texts] += 1


def _open_images(
    batch: Sequence[Task], run: Run, start: dict[str, Any]
) -> tuple[dict[str, Image.Image], dict[str, str]]:
    """The RGB images that can be read, and the errors of the others, both by name."""
    images, errors = {}, {}
    for name in {task.image for task in batch if task.image is not None}:
        try:
            images[name], notes = open_image(run.benchmark.data_path / name)
            if notes:
                start["changed_images"][name] = notes
        except ImageError as error:
            errors[name] = str(error)
    return images, errors


def _batch_seed(seed: int, batch: Sequence[Task], store: AnswerStore) -> int:
    # A batch of captions has the seed that its images' names gave before there were questions.
    names = [task.image if store.form.text == "caption" else task.key for task in batch]
    digest = hashlib.sha256(f"{seed}\n{names}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _report_stop(error: Exception, store: AnswerStore, tasks: Sequence[Task]) -> None:
    _LOG.error(
        "stopped by %s: %s\n%d of %d %s are in %s; the same command continues (out of memory: with "
        "a smaller --batch_size)",
        type(error).__name__,
        error,
        len(store.answers),
        len(tasks),
        store.form.texts,
        store.path,
        exc_info=error,
    )


def _report(store: AnswerStore, tasks: Sequence[Task]) -> None:
    print(f"{len(store.answers)} of {len(tasks)} {store.form.texts} in {store.path}", flush=True)
    if failed := store.record["failed"]:
        _LOG.warning(
            "%d images could not be read or used, and have no %s; they are listed in %s, and the "
            "same command tries them again",
            len({entry["file"] for entry in failed}),
            store.form.text,
            record_path(store.path),
        )
