"""The nouns of a caption as AMBER's scorer reads them, and which of its words are similar.

AMBER counts the 418 words of its `relation.json`. Its scorer finds nouns with NLTK, and calls two
words similar where spaCy's word vectors say so; both need data, and have a way without.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks.objects.lemmas import plurals, read_nltk, split_words
from revisit.evaluation.store import read_json, write_json

Similar = Callable[[str, str], bool]
"""Whether two of the 418 words of `relation.json` name similar things."""

Nouns = Callable[[str], list[str]]
"""A caption -> its nouns in the singular, in order; other words may be among them."""

# WordNet 3.0 has no noun of these names, so that it leaves their plurals as they are.
_NO_NOUNS = """
TV baconic cann cathole chopsticks closestool doghole earing earrings ebook electrombile rpoe scoon
seegull showerpuff slippers waterfont
"""
_NO_PLURAL = frozenset(_NO_NOUNS.split())
# It takes these of AMBER's words for plurals: they never count as the published scorer reads them.
_LEMMAS = {
    "chopsticks": "chopstick",
    "earrings": "earring",
    "leaves": "leaf",
    "slippers": "slipper",
    "sunglasses": "sunglass",
}


def nouns_by_rules(words: Collection[str]) -> Nouns:
    """Every word as a noun, in the singular by rules over `words`: it needs no data of NLTK.
    With it the figures are those of WordNet within 0.1 points, if every word is a noun there."""
    singular = plurals(set(words) - _NO_PLURAL) | _LEMMAS
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
        saved = _compare(words)
        if table is not None:
            write_json(table, saved)
    return lambda first, second: second in saved[first]


def _compare(words: Collection[str]) -> dict[str, list[str]]:
    """Each word -> the words that are similar to it."""
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
