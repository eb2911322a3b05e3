import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
    ids=["exact", "first four letters"],
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
    words = nouns("Knives, TVs, buses, benches. slippers, children!")
    assert " ".join(words) == "Knives , TVs , bus , bench . slipper , child !"


@pytest.mark.parametrize("where", [".", "data"])
def test_data_is_read_from_the_folder_or_from_its_data(where, tmp_path):
    folder = tmp_path / where
    folder.mkdir(exist_ok=True)
    (folder / "annotations.json").write_text(json.dumps([caption(["dog"], ["cup"])]))
    (folder / "relation.json").write_text(json.dumps(RELATED))
    with pytest.raises(EvaluationError, match=r"has no safe_words\.txt"):
        amber.read_data(tmp_path)
    (folder / "safe_words.txt").write_text("chair\nbench\n")
    assert amber.read_data(tmp_path).safe == {"chair", "bench"}
    (folder / "annotations.json").write_text(json.dumps([caption(["dragon"], ["cup"])]))
    with pytest.raises(EvaluationError, match="'dragon' is no word"):
        amber.read_data(tmp_path)


@pytest.fixture
def folder(tmp_path):
    """AMBER's data for two captions and two questions, and its images."""
    items = [
        caption(["dog"], ["cup"]),
        caption(["man"], ["chair"], 2),
        {"id": 3, "type": "discriminative-hallucination", "truth": "no"},
        {"id": 4, "type": "relation", "truth": "yes"},
    ]
    data, images = tmp_path / "amber" / "data", tmp_path / "image"
    (data / "query").mkdir(parents=True)
    images.mkdir()
    (data / "annotations.json").write_text(json.dumps(items))
    (data / "relation.json").write_text(json.dumps(RELATED))
    (data / "safe_words.txt").write_text("bench\n")
    texts = ["Describe this image.", "Describe this image.", "Is there a cup?", "Is it near?"]
    queries = [
        {"id": number, "image": f"AMBER_{1 + number % 2}.jpg", "query": text}
        for number, text in enumerate(texts, 1)
    ]
    (data / "query" / "query_all.json").write_text(json.dumps(queries))
    for number in (1, 2):
        Image.new("RGB", (number, 9)).save(images / f"AMBER_{number}.jpg")
    return tmp_path


def answer(size, text):
    return "A dog and a chair." if text.startswith("Describe") else "No"


def amber_of(folder, **settings):
    return amber.Amber(
        data_path=folder / "image", amber_path=folder / "amber", lemmatizer="noun", **settings
    )


def test_captions_and_questions_are_asked_scored_and_compared(folder, run):
    captioner, saved, result = run(amber_of(folder), answer)
    assert [text for _, text in captioner.asked][2:] == ["Is there a cup?", "Is it near?"]
    assert [size for size, _ in captioner.asked] == [(2, 9), (1, 9), (2, 9), (1, 9)]
    assert saved["generative"] == {"CHAIR": 75.0, "Cover": 50.0, "Hal": 100.0, "Cog": 50.0}
    assert saved["discriminative"]["Accuracy"] == 50.0
    assert saved["settings"] == {"lemmatizer": "noun", "similarity": "exact"}
    assert result.things == [1, 2, 3, 4]
    measured = result.columns.measure(result.counts.sum(0))
    shown = [saved["overall_metrics"][name] for name in result.columns.metrics]
    assert measured.tolist() == pytest.approx(shown)


def test_captions_alone_are_asked_for_by_name_and_named_so(folder, run):
    benchmark = amber_of(folder, ask=("generative",))
    captioner, saved, _ = run(benchmark, answer)
    assert benchmark.prefix == "amber-generative-"
    assert len(captioner.asked) == 2 and "discriminative" not in saved
    assert list(saved["overall_metrics"]) == ["CHAIR", "Cover", "Hal", "Cog"]
    assert saved["answered"] == {"captions": 2, "all": 2, "items": 4}


def test_one_word_is_asked_of_questions_only(folder, run):
    captioner, _, _ = run(amber_of(folder, one_word=True), answer)
    asked = [text for _, text in captioner.asked]
    assert asked[0] == "Describe this image."
    assert asked[2] == "Is there a cup? Please answer this question with one word."


def test_a_missing_image_is_named_before_anything_runs(folder):
    (folder / "image" / "AMBER_2.jpg").unlink()
    with pytest.raises(EvaluationError, match=r"lacks 1 of the 2 images.*AMBER_2\.jpg"):
        amber_of(folder).sections(0)
