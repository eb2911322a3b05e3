"""AMBER: what captions name that is not in the image, and what a model says no to.

Wang et al., "AMBER: An LLM-free Multi-dimensional Benchmark for MLLMs Hallucination Evaluation",
arXiv 2311.07397; data and published scorer: junyangwang0410/AMBER. Items 1 to 1,004 ask for a
caption; the others ask about existence, attributes (state, number, action) and relations.

A caption's nouns count where `relation.json` knows them. Figures are percent over all captions:

=====  ======================================================================================
CHAIR  wrong nouns / nouns
Cover  true objects that a noun names / true objects
Hal    captions with a wrong noun / captions
Cog    expected hallucinations that a noun names / expected hallucinations
=====  ======================================================================================

An answer counts where it is exactly `Yes` or `No`. Precision and recall are of *No*. The
published scorer starts every denominator at 0.001, and computes F1 from a precision and a recall
that are rounded to a tenth of a percent; so does this one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

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
from revisit.evaluation.benchmarks.checks import answers_source, check_images
from revisit.evaluation.benchmarks.counting import Counts, as_counts, by_columns
from revisit.evaluation.benchmarks.objects.amber_words import (
    KIND_OF,
    NOUNS,
    SIMILAR,
    Data,
    Nouns,
    Similar,
    caption_counts,
    read_data,
    read_queries,
)

CAPTION_METRICS = ("CHAIR", "Cover", "Hal", "Cog")
ANSWER_METRICS = ("Accuracy", "Precision", "Recall", "F1")

_LEAVES = ("existence", "state", "number", "action", "relation")
_ATTRIBUTE = ("state", "number", "action")
PARTS = {"discriminative": _LEAVES, "existence": ("existence",), "attribute": _ATTRIBUTE}
PARTS |= {leaf: (leaf,) for leaf in _LEAVES[1:]}
"""The parts of the published scorer's report on answers -> the kinds of questions in each."""

METRICS = (*CAPTION_METRICS, *(f"{part} {name}" for part in PARTS for name in ANSWER_METRICS))

# Counts of an item: wrong nouns, nouns, covered, true objects, wrong captions, captions, expected
# hallucinations hit, expected; then for each leaf: right, questions, right No, No, true No.
_CAPTION_COUNTS, _ANSWER_COUNTS = 8, 5
COUNTS = _CAPTION_COUNTS + _ANSWER_COUNTS * len(_LEAVES)


def counts(data: Data, answers: Mapping[int, str], nouns: Nouns, similar: Similar) -> Counts:
    """The counts of each item, (items, `COUNTS`) in the order of `answers`.

    Raises `EvaluationError` where there are no answers, or one is to no item.
    """
    if not answers:
        raise EvaluationError("there are no answers to score")
    if strangers := answers.keys() - data.items.keys():
        first = min(strangers, key=str)
        raise EvaluationError(f"{len(strangers)} answers are to no item (id {first}, for one)")
    words = data.words
    rows = []
    for each, answer in answers.items():
        item, row = data.items[each], [0] * COUNTS
        if item["type"] == "generative":
            named = [noun for noun in nouns(answer) if noun in words]
            row[:_CAPTION_COUNTS] = caption_counts(data, item, named, similar)
        else:
            says_no, no = answer == "No", item["truth"] == "no"
            right = says_no if no else answer == "Yes"
            row[_columns(KIND_OF[item["type"]])] = right, 1, says_no and no, says_no, no
        rows.append(row)
    return as_counts(rows)


def _columns(kind: str) -> slice:
    """The columns of the counts of a kind of questions."""
    start = _CAPTION_COUNTS + _ANSWER_COUNTS * _LEAVES.index(kind)
    return slice(start, start + _ANSWER_COUNTS)


@by_columns
def measure(columns: Any) -> list[Any]:
    """`METRICS` as fractions of 1."""
    percent = [_percent(columns[i], columns[i + 1]) for i in range(0, _CAPTION_COUNTS, 2)]
    for part, kinds in PARTS.items():
        right, asked, right_no, says_no, no = sum(columns[_columns(kind)] for kind in kinds)
        precision, recall = _percent(right_no, says_no), _percent(right_no, no)
        p, r = precision / 100, recall / 100
        f1 = _tenths(2 * p * r / (p + r + (0.001 if part == "existence" else 0.0001)) * 100)
        percent += [_percent(right, asked), precision, recall, f1]
    return [each / 100 for each in percent]


def _percent(part: Any, whole: Any) -> Any:
    return _tenths(part / (whole + 0.001) * 100)


def _tenths(percent: Any) -> Any:
    """Rounded as Python rounds: NumPy's rounding differs in the last digit now and then."""
    import numpy as np

    return np.vectorize(lambda value: round(value, 1), otypes=[float])(percent)


def figures(totals: Counts) -> dict[str, dict[str, float]]:
    """The published scorer's figures in percent, of what was asked: `generative`, `PARTS`."""
    asked = {part: sum(totals[_columns(kind)][1] for kind in of) for part, of in PARTS.items()}
    asked["generative"] = totals[_CAPTION_COUNTS - 3]
    percent = iter(round(100 * float(value), 1) for value in measure(totals))
    table = {"generative": {name: next(percent) for name in CAPTION_METRICS}}
    table |= {part: {name: next(percent) for name in ANSWER_METRICS} for part in PARTS}
    return {part: named for part, named in table.items() if asked[part]}


FORM = Form("answers.jsonl", ("id",), "response", "question")
_COMPARED = (*CAPTION_METRICS, "discriminative Accuracy", "discriminative F1")
COLUMNS = Columns(
    things="items",
    metrics=_COMPARED,
    measure=lambda totals: measure(totals)[[METRICS.index(name) for name in _COMPARED]],
    shown=("CHAIR", "Cover"),
    lower=frozenset({"CHAIR", "Hal", "Cog"}),
)


def score_file(
    answers: Path, folder: Path, lemmatizer: str, similarity: str, table: Path | None = None
) -> dict[str, Any]:
    """The result of a file of answers, as it is saved: figures, their sources, every count.

    Args:
        answers: `id` and `response` of each item, JSON Lines or a JSON list.
        folder, table: as `read_data` and `similar_by_spacy` take them.
        lemmatizer, similarity: of `NOUNS` and `SIMILAR`.

    Raises `EvaluationError` where something cannot be read, or does not belong together.
    """
    data = read_data(folder)
    texts = {cast(int, key): text for key, text in read_answers(answers, FORM).items()}
    source = answers_source(answers, folder, data.sha256)
    nouns, similar = NOUNS[lemmatizer](data.words), SIMILAR[similarity](data.words, table)
    counted = counts(data, texts, nouns, similar)
    totals = counted.sum(0)
    found = figures(totals)
    return {
        "benchmark": "amber",
        **found,
        "overall_metrics": _flat(found),
        "answered": {"captions": int(totals[5]), "all": len(texts), "items": len(data.items)},
        "settings": {"lemmatizer": lemmatizer, "similarity": similarity},
        "annotations": {"folder": str(folder), "sha256": data.sha256},
        "answers": source,
        "counts": {
            each: {column: value for column, value in enumerate(row) if value}
            for each, row in zip(texts, counted.tolist(), strict=True)
        },
    }


def _flat(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    pairs = [(part, *pair) for part, named in found.items() for pair in named.items()]
    return {f"{part} {name}".removeprefix("generative "): v / 100 for part, name, v in pairs}


@dataclass(frozen=True, kw_only=True)
class Amber(Benchmark):
    """Ask AMBER's questions: captions, and existence, attributes and relations.

    Args:
        data_path: folder of AMBER's images (AMBER_1.jpg and so on).
        amber_path: folder of AMBER's data: annotations.json, relation.json, safe_words.txt and
            query_all.json, or the folders data/ that have them.
        ask: captions (generative), questions (discriminative), or both.
        one_word: ask for one word, since an answer counts only where it is exactly Yes or No.
        lemmatizer: nltk: nouns as published, needs NLTK's data. noun: every word is a noun.
        similarity: spacy: similar words count too, as published (needs spaCy). exact: equal ones.
        similarity_table: file of the similar words; read where it exists, else written.
    """

    name: ClassVar[str] = "amber"
    form: ClassVar[Form] = FORM
    columns: ClassVar[Columns] = COLUMNS

    amber_path: Path
    ask: tuple[Literal["generative", "discriminative"], ...] = ("generative", "discriminative")
    one_word: bool = False
    lemmatizer: Literal["nltk", "noun"] = "nltk"
    similarity: Literal["exact", "spacy"] = "exact"
    similarity_table: Path | None = None

    @property
    def prefix(self) -> str:
        part = f"{self.ask[0]}-" if len(self.ask) == 1 else ""
        return f"amber-{part}{'one-word-' if self.one_word else ''}"

    def sections(self, seed: int) -> list[Section]:
        data = read_data(self.amber_path)
        NOUNS[self.lemmatizer](data.words)
        SIMILAR[self.similarity](data.words, self.similarity_table)
        tasks = []
        for query in read_queries(self.amber_path, data):
            caption = data.items[query["id"]]["type"] == "generative"
            if ("generative" if caption else "discriminative") in self.ask:
                ending = ONE_WORD if self.one_word and not caption else ""
                tasks.append(Task(query["id"], query["image"], query["query"] + ending))
        check_images(tasks, self.data_path, self.amber_path)
        question = f"<text>{ONE_WORD}" if self.one_word else "<text>"
        settings = {"question": question, "ask": list(self.ask), "questions": data.sha256}
        return [Section("", tasks, settings)]

    def score(self, section: Section, answers: Path) -> dict[str, Any]:
        words = (self.lemmatizer, self.similarity, self.similarity_table)
        return score_file(answers, self.amber_path, *words)

    @staticmethod
    def counted(saved: Mapping[str, Any]) -> Counted:
        items = sorted(saved["counts"].items(), key=lambda each: int(each[0]))
        rows = [[0] * COUNTS for _ in items]
        for row, (_, values) in zip(rows, items, strict=True):
            for column, value in values.items():
                row[int(column)] = value
        return Counted(
            things=[int(each) for each, _ in items],
            counts=as_counts(rows),
            truth={"AMBER's annotations": saved["annotations"]["sha256"]},
            conditions=saved["settings"],
            record=saved["answers"]["run"] or {},
        )
