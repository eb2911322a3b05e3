"""AMBER's data, the nouns of a caption as its scorer reads them, and which of them are right.

AMBER counts the 418 words of its `relation.json`. Its scorer finds nouns with NLTK, and calls two
words similar where spaCy's word vectors say so; both need data, and have a way without.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks.objects.lemmas import plurals, read_nltk, split_words
from revisit.evaluation.files import read_json, read_json_lines, sha256, write_json

KIND_OF = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-relation": "relation",
    "relation": "relation",
}
"""Types of `annotations.json` -> what their questions are about."""

Similar = Callable[[str, str], bool]
"""Whether two of the 418 words of `relation.json` name similar things."""

Nouns = Callable[[str], list[str]]
"""A caption -> its nouns in the singular, in order; other words may be among them."""

# WordNet 3.0 has no noun of these names, so that it leaves their plurals as they are.
_NOT_IN_WORDNET = """
TV baconic cann cathole chopsticks closestool doghole earing earrings ebook electrombile rpoe scoon
seegull showerpuff slippers waterfont
"""
# It takes these of AMBER's words for plurals: they never count as the published scorer reads them.
_LEMMAS = {
    "chopsticks": "chopstick",
    "earrings": "earring",
    "leaves": "leaf",
    "slippers": "slipper",
    "sunglasses": "sunglass",
}


class Data(NamedTuple):
    """AMBER's annotations and word lists."""

    items: Mapping[int, Mapping[str, Any]]
    """id -> `type`, `truth` and, of a caption, `hallu`."""
    related: Mapping[str, Sequence[str]]
    """A word -> the words that also name it."""
    safe: frozenset[str]
    """Nouns that are passed over."""
    sha256: str = ""
    """The digest of `annotations.json`."""

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
    annotations, relation, safe = (
        _find(folder, name) for name in ("annotations.json", "relation.json", "safe_words.txt")
    )
    related, items = read_json(relation), {}
    for where, item in read_json_lines(annotations):
        lists = [item["truth"], item["hallu"]] if item["type"] == "generative" else []
        if unknown := {word for words in lists for word in words} - related.keys():
            raise EvaluationError(f"{where}: {min(unknown)!r} is no word of {relation}")
        if not lists and (item["type"] not in KIND_OF or item["truth"] not in ("yes", "no")):
            raise EvaluationError(
                f"{where}: type {item['type']!r} with truth {item['truth']!r} is none of AMBER's"
            )
        items[item["id"]] = item
    return Data(items, related, frozenset(safe.read_text().split()), sha256(annotations))


def read_queries(folder: Path, data: Data) -> list[dict[str, Any]]:
    """`id`, `image` and `query` of each item, from `query_all.json`, which is published in the
    folder `data/query/`.

    Raises:
        EvaluationError: the file is missing, or asks about no item of the data.
    """
    path = _find(folder, "query_all.json")
    queries = [query for _, query in read_json_lines(path)]
    if strangers := {query["id"] for query in queries} - data.items.keys():
        raise EvaluationError(f"{path} asks about id {min(strangers)}, which is no item of AMBER")
    return queries


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / "data" / name, folder / "data" / "query" / name):
        if path.is_file():
            return path
    raise EvaluationError(
        f"--amber_path {folder} has no {name}, nor has its folder data/; it is a file of "
        "junyangwang0410/AMBER"
    )


def nouns_by_rules(words: Collection[str]) -> Nouns:
    """Every word as a noun, in the singular by rules over `words`: it needs no data of NLTK.
    The figures are within 0.1 points of WordNet's where every word is a noun."""
    singular = plurals(set(words).difference(_NOT_IN_WORDNET.split())) | _LEMMAS
    return lambda caption: [singular.get(token, token) for token in split_words(caption)]


def nouns_by_nltk() -> Nouns:
    """The published way: words that NLTK's tagger takes for nouns, as WordNet's noun lemmas.

    Raises:
        EvaluationError: NLTK's data is missing.
    """
    nltk, lemmatize = read_nltk()

    def nouns(caption: str) -> list[str]:
        tagged = nltk.pos_tag(nltk.word_tokenize(caption))
        return [lemmatize(word, "n") for word, tag in tagged if tag.startswith("NN")]

    return nouns


NOUNS: Mapping[str, Callable[[Collection[str]], Nouns]] = {
    "nltk": lambda words: nouns_by_nltk(),
    "noun": nouns_by_rules,
}


def never(first: str, second: str) -> bool:
    """`Similar` of `--similarity exact`: only equal words name the same."""
    return False


def similar_by_spacy(words: Collection[str], table: Path | None = None) -> Similar:
    """`Similar` as published: spaCy's word vectors of `en_core_web_lg` with a cosine above 0.8.

    Args:
        words: what is compared.
        table: a JSON file of the similar words. Where it exists it is read, so that no spaCy is
            needed; else it is written.

    Raises:
        EvaluationError: spaCy or its model is not installed, or the table is of other words.
    """
    if table is not None and table.exists():
        saved = read_json(table)
        if not isinstance(saved, dict) or set(saved) != set(words):
            raise EvaluationError(f"{table} is no table of AMBER's {len(words)} words")
    else:
        saved = _compare(frozenset(words))
        if table is not None:
            write_json(table, saved)
    return lambda first, second: second in saved[first]


@cache
def _compare(words: frozenset[str]) -> dict[str, list[str]]:
    """Each word -> the words that are similar to it. A run asks before it begins, and to score."""
    try:
        import spacy

        read = spacy.load("en_core_web_lg")
    except (ImportError, OSError) as error:
        raise EvaluationError(
            "--similarity spacy needs spaCy and its model (pip install spacy; python -m spacy "
            f"download en_core_web_lg): {error}. A table made elsewhere by --similarity_table "
            "takes their place; --similarity exact leaves similar words out"
        ) from error
    texts = {word: read(word) for word in sorted(words)}
    return {
        first: [second for second in texts if texts[first].similarity(texts[second]) > 0.8]
        for first in texts
    }


SIMILAR: Mapping[str, Callable[[Collection[str], Path | None], Similar]] = {
    "exact": lambda words, table: never,
    "spacy": similar_by_spacy,
}


def caption_counts(
    data: Data, item: Mapping[str, Any], nouns: Sequence[str], similar: Similar
) -> tuple[int, ...]:
    """The counts of a caption: wrong nouns, nouns, objects covered, true objects, 1 if a noun is
    wrong, 1, expected hallucinations hit, expected hallucinations."""
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
