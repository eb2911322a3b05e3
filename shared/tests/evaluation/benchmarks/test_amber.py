import json
from pathlib import Path

import numpy as np
import pytest

from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks import amber
from revisit.evaluation.benchmarks.objects.amber_words import (
    never,
    nouns_by_rules,
    similar_by_spacy,
)

PUBLISHED = Path(__file__).resolve().parents[5] / "shared" / "amber"
RELATED = {"dog": ["puppy"], "man": ["person"], "chair": [], "cup": ["mug"], "bench": ["chair"]}


def data(*items, safe=()):
    return amber.Data({item["id"]: item for item in items}, RELATED, frozenset(safe))


def caption(truth, hallu, number=1):
    return {"id": number, "type": "generative", "truth": truth, "hallu": hallu}


def caption_counts(item, text, similar=never, safe=()):
    all_data = data(item, safe=safe)
    nouns = nouns_by_rules(all_data.words)
    return amber.counts(all_data, {1: text}, nouns, similar)[0, :8].tolist()


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="AMBER's data not here")
@pytest.mark.parametrize(
    ("name", "similar"),
    [
        ("noun, words alike only when equal", never),
        ("noun, words alike when their first four letters are", lambda a, b: a[:4] == b[:4]),
    ],
)
def test_the_published_scorer_s_figures_come_out_to_the_last_digit(name, similar):
    published = amber.read_data(PUBLISHED)
    entries = json.loads((PUBLISHED / "answers.json").read_text())
    answers = {entry["id"]: entry["response"] for entry in entries}
    counts = amber.counts(published, answers, nouns_by_rules(published.words), similar)
    expected = json.loads((PUBLISHED / "expected.json").read_text())[name]
    assert amber.figures(counts.sum(0)) == expected


def test_a_caption_by_hand():
    item = caption(["dog", "man"], ["cup", "chair"])
    # Nouns keep their case. Two dogs cover one object; a mug is wrong, and hits an expected word.
    assert caption_counts(item, "Dogs, dogs: a dog and a mug.") == [1, 3, 1, 2, 1, 1, 1, 2]


def test_a_word_that_another_object_shares_covers_the_first_whose_related_words_have_it():
    assert caption_counts(caption(["chair", "bench"], ["cup"]), "a chair")[2] == 1
    both = caption_counts(caption(["chair", "bench"], ["cup"]), "a chair and a bench")
    assert both[:4] == [0, 2, 1, 2]  # "chair" is first among the bench's words


def test_safe_words_count_as_nouns_and_are_never_wrong():
    assert caption_counts(caption(["dog"], ["cup"]), "a chair", safe=["chair"])[:2] == [0, 1]


def test_a_similar_word_covers_an_object_and_hits_an_expected_hallucination():
    item = caption(["man"], ["dog"])
    found = caption_counts(item, "a bench", similar=lambda first, second: True)
    assert found == [0, 1, 1, 1, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("truth", "answer", "counted"),
    [
        ("no", "No", [1, 1, 1, 1, 1]),
        ("no", "no", [0, 1, 0, 0, 1]),
        ("no", "Yes", [0, 1, 0, 0, 1]),
        ("yes", "Yes", [1, 1, 0, 0, 0]),
        ("yes", "Yes.", [0, 1, 0, 0, 0]),
        ("yes", "No", [0, 1, 0, 1, 0]),
    ],
)
def test_an_answer_counts_only_where_it_is_exactly_yes_or_no(truth, answer, counted):
    item = {"id": 5, "type": "discriminative-attribute-number", "truth": truth}
    (row,) = amber.counts(data(item), {5: answer}, nouns_by_rules(set()), never)
    number = 8 + 5 * 2
    assert row[number : number + 5].tolist() == counted
    assert row.sum() == sum(counted)


def test_figures_name_only_what_was_asked():
    item = {"id": 5, "type": "discriminative-attribute-number", "truth": "no"}
    counts = amber.counts(data(item), {5: "No"}, nouns_by_rules(set()), never)
    figures = amber.figures(counts.sum(0))
    assert list(figures) == ["discriminative", "attribute", "number"]
    assert figures["number"]["Accuracy"] == 99.9  # the denominator starts at 0.001


def test_metrics_of_many_draws_are_those_of_each():
    rows = np.random.default_rng(0).integers(1, 9, (4, amber.COUNTS))
    together = amber.measure(rows)
    assert together.shape == (len(amber.METRICS), 4)
    assert all((together[:, i] == amber.measure(row)).all() for i, row in enumerate(rows))


def test_answers_to_no_item_and_no_answers_are_refused():
    with pytest.raises(EvaluationError, match="no item"):
        amber.counts(data(), {7: "No"}, nouns_by_rules(set()), never)
    with pytest.raises(EvaluationError, match="no answers"):
        amber.counts(data(), {}, nouns_by_rules(set()), never)


def test_a_table_of_similar_words_takes_spacy_s_place(tmp_path):
    table = tmp_path / "similar.json"
    table.write_text(json.dumps({"dog": ["dog", "puppy"], "puppy": ["dog"], "cup": []}))
    similar = similar_by_spacy({"dog", "puppy", "cup"}, table)
    assert similar("dog", "puppy") and not similar("cup", "dog")
    with pytest.raises(EvaluationError, match="2 words"):
        similar_by_spacy({"dog", "cup"}, table)


def test_without_spacy_the_message_says_what_to_do():
    with pytest.raises(EvaluationError, match=r"pip install spacy.*--similarity exact"):
        similar_by_spacy({"dog"})


def test_wordnet_s_plurals_of_amber_s_words():
    nouns = nouns_by_rules({"knife", "TV", "bus", "slippers", "child", "bench"})
    assert nouns("Knives, TVs, buses, benches. slippers, children!") == [
        "Knives",
        ",",
        "TVs",
        ",",
        "bus",
        ",",
        "bench",
        ".",
        "slipper",
        ",",
        "child",
        "!",
    ]


@pytest.mark.parametrize("where", [".", "data"])
def test_data_is_read_from_the_folder_or_from_its_data(where, tmp_path):
    folder = tmp_path / where
    folder.mkdir(exist_ok=True)
    (folder / "annotations.json").write_text(json.dumps([caption(["dog"], ["cup"])]))
    (folder / "relation.json").write_text(json.dumps(RELATED))
    with pytest.raises(EvaluationError, match=r"safe_words\.txt is missing"):
        amber.read_data(tmp_path)
    (folder / "safe_words.txt").write_text("chair\nbench\n")
    assert amber.read_data(tmp_path).safe == {"chair", "bench"}
    (folder / "annotations.json").write_text(json.dumps([caption(["dragon"], ["cup"])]))
    with pytest.raises(EvaluationError, match="'dragon' is no word"):
        amber.read_data(tmp_path)


def test_a_folder_without_annotations_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match=r"has no annotations\.json"):
        amber.read_data(tmp_path)
