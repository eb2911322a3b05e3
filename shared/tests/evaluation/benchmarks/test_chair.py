import json
import resource
import subprocess
import sys
from collections.abc import Mapping
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


def write_captions(path: Path, captions: Mapping[int, str]) -> Path:
    lines = [json.dumps({"image_id": i, "caption": text}) for i, text in captions.items()]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def words_of(caption: str, lemmatize: Any) -> list[str]:
    return object_words(lemmatize(caption))[0]


@published
@pytest.mark.parametrize("name", CAPTIONS)
def test_published_numbers_are_reproduced(name, tmp_path):
    out = tmp_path / "out.json"
    flags = ["--cache", str(PUBLISHED / "objects.json"), "--lemmatizer", "noun"]
    captions = PUBLISHED / f"{name}.jsonl"
    assert (
        program(["score", "chair", "--cap_file", str(captions), "--save_path", str(out), *flags])
        == 0
    )
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
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [
            *(sys.executable, "-m", "revisit", "score", "chair", "--lemmatizer", "noun"),
            *("--cap_file", str(PUBLISHED / "Instruction1_llava.jsonl")),
            *("--cache", str(PUBLISHED / "objects.json")),
        ],
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of the processor, so that what else the machine does makes no difference.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5


def test_the_scorer_starts_without_torch_and_transformers():
    code = (
        "import sys, revisit.evaluation.benchmarks.chair;"
        "import revisit.evaluation.benchmarks.objects.lemmas as lemmas;"
        "lemmas.LEMMATIZERS['noun']();"
        "sys.exit(len({'torch', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", ["filelock", "nltk", "numpy", "PIL", "psutil", "tqdm"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(package):
    code = (
        f"import sys; sys.modules[{package!r}] = None; import revisit.evaluation.benchmarks.chair"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = run.stderr.splitlines()[-1]
    assert package in last and 'pip install "revisit-decoding[evaluation]"' in last


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
    assert [singular(word) for word in ("bus", "glass", "grass", "men", "vases", "dogs")] == [
        *("bus", "glass", "grass", "men", "vases", "dog")
    ]


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


def test_ground_truth_unites_instances_and_references(annotations, tmp_path, capsys):
    captions = write_captions(tmp_path / "c.jsonl", {1: "a vase and a dog", 2: "a vase and a man"})
    cache, out = tmp_path / "cache.json", tmp_path / "out.json"
    flags = ["--cap_file", str(captions), "--lemmatizer", "noun", "--cache", str(cache)]
    assert (
        program(
            ["score", "chair", *flags, "--coco_path", str(annotations), "--save_path", str(out)]
        )
        == 0
    )
    made = json.loads(cache.read_text())
    assert made["objects"]["1"] == ["dog", "vase"]
    assert made["objects"]["2"] == ["dog"]
    assert made["lemmatizer"] == "noun"
    first = json.loads(out.read_text())
    assert [s["hallucinated"] for s in first["sentences"]] == [
        *([], [["vase", "vase"], ["man", "person"]])
    ]
    assert program(["score", "chair", *flags, "--save_path", str(out)]) == 0
    assert json.loads(out.read_text())["overall_metrics"] == first["overall_metrics"]
    assert "CHAIRs" in capsys.readouterr().out


def test_a_cache_of_another_lemmatizer_or_other_annotations_is_refused(
    annotations, tmp_path, capsys
):
    captions = write_captions(tmp_path / "c.jsonl", {1: "a dog"})
    cache = tmp_path / "cache.json"
    flags = ["--cap_file", str(captions), "--lemmatizer", "noun", "--cache", str(cache)]
    cache.write_text(json.dumps({"lemmatizer": "nltk", "objects": {"1": ["dog"]}}))
    assert program(["score", "chair", *flags]) == 2
    assert "was made with --lemmatizer nltk" in capsys.readouterr().err
    cache.unlink()
    assert program(["score", "chair", *flags, "--coco_path", str(annotations)]) == 0
    file = annotations / "captions_val2014.json"
    file.write_text(file.read_text().replace("A pet.", "A cat."))
    assert program(["score", "chair", *flags, "--coco_path", str(annotations)]) == 2
    assert "was not made from the annotations" in capsys.readouterr().err


def test_the_result_says_what_made_it_and_what_is_missing(tmp_path, capsys):
    captions = write_captions(tmp_path / "c.jsonl", {1: "a dog"})
    run = {"settings": {"seed": 3}, "images": ["1.jpg", "2.jpg", "3.jpg"], "failed": [{}]}
    (tmp_path / "c.jsonl.run.json").write_text(json.dumps(run))
    cache = tmp_path / "objects.json"
    cache.write_text('{"objects": {"1": ["dog"]}}')
    out = tmp_path / "out.json"
    flags = ["--cap_file", str(captions), "--lemmatizer", "noun", "--cache", str(cache)]
    assert program(["score", "chair", *flags, "--save_path", str(out)]) == 0
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


def test_captions_of_other_images_are_refused(annotations, tmp_path, capsys):
    captions = write_captions(tmp_path / "c.jsonl", {1: "a dog", 99: "a dog"})
    out = tmp_path / "out.json"
    flags = ["--cap_file", str(captions), "--lemmatizer", "noun", "--save_path", str(out)]
    assert program(["score", "chair", *flags, "--coco_path", str(annotations)]) == 2
    assert "image id 99" in capsys.readouterr().err
    assert not out.exists()


def test_neither_annotations_nor_cache_is_an_error_that_says_so(tmp_path, capsys):
    captions = write_captions(tmp_path / "c.jsonl", {1: "a dog"})
    flags = ["--cap_file", str(captions), "--lemmatizer", "noun"]
    assert program(["score", "chair", *flags]) == 2
    assert "neither --coco_path nor --cache" in capsys.readouterr().err
    assert program(["score", "chair", *flags, "--cache", str(tmp_path / "none.json")]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"objects": {"1": ["unicorn"]}}', '{"objects": {"one": []}}']
)
def test_a_cache_that_is_none_is_refused(content, tmp_path, capsys):
    captions = write_captions(tmp_path / "c.jsonl", {1: "a dog"})
    cache = tmp_path / "objects.json"
    cache.write_text(content)
    flags = ["--cap_file", str(captions), "--cache", str(cache)]
    assert program(["score", "chair", *flags, "--lemmatizer", "noun"]) == 2
    assert str(cache) in capsys.readouterr().err


def test_the_result_never_overwrites_the_captions(tmp_path, capsys):
    captions = write_captions(tmp_path / "c.jsonl", {1: "a dog"})
    before = captions.read_bytes()
    flags = ["--cap_file", str(captions), "--save_path", str(captions), "--lemmatizer", "noun"]
    assert program(["score", "chair", *flags]) == 2
    assert "would overwrite" in capsys.readouterr().err
    assert captions.read_bytes() == before


def test_missing_nltk_data_is_named_with_the_remedy(tmp_path):
    captions = write_captions(tmp_path / "c.jsonl", {1: "a dog"})
    code = "import sys, nltk; nltk.data.path[:] = [];"
    code += "from revisit.commands.main import start; start()"
    run = subprocess.run(
        [sys.executable, "-c", code, "score", "chair", "--cap_file", str(captions)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    for word in ("punkt", "averaged_perceptron_tagger", "wordnet", "nltk.downloader", "noun"):
        assert word in run.stderr


def test_the_nltk_pipeline_reads_verbs_as_verbs():
    try:
        lemmatize = LEMMATIZERS["nltk"]()
    except EvaluationError as error:
        pytest.skip(str(error))
    assert words_of("Two dogs are resting on the beds.", lemmatize) == ["dog", "bed"]
