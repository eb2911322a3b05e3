"""A loaded model that answers questions about images, as the evaluation asks it.

`revisit.commands.engines` has captioners of Transformers, of vLLM and of servers; a family's script
adds how its model is loaded and how its inputs are made.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from PIL import Image

from revisit.evaluation import EvaluationError
from revisit.evaluation.run import Run


class Answer(NamedTuple):
    """A model's answer."""

    text: str
    tokens: int
    """The new tokens that were decoded, up to and with the one that ends the answer."""


class UnusableImages(Exception):
    """Some images of a batch that the model cannot take; the others it can."""

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__(f"images that cannot be used: {reasons}")
        self.reasons = reasons
        """An image's index in the batch -> what is wrong with it."""


class Captioner(Protocol):
    """A loaded model that decodes as a run says.

    One that batches by itself, and is faster with more tasks than `Place.batch_size` at once, has
    an attribute `batch_size`: an int, which counts instead.
    """

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings besides the run's that decide the answers, such as the prompt template.

        Values are JSON values. A rerun whose captioner has other settings is refused.
        """

    def decode(self, run: Run) -> None:
        """Decode from now on as this run says, which differs in nothing but decoder and seed.

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


def unusable_images(
    error: Exception,
    images: Sequence[Image.Image | None],
    take: Callable[[int, Image.Image], object],
) -> UnusableImages:
    """The images that made a batch fail: those that fail alone, where a plain image does not.

    Args:
        error: what the batch failed with. It is raised again where no image is the cause: where
            memory is short, every image fails, or none does.
        take: reads an image with the question at an index of the batch, or raises.
    """
    reasons = {}
    if not _out_of_memory(error):
        for index, image in enumerate(images):
            if image is None:
                continue
            try:
                take(index, image)
            except Exception as reason:
                if _out_of_memory(reason):
                    raise
                reasons[index] = str(reason) or type(reason).__name__
    if not reasons:
        raise error
    try:
        take(min(reasons), Image.new("RGB", (224, 224), "grey"))
    except Exception:
        raise error from None
    return UnusableImages(reasons)


def _out_of_memory(error: Exception) -> bool:
    import torch

    out_of_memory = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
    return out_of_memory or "alloc" in str(error) or "out of memory" in str(error)
