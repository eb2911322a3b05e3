"""A caption's words, lower-cased and brought to their dictionary form, in two ways.

`"nltk"` is the pipeline of the published scorer: NLTK's sentence and word tokenizer, its
part-of-speech tagger, and WordNet lemmas. It needs NLTK's data. `"noun"` needs no data: it reads
every word as a noun, and knows the words of the lexicon only.
"""

import re
from collections.abc import Callable, Collection
from functools import cache
from typing import Any

from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks.objects.lexicon import DOUBLE_WORDS, OBJECT_OF

Lemmatizer = Callable[[str], list[str]]

# Singular and plural endings that WordNet's noun rules (Morphy) know, and its irregular nouns.
_ENDINGS = "-s s-ses f-ves x-xes z-zes ch-ches sh-shes man-men y-ies"
_IRREGULAR = """
buffalo-buffaloes bus-busses calf-calves child-children flamingo-flamingoes goose-geese
grandchild-grandchildren knife-knives man-mans mouse-mice ox-oxen pocketknife-pocketknives
sport-sports taxi-taxies thief-thieves
"""
# WordNet 3.0 gives no singular for these: it lacks the noun, or takes another one ("vases" are
# "vas", "men" are "men"). The published scorer thus does not count their plurals, nor do we.
_NO_PLURAL = """
biker bluejay brindle children coworker firetruck glas hairdryer hot knive lenovo longboard macbook
man netbook paddleboat pitbull potted riverboat sailboard shortboard skimboard skis smartphone
solider sports stovetop teddybear televison vase
"""


def plurals(words: Collection[str]) -> dict[str, str]:
    """The plurals of nouns, by WordNet's rules -> their singulars."""
    endings, irregular = ([pair.split("-") for pair in t.split()] for t in (_ENDINGS, _IRREGULAR))
    return {plural: singular for singular, plural in irregular} | {
        word.removesuffix(singular) + plural: word
        for word in set(words).difference(_NO_PLURAL.split())
        for singular, plural in endings
        if word.endswith(singular)
    }


_SINGULAR = plurals({word for words in (*OBJECT_OF, *DOUBLE_WORDS) for word in words.split()})
_SENTENCE_END = re.compile(r"""(?<=[.!?])\s+|(?<=[.!?]["')])\s+""")


def singular(word: str) -> str:
    """The singular of a lower-case plural of a lexicon word; any other word as it is."""
    return _SINGULAR.get(word, word)


def split_words(text: str) -> list[str]:
    """The words and marks of a text as NLTK's word tokenizer splits it, which needs no data."""
    from nltk.tokenize.destructive import NLTKWordTokenizer

    tokenizer = NLTKWordTokenizer()
    # It splits off a full stop only at the end of its text.
    sentences = _SENTENCE_END.split(text.strip())
    return [word for sentence in sentences for word in tokenizer.tokenize(sentence)]


def _noun() -> Lemmatizer:
    return lambda caption: [singular(word) for word in split_words(caption.lower())]


def _nltk() -> Lemmatizer:
    nltk, lemmatize = read_nltk()
    part_of_speech = {"J": "a", "V": "v", "R": "r"}  # tagger's initial -> WordNet's letter

    def lemmas(caption: str) -> list[str]:
        tagged = nltk.pos_tag(nltk.word_tokenize(caption.lower()))
        return [lemmatize(word, part_of_speech.get(tag[0], "n")) for word, tag in tagged]

    return lemmas


def read_nltk() -> tuple[Any, Callable[[str, str], str]]:
    """The module `nltk`, and WordNet's lemma of a word and its part of speech (a letter).

    Raises:
        EvaluationError: NLTK's data is missing; the message says which.
    """
    import nltk

    lemmatize = cache(nltk.stem.WordNetLemmatizer().lemmatize)
    missing = [
        name
        for probe in (
            lambda: nltk.word_tokenize("a dog"),
            lambda: nltk.pos_tag(["dog"]),
            lambda: lemmatize("dogs", "n"),
        )
        if (name := _missing_data(probe))
    ]
    if missing:
        names = " ".join(missing)
        raise EvaluationError(
            f"--lemmatizer nltk needs data of NLTK that is not installed: {names}. Download it "
            f"with `python -m nltk.downloader {names}`, or use --lemmatizer noun, which needs none"
        )
    return nltk, lemmatize


def _missing_data(probe: Callable[[], object]) -> str | None:
    try:
        probe()
    except LookupError as error:
        found = re.search(r"nltk\.download\('([^']+)'\)", str(error))
        return found[1] if found else str(error)
    return None


LEMMATIZERS: dict[str, Callable[[], Lemmatizer]] = {"nltk": _nltk, "noun": _noun}
"""Name -> a function that makes the lemmatizer: caption -> its words, in order, as lemmas.

Making one raises `EvaluationError` where its data is missing.
"""
