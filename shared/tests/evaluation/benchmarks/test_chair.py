import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revisit.commands.main import main as program
from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks.chair import (
    METRICS,
    metrics,
    paired_bootstrap,
    read_captions,
    score,
)
from revisit.evaluation.benchmarks.objects.lemmas import LEMMATIZERS, singular
from revisit.evaluation.benchmarks.objects.lexicon import OBJECT_OF, OBJECTS
from revisit.evaluation.benchmarks.objects.truth import object_words

REPOSITORY = Path(__file__).resolve().parents[4]
PUBLISHED = REPOSITORY.parent / "shared" / "chair"
CAPTIONS = ("Instruction1_llava", "Instruction2_mplug", "Instruction2_minigpt-4")
published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="captions to test against not here")


@pytest.fixture(scope="module")
def noun():
    return LEMMATIZERS["noun"]()


@pytest.fixture
def score_chair(tmp_path):
    """Scores captions, by their images' ids, with the command and its flags; the exit status."""

    def score_chair(captions, *flags):
        path = tmp_path / "c.jsonl"
        lines = [json.dumps({"image_id": i, "caption": text}) for i, text in captions.items()]
        path.write_text("".join(line + "\n" for line in lines))
        argv = ["score", "chair", "--cap_file", path, "--lemmatizer", "noun", *flags]
        return program(list(map(str, argv)))

    return score_chair


def words_of(caption: str, lemmatize: Any) -> list[str]:
    return object_words(lemmatize(caption))[0]


@published
@pytest.mark.parametrize("name", CAPTIONS)
def test_published_numbers_are_reproduced(name, tmp_path):
    out = tmp_path / "out.json"
    flags = ["--cap_file", str(PUBLISHED / f"{name}.jsonl"), "--save_path", str(out)]
    flags += ["--cache", str(PUBLISHED / "objects.json"), "--lemmatizer", "noun"]
    assert program(["score", "chair", *flags]) == 0
    expected = json.loads((PUBLISHED / "expected.json").read_text())[name]
    result = json.loads(out.read_text())
    for metric in ("CHAIRs", "CHAIRi", "Recall"):
        assert result["overall_metrics"][metric] == pytest.approx(expected[metric], abs=1e-7)
    assert result["overall_metrics"]["Len"] == pytest.approx(expected["Len"], rel=1e-3)
    sentences = result["sentences"]
    assert sum(len(s["words"]) for s in sentences) == expected["words"]
    assert sum(len(s["hallucinated"]) for s in sentences) == expected["hallucinated"]
    by_image = json.loads((PUBLISHED / f"{name}.expected.json").read_text())
    for mine, theirs in zip(sentences, by_image, strict=False):
        assert {key: mine[key] for key in theirs} == theirs


@published
def test_two_thousand_captions_take_under_five_seconds():
    command = [sys.executable, "-m", "revisit", "score", "chair", "--lemmatizer", "noun"]
    command += ["--cap_file", str(PUBLISHED / "Instruction1_llava.jsonl")]
    command += ["--cache", str(PUBLISHED / "objects.json")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Time of the processor, so that other programs make no difference.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5


def test_the_scorer_starts_without_torch_and_transformers():
    code = (
        "import sys, revisit.evaluation.benchmarks.chair;"
        "import revisit.evaluation.benchmarks.objects.lemmas as lemmas;"
        "lemmas.LEMMATIZERS['noun']();"
        "sys.exit(len({'torch', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_packages_are_named_with_the_command_that_installs_them():
    packages = ["filelock", "nltk", "numpy", "PIL", "psutil", "tqdm"]
    code = f"import sys; sys.modules |= dict.fromkeys({packages}); import revisit.evaluation"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = run.stderr.splitlines()[-1]
    assert ", ".join(packages) in last and 'pip install "revisit-decoding[evaluation]"' in last


def test_the_lexicon_has_the_80_objects_and_every_word_means_one_of_them():
    assert len(OBJECTS) == 80
    assert set(OBJECT_OF.values()) == set(OBJECTS)
    assert all(OBJECT_OF[name] == name for name in OBJECTS)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("Two women eat hot dogs.", ["woman", "hot dog"]),
        ("A baby bird and a passenger train on train tracks", ["bird", "train"]),
        ("the seat of the toilet, with a chair", ["toilet", "chair"]),
        ("a seat", ["seat"]),
        ("a toilet seat", ["toilet"]),
        ("The man's bow ties; wine glasses", ["man", "tie", "wine glass"]),
        ("Benches, ponies, knives and mice!", ["bench", "pony", "knife", "mouse"]),
        ("a cat/dog, a dog-like toy", []),
        ("A dog. A cat.", ["dog", "cat"]),
        ("sports balls", ["ball"]),
        ("a dining table", ["table"]),
        ("", []),
    ],
)
def test_object_words_of_a_caption(caption, words, noun):
    assert words_of(caption, noun) == words


def test_two_word_objects_count_as_one_word(noun):
    assert object_words(noun("A hot dog.")) == (["hot dog"], 3)


def test_singular_leaves_words_outside_the_lexicon():
    words = ["bus", "glass", "grass", "men", "vases"]
    assert [singular(word) for word in words] == words
    assert singular("dogs") == "dog"


def test_metrics_by_hand(noun):
    objects = {1: ["person", "dog"], 2: ["cat"], 3: []}
    captions = {1: "A man and a car and a bus.", 2: "A cat.", 3: "Nothing here"}
    found = score(captions, objects, noun)
    values = metrics(found.counts.sum(0))
    assert values["CHAIRs"] == pytest.approx(1 / 3)
    assert values["CHAIRi"] == pytest.approx(2 / 4)
    assert values["Recall"] == pytest.approx(2 / 3)
    assert values["F1"] == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))
    assert values["Len"] == pytest.approx((9 + 3 + 2) / 3 / 100)
    assert found.sentences[0]["hallucinated"] == [("car", "car"), ("bus", "bus")]
    assert found.sentences[2]["metrics"]["CHAIRi"] == 0


texts = st.lists(
    st.sampled_from([*OBJECT_OF, "a", "the", "toilet", "seat", "baby", "."]), max_size=12
).map(" ".join)
truths = st.sets(st.sampled_from(OBJECTS), max_size=5)


@given(st.lists(st.tuples(texts, truths), min_size=1, max_size=8), st.randoms())
def test_metrics_do_not_depend_on_the_order_of_captions(noun, cases, shuffler):
    captions = {i: text for i, (text, _) in enumerate(cases)}
    objects = {i: truth for i, (_, truth) in enumerate(cases)}
    order = list(captions)
    shuffler.shuffle(order)
    there = score(captions, objects, noun)
    back = score({i: captions[i] for i in order}, objects, noun)
    assert metrics(there.counts.sum(0)) == metrics(back.counts.sum(0))


@given(texts, truths)
def test_a_caption_is_hallucination_free_exactly_where_the_truth_holds_its_objects(
    noun, text, truth
):
    found = score({1: text}, {1: truth}, noun).sentences[0]
    assert (found["metrics"]["CHAIRs"] == 0) == (set(found["node_words"]) <= truth)
    complete = score({1: text}, {1: set(OBJECTS)}, noun).sentences[0]
    assert complete["metrics"]["CHAIRi"] == 0
    assert complete["words"] == found["words"]


def counts(images: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    words = draw.integers(0, 6, images)
    hallucinated = draw.binomial(words, 0.3)
    truth = draw.integers(1, 5, images)
    found = draw.binomial(truth, 0.7)
    ones = np.ones(images, int)
    columns = [ones, hallucinated > 0, hallucinated, words, found, truth, words + 5]
    return np.stack(columns, axis=1).astype(np.int64)


@settings(max_examples=30)
@given(st.integers(20, 80), st.integers(0, 1000), st.integers(0, 1000))
def test_bootstrap_intervals_hold_the_point_and_turn_with_the_order(images, one, other):
    first, second = counts(images, one), counts(images, other)
    there = paired_bootstrap(first, second, resamples=1500)
    back = paired_bootstrap(second, first, resamples=1500)
    point = {m: metrics(second.sum(0))[m] - metrics(first.sum(0))[m] for m in METRICS}
    for metric in METRICS:
        interval = there[metric]
        assert interval["difference"] == pytest.approx(point[metric])
        assert interval["low"] - 1e-12 <= interval["difference"] <= interval["high"] + 1e-12
        assert back[metric]["low"] == pytest.approx(-interval["high"])


def test_bootstrap_is_exact_where_nothing_varies():
    first = counts(50, 3)
    for interval in paired_bootstrap(first, first).values():
        assert interval == {"difference": 0, "low": 0, "high": 0}


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval():
    first, second = counts(2000, 1), counts(2000, 2)
    interval = paired_bootstrap(first, second)["CHAIRs"]
    differences = second[:, 1] - first[:, 1]
    half = 1.96 * differences.std() / np.sqrt(len(differences))
    assert interval["low"] == pytest.approx(differences.mean() - half, abs=2e-3)
    assert interval["high"] == pytest.approx(differences.mean() + half, abs=2e-3)


def test_ground_truth_unites_instances_and_references(annotations, score_chair, tmp_path, capsys):
    captions = {1: "a vase and a dog", 2: "a vase and a man"}
    cache, out = tmp_path / "cache.json", tmp_path / "out.json"
    flags = ["--cache", cache, "--save_path", out]
    assert score_chair(captions, *flags, "--coco_path", annotations) == 0
    made = json.loads(cache.read_text())
    assert made["objects"]["1"] == ["dog", "vase"]
    assert made["objects"]["2"] == ["dog"]
    assert made["lemmatizer"] == "noun"
    first = json.loads(out.read_text())
    hallucinated = [sentence["hallucinated"] for sentence in first["sentences"]]
    assert hallucinated == [[], [["vase", "vase"], ["man", "person"]]]
    assert score_chair(captions, *flags) == 0
    assert json.loads(out.read_text())["overall_metrics"] == first["overall_metrics"]
    assert "CHAIRs" in capsys.readouterr().out


def test_a_cache_of_another_lemmatizer_or_other_annotations_is_refused(
    annotations, score_chair, tmp_path, capsys
):
    cache = tmp_path / "cache.json"
    cache.write_text(json.dumps({"lemmatizer": "nltk", "objects": {"1": ["dog"]}}))
    assert score_chair({1: "a dog"}, "--cache", cache) == 2
    assert "was made with --lemmatizer nltk" in capsys.readouterr().err
    cache.unlink()
    assert score_chair({1: "a dog"}, "--cache", cache, "--coco_path", annotations) == 0
    file = annotations / "captions_val2014.json"
    file.write_text(file.read_text().replace("A pet.", "A cat."))
    assert score_chair({1: "a dog"}, "--cache", cache, "--coco_path", annotations) == 2
    assert "was not made from the annotations" in capsys.readouterr().err


def test_the_result_names_its_sources_and_a_warning_what_is_missing(score_chair, tmp_path, capsys):
    run = {"settings": {"seed": 3}, "images": ["1.jpg", "2.jpg", "3.jpg"], "failed": [{}]}
    (tmp_path / "c.jsonl.run.json").write_text(json.dumps(run))
    cache = tmp_path / "objects.json"
    cache.write_text('{"objects": {"1": ["dog"]}}')
    out = tmp_path / "out.json"
    assert score_chair({1: "a dog"}, "--cache", cache, "--save_path", out) == 0
    result = json.loads(out.read_text())
    assert result["captions"]["run"] == run
    err = capsys.readouterr().err
    assert "1 of the 3 captions of its run; 1 images could not be read" in err
    assert result["settings"]["lemmatizer"] == "noun"
    assert len(result["settings"]["ground_truth"]["sha256"]) == 64
    assert {"python", "revisit", "nltk"} <= result["settings"]["versions"].keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"image_id": 1, "caption": "a"}\n{"image_id": 2, "cap', "line 2 is not JSON"),
        ('{"image_id": 1}\n', "line 1 has no key 'caption'"),
        ("[1]\n", "line 1 has no key 'image_id'"),
        ('{"image_id": "x", "caption": "a"}\n', "is not a whole number"),
        ('{"image_id": [1], "caption": "a"}\n', "is no number and no text"),
        ('{"image_id": 1, "caption": null}\n', "caption is not text"),
        ('{"image_id": 1, "caption": "a"}\n' * 2, "line 2 is a second caption of image_id 1"),
        ("\n", "holds no captions"),
    ],
)
def test_a_bad_captions_file_is_refused_with_its_line(content, message, tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text(content)
    with pytest.raises(EvaluationError, match=message):
        read_captions(path)


def test_captions_of_other_images_are_refused(annotations, score_chair, tmp_path, capsys):
    out = tmp_path / "out.json"
    flags = ["--save_path", out, "--coco_path", annotations]
    assert score_chair({1: "a dog", 99: "a dog"}, *flags) == 2
    assert "image id 99" in capsys.readouterr().err
    assert not out.exists()


def test_captions_without_annotations_and_cache_are_refused(score_chair, tmp_path, capsys):
    assert score_chair({1: "a dog"}) == 2
    assert "neither --coco_path nor --cache" in capsys.readouterr().err
    assert score_chair({1: "a dog"}, "--cache", tmp_path / "none.json") == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"objects": {"1": ["unicorn"]}}', '{"objects": {"one": []}}']
)
def test_a_file_that_is_no_cache_is_refused(content, score_chair, tmp_path, capsys):
    cache = tmp_path / "objects.json"
    cache.write_text(content)
    assert score_chair({1: "a dog"}, "--cache", cache) == 2
    assert str(cache) in capsys.readouterr().err


def test_missing_nltk_data_is_named_with_the_remedy(tmp_path):
    captions = tmp_path / "c.jsonl"
    captions.write_text('{"image_id": 1, "caption": "a dog"}\n')
    code = "import sys, nltk; nltk.data.path[:] = [];"
    code += "from revisit.commands.main import start; start()"
    command = [sys.executable, "-c", code, "score", "chair", "--cap_file", str(captions)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    for word in ("punkt", "averaged_perceptron_tagger", "wordnet", "nltk.downloader", "noun"):
        assert word in run.stderr


def test_the_nltk_pipeline_reads_verbs_as_verbs():
    try:
        lemmatize = LEMMATIZERS["nltk"]()
    except EvaluationError as error:
        pytest.skip(str(error))
    assert words_of("Two dogs are resting on the beds.", lemmatize) == ["dog", "bed"]
