"""What a benchmark is: its data, what it asks, how its answers are scored and compared."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from revisit.evaluation.answer_files import Form, Key
from revisit.evaluation.benchmarks.counting import Counts, Measure

ONE_WORD = " Please answer this question with one word."
"""The end of a question of yes and no in the published code of VCD."""


class Task(NamedTuple):
    """A question, about an image or about none."""

    key: Key
    image: str | None
    """A file's name in `data_path`."""
    question: str


class Columns(NamedTuple):
    """The columns of a table of results: metrics, and the counts that they come from."""

    things: str
    """What is counted, and what intervals draw from, such as "images"."""
    metrics: tuple[str, ...]
    measure: Measure
    """Counts (..., columns), summed over things -> metrics (metrics, ...), fractions of 1."""
    shown: tuple[str, str]
    """The two metrics that a plot shows."""
    lower: frozenset[str] = frozenset()
    """The metrics of which less is better."""
    unit: str = "Percent"
    """Of the numbers of a table."""


class Counted(NamedTuple):
    """The counts of a saved result, which a comparison needs."""

    things: list[Any]
    """The ids of what was counted, such as images."""
    counts: Counts
    """(things, columns)."""
    truth: Mapping[str, Any]
    """What the answers were scored against, by its name in messages."""
    record: Mapping[str, Any]
    """Of the run that made the answers; empty where there is none."""
    conditions: Mapping[str, Any] = MappingProxyType({})
    """What has to be the same in all results."""


class Section(NamedTuple):
    """Tasks whose answers are one file, which has one score."""

    name: str
    """Of its folder; empty where a benchmark has one section."""
    tasks: list[Task]
    settings: Mapping[str, Any]
    """What decides the answers, besides the run's settings."""


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
    """Whether some questions have no image: there, ReVisiT decodes plainly."""

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
        """The tasks of a section whose file of answers has this record. It may add to the record.

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
        """The counts of a result that `score` made, in the order of the ids.

        Raises `EvaluationError` where it fits no run, and KeyError, TypeError or ValueError where
        it is no such result.
        """
