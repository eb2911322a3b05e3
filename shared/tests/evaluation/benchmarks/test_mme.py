import json

import numpy as np
import pytest
from PIL import Image

from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks import mme

TWO = "Is it a dog? Please answer yes or no.\tYes\nIs it a cat? Please answer yes or no.\tNo\n"


@pytest.fixture
def folder(tmp_path):
    """Two categories: one with texts beside images of three suffixes, one in two folders."""
    beside = tmp_path / "existence"
    beside.mkdir()
    for number, suffix in enumerate((".jpg", ".png", ".jpeg")):
        Image.new("RGB", (10 + number, 10)).save(beside / f"{number}{suffix}")
    (beside / "0.txt").write_bytes(TWO.encode())
    (beside / "1.txt").write_bytes(TWO.replace("\n", "\r\n").encode())
    (beside / "2.txt").write_bytes(b"\xef\xbb\xbf" + TWO.rstrip("\n").encode())
    apart = tmp_path / "posters"
    (apart / "images").mkdir(parents=True)
    Image.new("RGB", (20, 10)).save(apart / "images" / "tt1.jpg")
    (apart / "questions_answers_YN").mkdir()
    (apart / "questions_answers_YN" / "tt1.txt").write_text(TWO + "\n")
    return tmp_path


def answered(folder, **texts):
    """The score, where every question of an image has its answers; others are right."""
    answers = {
        question: texts.get(question.image, {True: "Yes", False: "No"})[question.yes]
        for question in mme.read_questions(folder)
    }
    _, counts = mme.counts(answers)
    return dict(zip(mme.METRICS, mme.measure(counts.sum(0)), strict=True))


def test_questions_are_read_from_both_layouts_and_all_line_ends(folder):
    questions = mme.read_questions(folder)
    assert [(q.category, q.image, q.yes) for q in questions] == [
        (category, image, yes)
        for category, image in (*(("existence", i) for i in "012"), ("posters", "tt1"))
        for yes in (True, False)
    ]
    assert {q.text for q in questions if q.yes} == {"Is it a dog? Please answer yes or no."}
    assert {path.suffix for path in questions.values()} == {".jpg", ".png", ".jpeg"}


@pytest.mark.parametrize(
    ("says", "answers"),
    [
        (True, ["yes", "Yes, it is"]),
        (False, ["NO", "No.", "Not", "a no"]),
        (None, ["I know", "It is: yes", ""]),
    ],
)
def test_an_answer_is_read_by_its_first_four_characters(says, answers):
    assert {mme.read_answer(answer) for answer in answers} == {says}


def test_a_category_adds_accuracy_and_that_of_whole_images(folder):
    assert answered(folder)["existence"] == 2
    half = answered(folder, **{"0": {True: "Yes", False: "Yes"}})
    assert half["existence"] == pytest.approx(5 / 6 + 2 / 3)
    assert half["hallucination"] == half["existence"]
    assert half["perception"] == pytest.approx(half["existence"] + half["posters"])
    assert half["cognition"] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Is it a dog?\tYes\n", "has 1 lines"),
        (TWO + "Is it a cow?\tNo\n", "has 3 lines"),
        ("Is it a dog? Yes\nIs it a cat?\tNo\n", "no question, tab"),
        ("Is it a dog?\tMaybe\nIs it a cat?\tNo\n", "no question, tab"),
    ],
)
def test_a_file_that_is_not_in_the_published_form_is_named(text, message, folder):
    (folder / "existence" / "0.txt").write_text(text)
    with pytest.raises(EvaluationError, match=rf"0\.txt.*{message}"):
        mme.read_questions(folder)


def test_a_text_without_its_image_and_a_folder_without_categories_are_refused(folder, tmp_path):
    (folder / "existence" / "1.png").unlink()
    with pytest.raises(EvaluationError, match=r"1\.txt has no image"):
        mme.read_questions(folder)
    with pytest.raises(EvaluationError, match="none of MME's categories"):
        mme.read_questions(tmp_path / "existence")


def test_an_image_without_two_answers_is_refused(folder):
    first, *_ = mme.read_questions(folder)
    with pytest.raises(EvaluationError, match="existence/0 has 1"):
        mme.counts({first: "Yes"})


def test_every_question_is_asked_about_its_image_scored_and_compared(folder, run):
    captioner, saved, result = run(
        mme.Mme(data_path=folder), lambda size, text: "No" if size[0] == 11 else "Yes"
    )
    assert len(captioner.asked) == 8
    assert {size for size, _ in captioner.asked} == {(10, 10), (11, 10), (12, 10), (20, 10)}
    assert saved["points"]["existence"] == pytest.approx(50)
    assert saved["points"]["posters"] == 50 and "OCR" not in saved["overall_metrics"]
    names = [f"existence/{number}" for number in range(3)]
    assert result.things == [*names, "posters/tt1"]
    measured = result.columns.measure(result.counts.sum(0))
    assert np.array_equal(measured, list(saved["overall_metrics"].values())[:3])


def test_answers_to_other_questions_are_refused(folder, run, tmp_path):
    run(mme.Mme(data_path=folder), lambda size, text: "No")
    (folder / "existence" / "0.txt").write_text(TWO.replace("dog", "cow"))
    with pytest.raises(EvaluationError, match="other questions"):
        mme.score_file(tmp_path / "out" / "answers.jsonl", folder)
    line = {"category": "existence", "image": "0", "question": "Is it?", "answer": "Yes"}
    (tmp_path / "alone.jsonl").write_text(json.dumps(line))
    with pytest.raises(EvaluationError, match="8 of 8 questions have no answer"):
        mme.score_file(tmp_path / "alone.jsonl", folder)
