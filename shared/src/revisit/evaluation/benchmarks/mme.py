"""MME: two questions of yes and no for each image, in ten categories of perception and four of
cognition.

Fu et al., "MME: A Comprehensive Evaluation Benchmark for Multimodal Large Language Models",
arXiv 2306.13394. A category's score is accuracy + accuracy+ in percent, 200 at most: the questions
answered right, and the images of which both are. Perception has 2,000 points, cognition 800, and
the hallucination subset (existence, count, position, color) 800.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from revisit.evaluation import EvaluationError
from revisit.evaluation.answer_files import Form, Key, read_answers
from revisit.evaluation.benchmarks.benchmark import Benchmark, Columns, Counted, Section, Task
from revisit.evaluation.benchmarks.checks import answers_source, check_answered
from revisit.evaluation.benchmarks.counting import Counts, as_counts, by_columns, ratio

HALLUCINATION = ("existence", "count", "position", "color")
_OTHER_PERCEPTION = ("posters", "celebrity", "scene", "landmark", "artwork", "OCR")
_REASONING = ("commonsense_reasoning", "numerical_calculation")
PERCEPTION = HALLUCINATION + _OTHER_PERCEPTION
COGNITION = (*_REASONING, "text_translation", "code_reasoning")
CATEGORIES = (*PERCEPTION, *COGNITION)
METRICS = ("perception", "cognition", "hallucination", *CATEGORIES)
SUFFIXES = (".jpg", ".png", ".jpeg")


class Question(NamedTuple):
    """A question of MME."""

    category: str
    image: str
    """Name of the image's file, without suffix."""
    text: str
    yes: bool
    """Whether yes is right."""


def read_answer(answer: str) -> bool | None:
    """Whether an answer says yes (True), no (False) or neither (None), by the published rule: in
    lower case it is the word, or its first four characters hold yes, or else no."""
    start = answer.lower()[:4]
    return "yes" in start or (False if "no" in start else None)


def read_questions(folder: Path) -> dict[Question, Path]:
    """The questions of the published folders, and the image of each.

    A category is a folder of `.txt` files, named after their images, of two lines each: question,
    tab, `Yes` or `No`. Images lie beside them, or in `images/` where the texts are in
    `questions_answers_YN/`.

    Raises:
        EvaluationError: there is no category, or a file is not in the published form.
    """
    found: dict[Question, Path] = {}
    for category in CATEGORIES:
        texts = folder / category / "questions_answers_YN"
        images = folder / category / "images"
        if not texts.is_dir():
            texts = images = folder / category
        for path in sorted(texts.glob("*.txt")):
            questions = list(_questions(path, category))
            image = next(
                (file for end in SUFFIXES if (file := images / (path.stem + end)).is_file()), None
            )
            if image is None:
                raise EvaluationError(f"{path} has no image: {images} lacks {path.stem}.jpg")
            found |= dict.fromkeys(questions, image)
    if not found:
        raise EvaluationError(f"{folder} has none of MME's categories ({', '.join(CATEGORIES)})")
    return found


def _questions(path: Path, category: str) -> Iterator[Question]:
    lines = [line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    for line in lines:
        text, tab, label = line.rpartition("\t")
        if not tab or label.strip() not in ("Yes", "No"):
            raise EvaluationError(f"{path}: {line!r} is no question, tab, and Yes or No")
        yield Question(category, path.stem, text.strip(), label.strip() == "Yes")
    if len(set(lines)) != 2:
        raise EvaluationError(f"{path} has {len(lines)} lines; MME asks two questions of an image")


def counts(answers: Mapping[Question, str]) -> tuple[list[tuple[str, str]], Counts]:
    """The images (category, name) in order, and their counts, (images, categories x 4): right
    answers, questions, whether all are right, 1.

    Raises:
        EvaluationError: there are no answers, or an image has not two.
    """
    if not answers:
        raise EvaluationError("there are no answers to score")
    asked = Counter((question.category, question.image) for question in answers)
    if other := {image: number for image, number in asked.items() if number != 2}:
        image, number = min(other.items())
        raise EvaluationError(
            f"{len(other)} images have not two answers ({'/'.join(image)} has {number}, for one)"
        )
    right = Counter[tuple[str, str]]()
    for question, answer in answers.items():
        right[question.category, question.image] += read_answer(answer) is question.yes
    rows = []
    for image in asked:
        row = [0] * (4 * len(CATEGORIES))
        start = 4 * CATEGORIES.index(image[0])
        row[start : start + 4] = right[image], 2, right[image] == 2, 1
        rows.append(row)
    return list(asked), as_counts(rows)


@by_columns
def measure(columns: Any) -> list[Any]:
    """`METRICS` in hundreds of points: a category has 2 at most, 0 where nothing was asked."""
    right, asked, both, images = (columns[first::4] for first in range(4))  # (categories, ...)
    scores = ratio(right, asked) + ratio(both, images)
    sums = [
        scores[[CATEGORIES.index(name) for name in names]].sum(0)
        for names in (PERCEPTION, COGNITION, HALLUCINATION)
    ]
    return [*sums, *scores]


KEY = ("category", "image", "question")
FORM = Form("answers.jsonl", KEY, "answer", "question")


def fingerprint(questions: Mapping[Question, Path]) -> str:
    """Hex sha256 of the questions and their right answers."""
    return hashlib.sha256(repr([tuple(each) for each in questions]).encode()).hexdigest()


def score_file(answers: Path, folder: Path) -> dict[str, Any]:
    """The result of a file of answers, as it is saved: points, their sources, every answer.

    Args:
        answers: `category`, `image` (without suffix), `question` and `answer`, JSON Lines.
        folder: MME's categories, as `read_questions` takes them.

    Raises:
        EvaluationError: something cannot be read, or does not belong together.
    """
    questions, texts = read_questions(folder), read_answers(answers, FORM)
    digest = fingerprint(questions)
    source = answers_source(answers, folder, digest)
    asked: dict[Key, Question] = {(q.category, q.image, q.text): q for q in questions}
    check_answered(asked, texts, FORM)
    answered = {question: texts[key] for key, question in asked.items()}
    points = zip(METRICS, measure(counts(answered)[1].sum(0)).tolist(), strict=True)
    asked_of = {*METRICS[:3], *(each.category for each in questions)}
    metrics = {name: value for name, value in points if name in asked_of}
    return {
        "benchmark": "mme",
        "points": {name: 100 * value for name, value in metrics.items()},
        "overall_metrics": metrics,
        "questions": {"folder": str(folder), "sha256": digest},
        "answers": source,
        "answered": [{**question._asdict(), "answer": text} for question, text in answered.items()],
    }


@dataclass(frozen=True, kw_only=True)
class Mme(Benchmark):
    """Ask MME's questions, two of yes and no for each image.

    Args:
        data_path: folder of MME's categories (existence, count and so on), as published.
    """

    name: ClassVar[str] = "mme"
    form: ClassVar[Form] = FORM
    columns: ClassVar[Columns] = Columns(
        things="images",
        metrics=METRICS[:3],
        measure=lambda totals: measure(totals)[:3],
        shown=("perception", "hallucination"),
        unit="Points",
    )
    max_new_tokens: ClassVar[int] = 64  # the scorer reads four characters

    def sections(self, seed: int) -> list[Section]:
        questions = read_questions(self.data_path)
        tasks = [
            Task(
                (each.category, each.image, each.text),
                str(image.relative_to(self.data_path)),
                each.text,
            )
            for each, image in questions.items()
        ]
        return [Section("", tasks, {"question": "<text>", "questions": fingerprint(questions)})]

    def score(self, section: Section, answers: Path) -> dict[str, Any]:
        return score_file(answers, self.data_path)

    @staticmethod
    def counted(saved: Mapping[str, Any]) -> Counted:
        answered = {
            Question(each["category"], each["image"], each["text"], each["yes"]): each["answer"]
            for each in saved["answered"]
        }
        images, counted = counts(answered)
        return Counted(
            things=["/".join(image) for image in images],
            counts=counted,
            truth={"the questions": saved["questions"]["sha256"]},
            record=saved["answers"]["run"] or {},
        )
