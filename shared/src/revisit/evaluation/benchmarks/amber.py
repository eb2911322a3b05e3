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

An answer counts where it is exactly `Yes` or `No`. Precision and recall are those of *No*. The
published scorer starts every denominator at 0.001, and computes F1 from a precision and a recall
that are rounded to a tenth of a percent; so does this one.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks.objects.amber_words import Nouns, Similar
from revisit.evaluation.store import read_json

CAPTION_METRICS = ("CHAIR", "Cover", "Hal", "Cog")
ANSWER_METRICS = ("Accuracy", "Precision", "Recall", "F1")

_LEAF_OF = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-relation": "relation",
    "relation": "relation",
}
_LEAVES = ("existence", "state", "number", "action", "relation")
PARTS = {
    "discriminative": _LEAVES,
    "existence": ("existence",),
    "attribute": ("state", "number", "action"),
    "state": ("state",),
    "number": ("number",),
    "action": ("action",),
    "relation": ("relation",),
}
"""What the published scorer reports of the answers -> the kinds of questions that it sums."""

METRICS = (*CAPTION_METRICS, *(f"{part} {name}" for part in PARTS for name in ANSWER_METRICS))

# Counts of an item: wrong nouns, nouns, covered, true objects, wrong captions, captions, expected
# hallucinations hit, expected; then for each leaf: right, questions, right No, No, true No.
_CAPTION_COUNTS, _ANSWER_COUNTS = 8, 5
COUNTS = _CAPTION_COUNTS + _ANSWER_COUNTS * len(_LEAVES)


class Data(NamedTuple):
    """AMBER's annotations and word lists."""

    items: Mapping[int, Mapping[str, Any]]
    """id -> `type`, `truth` and, of a caption, `hallu`."""
    related: Mapping[str, Sequence[str]]
    """A word -> the words that also name it."""
    safe: frozenset[str]
    """Nouns that are passed over."""

    @property
    def words(self) -> frozenset[str]:
        """All words of `related`: only these nouns of a caption count."""
        return frozenset(self.related) | {word for words in self.related.values() for word in words}


def read_data(folder: Path) -> Data:
    """The files `annotations.json`, `relation.json` and `safe_words.txt` of a folder, or of its
    folder `data/`, as published.

    Raises:
        EvaluationError: a file is missing, or is not in the published form.
    """
    names = ("annotations.json", "relation.json", "safe_words.txt")
    places = [place for place in (folder, folder / "data") if (place / names[0]).is_file()]
    if not places:
        raise EvaluationError(f"--amber_path {folder} has no {names[0]}, nor has its folder data/")
    annotations, relation, safe = (places[0] / name for name in names)
    for path in (relation, safe):
        if not path.is_file():
            raise EvaluationError(f"--amber_path: {path} is missing, a file of AMBER's data")
    related = read_json(relation)
    items = {}
    for item in read_json(annotations):
        lists = [item["truth"], item["hallu"]] if item["type"] == "generative" else []
        if unknown := {word for words in lists for word in words} - related.keys():
            raise EvaluationError(
                f"{annotations}, id {item['id']}: {min(unknown)!r} is no word of {relation}"
            )
        if not lists and (item["type"] not in _LEAF_OF or item["truth"] not in ("yes", "no")):
            raise EvaluationError(
                f"{annotations}, id {item['id']}: type {item['type']!r} with truth "
                f"{item['truth']!r} is none of AMBER's"
            )
        items[item["id"]] = item
    return Data(items, related, frozenset(safe.read_text().split()))


def counts(data: Data, answers: Mapping[int, str], nouns: Nouns, similar: Similar) -> NDArray[Any]:
    """What the metrics sum, (items, `COUNTS`) in the order of `answers`.

    Raises:
        EvaluationError: there are no answers, or an answer is to no item.
    """
    if not answers:
        raise EvaluationError("there are no answers to score")
    if strangers := answers.keys() - data.items.keys():
        raise EvaluationError(f"{len(strangers)} answers are to no item (id {min(strangers)})")
    words = data.words
    found = np.zeros((len(answers), COUNTS), np.int64)
    for row, (each, answer) in zip(found, answers.items(), strict=True):
        item = data.items[each]
        if item["type"] == "generative":
            named = [noun for noun in nouns(answer) if noun in words]
            row[:_CAPTION_COUNTS] = _caption_counts(data, item, named, similar)
        else:
            start = _CAPTION_COUNTS + _ANSWER_COUNTS * _LEAVES.index(_LEAF_OF[item["type"]])
            says_no, no = answer == "No", item["truth"] == "no"
            right = says_no if no else answer == "Yes"
            row[start : start + _ANSWER_COUNTS] = right, 1, says_no and no, says_no, no
    return found


def _caption_counts(
    data: Data, item: Mapping[str, Any], nouns: Sequence[str], similar: Similar
) -> tuple[int, ...]:
    true, expected = _names(data, item["truth"]), _names(data, item["hallu"])
    covered: set[int] = set()
    hit: set[int] = set()
    wrong = 0
    for noun in nouns:
        if noun in data.safe:
            continue
        if named := _first(true, {noun}):
            covered |= named
            continue
        like = {word for word, _ in (*true, *expected) if similar(noun, word)}
        hit |= _first(expected, {noun}) | _first(expected, like)
        named = _first(true, like)
        covered |= named
        wrong += not named
    caption = (wrong, len(nouns), len(covered), len(item["truth"]))
    return (*caption, int(wrong > 0), 1, len(hit), len(item["hallu"]))


def _names(data: Data, objects: Sequence[str]) -> list[tuple[str, int]]:
    """Words with the index of the object that they name, in the published order: first the related
    words of all objects, then the objects."""
    related = [(word, index) for index, each in enumerate(objects) for word in data.related[each]]
    return related + [(each, index) for index, each in enumerate(objects)]


def _first(names: Sequence[tuple[str, int]], words: Collection[str]) -> set[int]:
    """The object of the first name that is one of the words; none where there is no such name."""
    return set(next(([index] for word, index in names if word in words), []))


def measure(totals: NDArray[Any]) -> NDArray[np.float64]:
    """Counts (..., `COUNTS`) -> `METRICS` (metrics, ...), as fractions of 1."""
    wrong, nouns, covered, true, bad, captions, hit, expected = np.moveaxis(
        totals[..., :_CAPTION_COUNTS], -1, 0
    )
    found = [
        _percent(part, whole)
        for part, whole in ((wrong, nouns), (covered, true), (bad, captions), (hit, expected))
    ]
    leaves = totals[..., _CAPTION_COUNTS:].reshape(*totals.shape[:-1], len(_LEAVES), -1)
    for part, kinds in PARTS.items():
        summed = leaves[..., [_LEAVES.index(kind) for kind in kinds], :].sum(-2)
        right, asked, right_no, says_no, no = np.moveaxis(summed, -1, 0)
        precision, recall = _percent(right_no, says_no), _percent(right_no, no)
        p, r = precision / 100, recall / 100
        f1 = _tenths(2 * p * r / (p + r + (0.001 if part == "existence" else 0.0001)) * 100)
        found += [_percent(right, asked), precision, recall, f1]
    return np.stack(found) / 100


def _percent(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    return _tenths(part / (whole + 0.001) * 100)


def _tenths(percent: Any) -> NDArray[np.float64]:
    """Rounded as Python rounds; NumPy's own rounding differs in the last digit now and then."""
    return np.asarray(np.vectorize(lambda value: round(value, 1), otypes=[float])(percent))


def figures(totals: NDArray[Any]) -> dict[str, dict[str, float]]:
    """The published scorer's figures in percent, of what was asked: `generative`, `PARTS`."""
    leaves = totals[_CAPTION_COUNTS:].reshape(len(_LEAVES), -1)
    asked = {
        part: leaves[[_LEAVES.index(kind) for kind in of], 1].sum() for part, of in PARTS.items()
    }
    percent = iter(round(100 * float(value), 1) for value in measure(totals))
    table = {"generative": {name: next(percent) for name in CAPTION_METRICS}}
    table |= {part: {name: next(percent) for name in ANSWER_METRICS} for part in PARTS}
    asked["generative"] = totals[_CAPTION_COUNTS - 3]
    return {part: named for part, named in table.items() if asked[part]}
