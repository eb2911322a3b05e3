"""HallusionBench: questions of yes and no about figures, some of them edited, some left out.

Guan et al., arXiv 2310.14566, tianyi-lab/HallusionBench. The published judge is GPT-4; this scorer
reads answers that begin with yes or no. An answer that does neither is wrong, but in category VS
without an image, where not to answer is right too.

====  ===========================================================================================
aAcc  questions answered right / questions
qAcc  questions answered right with every figure / questions, each counted once
fAcc  figures of which all questions are answered right / figures; none where there is no image
====  ===========================================================================================
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from revisit.evaluation import EvaluationError
from revisit.evaluation.answer_files import Form, read_answers
from revisit.evaluation.benchmarks.benchmark import Benchmark, Columns, Counted, Section, Task
from revisit.evaluation.benchmarks.checks import answers_source, check_answered, check_images
from revisit.evaluation.benchmarks.counting import Counts, as_counts, by_columns, ratio
from revisit.evaluation.files import read_json_lines, sha256

METRICS = ("aAcc", "qAcc", "fAcc")
KEY = ("category", "subcategory", "set_id", "figure_id", "question_id")
"""The keys that name a question, in the file of questions and in answers."""

Key = tuple[str, ...]
FORM = Form("answers.jsonl", KEY, "answer", "question")


def read_answer(answer: str) -> bool | None:
    """Whether an answer says yes (True), no (False) or neither (None), by its first word."""
    first = re.match(r"\W*(yes|no)\b", answer, re.IGNORECASE)
    return first[1].lower() == "yes" if first else None


def without_image(question: Mapping[str, Any]) -> bool:
    """Whether a question is asked without an image: category VS, figure 0."""
    return question["category"] == "VS" and str(question["figure_id"]) == "0"


def read_questions(path: Path) -> dict[Key, Mapping[str, Any]]:
    """The questions of `HallusionBench.json` by the values of `KEY`.

    Raises:
        EvaluationError: the file cannot be read, a question lacks a key, or two have one name.
    """
    found: dict[Key, Mapping[str, Any]] = {}
    for where, entry in read_json_lines(path):
        if lacking := [name for name in (*KEY, "gt_answer", "question") if name not in entry]:
            raise EvaluationError(f"{where} has no key {lacking[0]!r}")
        key = tuple(str(entry[name]) for name in KEY)
        if key in found:
            raise EvaluationError(f"{where} repeats the question {'/'.join(key)}")
        found[key] = entry
    return found


def counts(questions: Mapping[Key, Mapping[str, Any]], answers: Mapping[Key, str]) -> Counts:
    """The counts of each set, (sets, 6): right and all questions; questions right with every
    figure, and all; figures right with every question, and all. A set has one category,
    subcategory and set_id: it is about versions of one figure, so that intervals draw sets.

    Raises:
        EvaluationError: no questions, a question without an answer, or an answer to no question.
    """
    check_answered(questions, answers, FORM)
    asked: dict[Key, list[bool]] = defaultdict(list)
    figures: dict[Key, list[bool]] = defaultdict(list)
    sets: dict[Key, list[int]] = defaultdict(lambda: [0] * 6)
    for key, question in questions.items():
        says = read_answer(answers[key])
        right = says == (str(question["gt_answer"]) == "1")
        if says is None:
            right = without_image(question)
        sets[key[:3]][0] += right
        sets[key[:3]][1] += 1
        asked[(*key[:3], key[4])].append(right)
        if not without_image(question):
            figures[(*key[:3], key[3])].append(right)
    for column, groups in ((2, asked), (4, figures)):
        for key, answered in groups.items():
            sets[key[:3]][column] += all(answered)
            sets[key[:3]][column + 1] += 1
    return as_counts(list(sets.values()))


@by_columns
def measure(columns: Any) -> Any:
    """aAcc, qAcc, fAcc as fractions of 1; 0 where there are none."""
    return ratio(columns[::2], columns[1::2])


def score_file(answers: Path, questions: Path) -> dict[str, Any]:
    """The result of a file of answers, as it is saved: figures, their sources, every answer.

    Raises:
        EvaluationError: something cannot be read, or does not belong together.
    """
    asked, digest = read_questions(questions), sha256(questions)
    texts = {tuple(map(str, cast(Key, key))): v for key, v in read_answers(answers, FORM).items()}
    source = answers_source(answers, questions, digest)
    totals = {"all": counts(asked, texts).sum(0)}
    for part in sorted({key[0] for key in asked}):
        some = {key: question for key, question in asked.items() if key[0] == part}
        totals[part] = counts(some, {key: texts[key] for key in some}).sum(0)
    return {
        "benchmark": "hallusionbench",
        "judge": "answers that begin with yes or no, read by rule; the published judge is GPT-4",
        **{part: _figures(total) for part, total in totals.items()},
        "overall_metrics": dict(zip(METRICS, measure(totals["all"]).tolist(), strict=True)),
        "questions": {"file": str(questions), "sha256": digest},
        "answers": source,
        "answered": [
            dict(zip(KEY, key, strict=True))
            | {"gt_answer": question["gt_answer"], "answer": texts[key]}
            for key, question in asked.items()
        ],
    }


def _figures(totals: Counts) -> dict[str, float | int]:
    """Percent with four digits, and their denominators, as the published functions have them."""
    percent = (100 * measure(totals)).round(4).tolist()
    sizes = zip(("questions", "pairs", "figures"), totals[1::2].tolist(), strict=True)
    return dict(zip(METRICS, percent, strict=True)) | dict(sizes)


@dataclass(frozen=True, kw_only=True)
class HallusionBench(Benchmark):
    """Ask HallusionBench's questions of yes and no; some are about no image.

    Args:
        data_path: folder of its images (hallusion_bench, which has VD and VS).
        questions_path: HallusionBench.json.
    """

    name: ClassVar[str] = "hallusionbench"
    form: ClassVar[Form] = FORM
    columns: ClassVar[Columns] = Columns("sets", METRICS, measure, ("aAcc", "qAcc"))
    max_new_tokens: ClassVar[int] = 64  # the scorer reads the first word
    without_images: ClassVar[bool] = True

    questions_path: Path

    def sections(self, seed: int) -> list[Section]:
        questions = read_questions(self.questions_path)
        tasks = [Task(key, each["filename"], each["question"]) for key, each in questions.items()]
        check_images(tasks, self.data_path, self.questions_path)
        settings = {"question": "<text>", "questions": sha256(self.questions_path)}
        return [Section("", tasks, settings)]

    def score(self, section: Section, answers: Path) -> dict[str, Any]:
        return score_file(answers, self.questions_path)

    @staticmethod
    def counted(saved: Mapping[str, Any]) -> Counted:
        answered = {tuple(each[name] for name in KEY): each for each in saved["answered"]}
        answers = {key: each["answer"] for key, each in answered.items()}
        return Counted(
            things=list(dict.fromkeys("/".join(key[:3]) for key in answered)),
            counts=counts(answered, answers),
            truth={"the questions": saved["questions"]["sha256"]},
            record=saved["answers"]["run"] or {},
        )
