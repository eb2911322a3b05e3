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
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from revisit.evaluation import EvaluationError

METRICS = ("aAcc", "qAcc", "fAcc")
KEY = ("category", "subcategory", "set_id", "figure_id", "question_id")
"""What names a question, in the file of questions and in answers."""

Key = tuple[str, ...]


def read_answer(answer: str) -> bool | None:
    """Whether an answer says yes (True), no (False) or neither (None), by its first word."""
    first = re.match(r"\W*(yes|no)\b", answer, re.IGNORECASE)
    return first[1].lower() == "yes" if first else None


def without_image(question: Mapping[str, Any]) -> bool:
    """Whether a question is asked without an image: category VS, figure 0."""
    return question["category"] == "VS" and str(question["figure_id"]) == "0"


def by_key(entries: Sequence[Mapping[str, Any]], where: object) -> dict[Key, Mapping[str, Any]]:
    """Questions or answers by what names them.

    Raises:
        EvaluationError: an entry lacks a part of its name, or two have the same.
    """
    found: dict[Key, Mapping[str, Any]] = {}
    for number, entry in enumerate(entries, start=1):
        if lacking := [name for name in KEY if name not in entry]:
            raise EvaluationError(f"{where}, entry {number} lacks {lacking[0]!r}")
        key = tuple(str(entry[name]) for name in KEY)
        if key in found:
            raise EvaluationError(f"{where}, entry {number} repeats the question {'/'.join(key)}")
        found[key] = entry
    return found


def counts(
    questions: Mapping[Key, Mapping[str, Any]], answers: Mapping[Key, str]
) -> NDArray[np.int64]:
    """What the metrics sum, (sets, 6): right and all questions, the same over figures, the same
    over questions of a figure. A set is what shares category, subcategory and set_id: questions of
    a set are about versions of one figure, so that intervals draw sets.

    Raises:
        EvaluationError: no questions, a question without an answer, or an answer to no question.
    """
    if not questions:
        raise EvaluationError("there are no questions to score")
    for lacking, what in (
        (questions.keys() - answers.keys(), "questions have no answer"),
        (answers.keys() - questions.keys(), "answers are to no question"),
    ):
        if lacking:
            raise EvaluationError(f"{len(lacking)} {what} ({'/'.join(min(lacking))}, for one)")
    asked: dict[Key, list[bool]] = defaultdict(list)
    figures: dict[Key, list[bool]] = defaultdict(list)
    sets: dict[Key, NDArray[np.int64]] = defaultdict(lambda: np.zeros(6, np.int64))
    for key, question in questions.items():
        says = read_answer(answers[key])
        right = says == (str(question["gt_answer"]) == "1")
        if says is None:
            right = without_image(question)
        sets[key[:3]][:2] += right, 1
        asked[(*key[:3], key[4])].append(right)
        if not without_image(question):
            figures[(*key[:3], key[3])].append(right)
    for column, groups in ((2, asked), (4, figures)):
        for key, answered in groups.items():
            sets[key[:3]][column : column + 2] += all(answered), 1
    return np.stack(list(sets.values()))


def measure(totals: NDArray[Any]) -> NDArray[np.float64]:
    """Counts (..., 6) -> aAcc, qAcc, fAcc (3, ...), as fractions of 1; 0 where there are none."""
    right, asked = totals[..., ::2], totals[..., 1::2]
    return np.asarray(np.moveaxis(right / np.maximum(asked, 1), -1, 0))
