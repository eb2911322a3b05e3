"""What every benchmark says of itself: its data, what it asks, and how its answers are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from revisit.evaluation import EvaluationError

if TYPE_CHECKING:  # NumPy is loaded where something is counted: --help needs none
    import numpy as np
    from numpy.typing import NDArray

Key = int | str | tuple[int | str, ...]
"""What a task and its answer have in common: an id, or several."""


ONE_WORD = " Please answer this question with one word."
"""What stands behind a question of yes and no in the published code of VCD."""


class Task(NamedTuple):
    """A question, about an image or about none."""

    key: Key
    image: str | None
    """A file's name in `data_path`."""
    question: str


@dataclass(frozen=True)
class Form:
    """A file of answers: JSON Lines with an id, or several, and a text."""

    file: str
    keys: tuple[str, ...]
    text: str
    unit: str
    """What a task is, for the progress bar."""

    @property
    def texts(self) -> str:
        """What the answers are called."""
        return f"{self.text}s"

    def key_of(self, entry: Mapping[str, Any]) -> Key:
        """The key of a line; raises KeyError where an id lacks."""
        return entry[self.keys[0]] if len(self.keys) == 1 else tuple(entry[k] for k in self.keys)

    def ids(self, key: Key) -> dict[str, int | str]:
        """A key as the ids of a line."""
        return dict(zip(self.keys, key if isinstance(key, tuple) else (key,), strict=True))

    def shown(self, key: Key) -> str:
        """A key in a message: `image_id 7`."""
        return ", ".join(f"{name} {value}" for name, value in self.ids(key).items())


class Columns(NamedTuple):
    """What is counted, and the metrics of the counts: the columns of a table."""

    things: str
    """What the counts are of, and what intervals draw from: "images"."""
    metrics: tuple[str, ...]
    measure: Callable[[NDArray[Any]], NDArray[np.float64]]
    """Counts (..., columns), summed over things -> metrics (metrics, ...), fractions of 1."""
    shown: tuple[str, str]
    """The two metrics that a plot shows."""
    lower: frozenset[str] = frozenset()
    """The metrics of which less is better."""
    unit: str = "Percent"
    """Of the numbers of a table."""


class Counted(NamedTuple):
    """A saved result as a comparison reads it."""

    things: list[Any]
    """The ids of what was counted."""
    counts: NDArray[np.int64]
    """(things, columns)."""
    truth: Mapping[str, Any]
    """What was scored against, by how a message calls it."""
    conditions: Mapping[str, Any]
    """What has to be the same in all results."""
    record: Mapping[str, Any]
    """Of the run that made the answers; empty where there is none."""


class Section(NamedTuple):
    """Tasks whose answers are one file, which has one score."""

    name: str
    """Of its folder; empty where a benchmark has one section."""
    tasks: list[Task]
    settings: Mapping[str, Any]
    """What decides the answers, beside what the run says."""


@dataclass(frozen=True, kw_only=True)
class Benchmark(ABC):
    """A benchmark and its data. A subclass has a field for each of its flags.

    Args:
        data_path: folder of the images.
    """

    name: ClassVar[str]
    """Of the command, and of the result: NAME.json beside the answers."""
    form: ClassVar[Form]
    columns: ClassVar[Columns]
    max_new_tokens: ClassVar[int] = 512
    """Of an answer, where the user gives no number."""
    without_images: ClassVar[bool] = False
    """Whether some questions are about no image: there, ReVisiT decodes plainly."""

    data_path: Path

    @property
    def prefix(self) -> str:
        """How the name of a run's folder begins."""
        return f"{self.name}-"

    @property
    def scored(self) -> bool:
        """Whether the answers are scored."""
        return True

    @abstractmethod
    def sections(self, seed: int) -> list[Section]:
        """What is asked, read from the data.

        Raises `EvaluationError` where the data is not there, or is not the benchmark's, or scoring
        lacks something.
        """

    def resume(self, section: Section, record: dict[str, Any], answers: Path) -> list[Task]:
        """The tasks of a section whose file of answers has this record, which may be added to.

        Raises `EvaluationError` where the record is of other data.
        """
        return section.tasks

    @abstractmethod
    def score(self, section: Section, answers: Path) -> dict[str, Any]:
        """The result of a whole file of answers, as it is saved: a dictionary with `benchmark`,
        `overall_metrics` (fractions of 1 by name), and what `counted` needs.

        Raises `EvaluationError` where the answers cannot be scored.
        """

    @staticmethod
    @abstractmethod
    def counted(saved: Mapping[str, Any]) -> Counted:
        """What a result that `score` made counts, in the order of the ids.

        Raises `EvaluationError` where it fits no run, and KeyError, TypeError or ValueError where
        it is no such result.
        """


def check_images(tasks: Sequence[Task], folder: Path, asked_by: object) -> None:
    """Raises `EvaluationError` where an image that is asked about is not in the folder."""
    if not folder.is_dir():
        raise EvaluationError(f"--data_path {folder} is not a folder of images")
    names = dict.fromkeys(task.image for task in tasks if task.image is not None)
    if lacking := [name for name in names if not (folder / name).exists()]:
        raise EvaluationError(
            f"--data_path {folder} lacks {len(lacking)} of the {len(names)} images that {asked_by} "
            f"asks about ({lacking[0]}, for one)"
        )


def check_whole(name: str, value: int, least: int) -> None:
    """Raises `EvaluationError` where a flag's value is below `least`."""
    if value < least:
        raise EvaluationError(f"--{name} {value}: say a whole number >= {least}")


def check_record(
    record: Mapping[str, Any], digest: str, answers: object, questions: object
) -> None:
    """Raises `EvaluationError` where the record of a run says that its answers are to other
    questions than those with this sha256."""
    settings = record.get("settings", {})
    if settings.get("questions", digest) != digest:
        split = f"of the split {settings['split']}, " if "split" in settings else ""
        raise EvaluationError(
            f"{answers} are answers to other questions than those in {questions}: their run "
            f"asked those {split}of sha256 {settings['questions'][:12]}..., and these are of "
            f"{digest[:12]}...; give the questions that were asked, byte by byte"
        )


def check_answered(questions: Collection[Key], answers: Collection[Key], form: Form) -> None:
    """Raises `EvaluationError` unless there are questions, and each has an answer, and each answer
    a question."""
    if not questions:
        raise EvaluationError("there are no questions to score")
    lacking, strangers = set(questions) - set(answers), set(answers) - set(questions)
    if lacking:
        raise EvaluationError(
            f"{len(lacking)} of {len(questions)} questions have no answer "
            f"({form.shown(min(lacking, key=str))}, for one)"
        )
    if strangers:
        raise EvaluationError(
            f"{len(strangers)} answers are to no question ({form.shown(min(strangers, key=str))}, "
            "for one): do the two files belong together?"
        )
