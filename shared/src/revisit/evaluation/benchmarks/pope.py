"""POPE: whether a model says "yes" to objects that an image does not show.

Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023. Questions
are "Is there a dog in the image?", half of them to be answered with yes. An answer is read by the
published rule: of its first sentence (up to the first "."), without commas, split at spaces, it
means no where "No", "no" or "not" is a word, and yes otherwise.

=========  ====================================================
Accuracy   right answers / questions
Precision  right among the answers that mean yes; 0 where none
Recall     answers that mean yes / questions whose label is yes
F1         harmonic mean of precision and recall
Yes        answers that mean yes / questions
=========  ====================================================
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from revisit.evaluation import EvaluationError
from revisit.evaluation.answer_files import Form, read_answers
from revisit.evaluation.benchmarks.benchmark import (
    ONE_WORD,
    Benchmark,
    Columns,
    Counted,
    Section,
    Task,
)
from revisit.evaluation.benchmarks.checks import (
    answers_source,
    check_answered,
    check_asked,
    check_images,
)
from revisit.evaluation.benchmarks.counting import Counts, as_counts, by_columns, ratio
from revisit.evaluation.files import read_json_lines, sha256

_LOG = logging.getLogger("revisit")

METRICS = ("Accuracy", "Precision", "Recall", "F1", "Yes")


def means_yes(answer: str) -> bool:
    """Whether an answer means yes, by the published rule."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"}.intersection(words)


def score(labels: Mapping[Any, bool], answers: Mapping[Any, str]) -> dict[str, float]:
    """The metrics of the module's docstring, as fractions of 1.

    Args:
        labels: question id -> whether yes is right.
        answers: question id -> the model's answer.

    Raises:
        EvaluationError: no questions, a question without an answer, or an answer to no question.
    """
    check_answered(labels, answers, FORM)
    values = measure(counts(labels, answers).sum(0))
    return dict(zip(METRICS, values.tolist(), strict=True))


def counts(labels: Mapping[Any, bool], answers: Mapping[Any, str]) -> Counts:
    """The counts of each question, (questions, 5) in the order of `labels`: 1, whether the answer
    means yes, whether yes is right, whether both, whether the answer is right."""
    pairs = [(means_yes(answers[question]), label) for question, label in labels.items()]
    return as_counts([(1, yes, label, yes and label, yes == label) for yes, label in pairs])


@by_columns
def measure(columns: Any) -> list[Any]:
    """The metrics of the module's docstring, as fractions of 1."""
    asked, yes, labelled_yes, both, right = columns
    precision, recall = ratio(both, yes), ratio(both, labelled_yes)
    f1 = ratio(2 * precision * recall, precision + recall)
    return [ratio(right, asked), precision, recall, f1, ratio(yes, asked)]


COLUMNS = Columns("questions", METRICS, measure, ("Accuracy", "F1"))

FORM = Form("answers.jsonl", ("question_id",), "answer", "question")

Split = Literal["random", "popular", "adversarial"]
"""The question files: how the objects were chosen that are not in the image."""

Source = Literal["coco", "aokvqa", "gqa"]
"""The data set of the images: COCO's val2014 for the first two, GQA's for the last."""


def read_questions(path: Path, *needed: str) -> list[dict[str, Any]]:
    """The questions of a file, each with `question_id`, `label` and these keys, which hold text.

    Raises `EvaluationError` for a line that is no question, and for a second one of an id.
    """
    found: dict[Any, dict[str, Any]] = {}
    for where, entry in read_json_lines(path):
        if not isinstance(entry, dict) or not {"question_id", "label"} <= entry.keys():
            raise EvaluationError(f"{where} needs the keys 'question_id' and 'label'")
        if not all(isinstance(entry.get(name), str) and entry[name] for name in needed):
            raise EvaluationError(f"{where} needs the keys {' and '.join(map(repr, needed))}, text")
        question, label = entry["question_id"], entry["label"]
        if type(question) not in (int, str):
            raise EvaluationError(f"{where}: question_id {question!r} is no number and no text")
        if label not in ("yes", "no"):
            raise EvaluationError(f"{where}: label {label!r} is not yes or no")
        if question in found:
            raise EvaluationError(f"{where} repeats question_id {question}; keep one")
        found[question] = entry
    if not found:
        raise EvaluationError(f"{path} holds no questions")
    return list(found.values())


def read_labels(path: Path) -> dict[Any, bool]:
    """Question id -> whether yes is right."""
    return {each["question_id"]: each["label"] == "yes" for each in read_questions(path)}


def score_file(questions: Path, answers: Path) -> dict[str, Any]:
    """The result of a file of answers, as it is saved: metrics, their sources, every answer.

    Raises:
        EvaluationError: something cannot be read, or does not belong together.
    """
    labels, texts = read_labels(questions), read_answers(answers, FORM)
    digest = sha256(questions)
    source = answers_source(answers, questions, digest)
    return {
        "benchmark": "pope",
        "overall_metrics": score(labels, texts),
        "count": len(labels),
        "questions": {"file": str(questions), "sha256": digest},
        "answers": source,
        "answered": [
            {"question_id": each, "label": "yes" if label else "no", "answer": texts[each]}
            for each, label in labels.items()
        ],
    }


def question_file(folder: Path, split: str, source: Source = "coco") -> Path:
    """POPE's file of a split, by its published names (`coco_pope_random.json` or `random.jsonl`;
    `gqa_pope_seem_random.json`).

    Raises `EvaluationError` where there is none.
    """
    published = f"{source}_pope_{'' if source == 'coco' else 'seem_'}{split}.json"
    names = (published, f"{split}.jsonl") if source == "coco" else (published,)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise EvaluationError(
        f"--pope_path {folder} has no {' or '.join(names)}: prerequisites/download_pope.py "
        "brings the published files"
    )


@dataclass(frozen=True, kw_only=True)
class Pope(Benchmark):
    """Ask POPE's questions, whether an object is in an image, and score the answers.

    Args:
        data_path: folder of the images: COCO's (val2014), also for aokvqa, or GQA's.
        pope_path: folder of POPE's question files.
        source: the data set that the questions are on.
        splits: which of them, one after another.
        one_word: end each question with "Please answer this question with one word." (default: the
            question alone).
    """

    name: ClassVar[str] = "pope"
    form: ClassVar[Form] = FORM
    columns: ClassVar[Columns] = COLUMNS
    max_new_tokens: ClassVar[int] = 64  # the scorer reads the first sentence

    pope_path: Path
    source: Source = "coco"
    splits: tuple[Split, ...] = ("random", "popular", "adversarial")
    one_word: bool = False

    @property
    def prefix(self) -> str:
        source = "" if self.source == "coco" else f"{self.source}-"
        return f"pope-{source}{'one-word-' if self.one_word else ''}"

    def sections(self, seed: int) -> list[Section]:
        ending = ONE_WORD if self.one_word else ""
        sections = []
        for split in dict.fromkeys(self.splits):
            file = question_file(self.pope_path, split, self.source)
            tasks = [
                Task(each["question_id"], each["image"], each["text"] + ending)
                for each in read_questions(file, "image", "text")
            ]
            check_images(tasks, self.data_path, file)
            if misspelt := sum("imange" in task.question for task in tasks):
                _LOG.warning(
                    "%s spells 'imange' in %d questions, as VCD's copy does: its figures are not "
                    "those of the published file",
                    file,
                    misspelt,
                )
            settings = {"question": f"<text>{ending}", "split": split, "questions": sha256(file)}
            sections.append(Section(split, tasks, settings))
        return sections

    def score(self, section: Section, answers: Path) -> dict[str, Any]:
        return score_file(question_file(self.pope_path, section.name, self.source), answers)

    @staticmethod
    def counted(saved: Mapping[str, Any]) -> Counted:
        answered = sorted(saved["answered"], key=lambda each: str(each["question_id"]))
        if not answered:
            raise ValueError("no questions")
        labels = {each["question_id"]: each["label"] == "yes" for each in answered}
        answers = {each["question_id"]: each["answer"] for each in answered}
        record, questions = saved["answers"]["run"] or {}, saved["questions"]
        check_asked(record, questions["sha256"], "what was scored", questions.get("file"))
        return Counted(
            things=list(labels),
            counts=counts(labels, answers),
            truth={"the question files": questions["sha256"]},
            record=record,
        )
