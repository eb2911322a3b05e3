"""The interface of a benchmark: its data, its questions, the score of its answers."""

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
    """The name of what is counted, and drawn for intervals, such as "images"."""
    metrics: tuple[str, ...]
    measure: Measure
    """Counts (..., columns), summed over things -> metrics (metrics, ...), fractions of 1."""
    shown: tuple[str, str]
    """The two metrics that a plot shows."""
    lower: frozenset[str] = frozenset()
    """The metrics of which less is better."""
    unit: str = "Percent"
    """The unit of a table's numbers."""


class Counted(NamedTuple):
    """The counts of a saved result, which a comparison needs."""

    things: list[Any]
    """The ids of what was counted, such as images."""
    counts: Counts
    """(things, columns)."""
    truth: Mapping[str, Any]
    """The data that the answers were scored against, by its name in messages."""
    record: Mapping[str, Any]
    """The record of the run that made the answers; empty where there is none."""
    conditions: Mapping[str, Any] = MappingProxyType({})
    """Settings that must be the same in all results of a comparison."""


class Section(NamedTuple):
    """Tasks whose answers are one file, which has one score."""

    name: str
    """The name of its folder; empty where a benchmark has one section."""
    tasks: list[Task]
    settings: Mapping[str, Any]
    """Settings besides the run's that decide the answers."""


@dataclass(frozen=True, kw_only=True)
class Benchmark(ABC):
    """A benchmark and its data. A subclass has a field for each of its flags.

    Args:
        data_path: folder of the images.
    """

    name: ClassVar[str]
    """The name of the command, and of the result: NAME.json beside the answers."""
    form: ClassVar[Form]
    columns: ClassVar[Columns]
    max_new_tokens: ClassVar[int] = 512
    """The default of `Generation.max_new_tokens`."""
    without_images: ClassVar[bool] = False
    """Whether some questions have no image: there, ReVisiT decodes plainly."""

    data_path: Path

    @property
    def prefix(self) -> str:
        """The beginning of the name of a run's folder."""
        return f"{self.name}-"

    @property
    def scored(self) -> bool:
        """Whether the answers are scored."""
        return True

    @abstractmethod
    def sections(self, seed: int) -> list[Section]:
        """The tasks, read from the data.

        Raises `EvaluationError` where the data is not there, or is not the benchmark's, or scoring
        needs something that is missing.
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
