import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks import hallusionbench

PUBLISHED = Path(__file__).resolve().parents[5] / "shared" / "hallusionbench"


def question(figure, number, answer, category="VD"):
    return {
        "category": category,
        "subcategory": "chart",
        "set_id": "0",
        "figure_id": str(figure),
        "question_id": str(number),
        "gt_answer": answer,
        "question": f"Is it {number}?",
        "filename": None if str(figure) == "0" else f"./{category}/{figure}.png",
    }


def named(entries):
    return {tuple(each[name] for name in hallusionbench.KEY): each for each in entries}


def measured(questions, texts):
    asked = named(questions)
    return hallusionbench.counts(asked, dict(zip(asked, texts, strict=True))).sum(0).tolist()


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="HallusionBench's questions not here")
def test_the_published_functions_figures_come_out_to_the_last_digit():
    saved = hallusionbench.score_file(PUBLISHED / "answers.json", PUBLISHED / "HallusionBench.json")
    expected = json.loads((PUBLISHED / "expected.json").read_text())
    assert {part: saved[part] for part in expected} == expected
    assert "GPT-4" in saved["judge"]


@pytest.mark.parametrize(
    ("says", "answers"),
    [
        (True, ["Yes", "yes, it is."]),
        (False, ["NO", "No.", ' "No", it is not']),
        (None, ["I do not know", "Nothing", "It is so: yes", ""]),
    ],
)
def test_an_answer_is_read_by_its_first_word(says, answers):
    assert {hallusionbench.read_answer(answer) for answer in answers} == {says}


def test_questions_and_figures_are_right_where_all_their_answers_are():
    questions = [question(1, 0, "1"), question(1, 1, "0"), question(2, 0, "0"), question(2, 1, "0")]
    assert measured(questions, ["Yes", "No", "No", "Yes"]) == [3, 4, 1, 2, 1, 2]


def test_not_to_answer_is_right_only_without_an_image():
    for answer, right in (("I cannot tell", 1), ("Yes", 0), ("No", 1)):
        assert measured([question(0, 0, "0", "VS")], [answer])[0] == right
    assert measured([question(1, 0, "0", "VS")], ["I cannot tell"])[0] == 0
    assert measured([question(0, 0, "0", "VD")], ["I cannot tell"])[0] == 0


def test_a_figure_that_is_left_out_counts_in_no_figure():
    assert measured([question(0, 0, "0", "VS")], ["No"])[4:] == [0, 0]


@pytest.mark.parametrize(
    ("questions", "answers", "message"),
    [
        ([], [], "no questions"),
        ([question(1, 0, "1")], [], "1 of 1 questions have no answer"),
        ([question(1, 0, "1")], [question(1, 0, "1"), question(1, 1, "1")], "to no question"),
    ],
)
def test_answers_and_questions_belong_together(questions, answers, message):
    with pytest.raises(EvaluationError, match=message):
        hallusionbench.counts(named(questions), dict.fromkeys(named(answers), "Yes"))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            [{"category": "VD", "subcategory": "map", "set_id": "0"}],
            "entry 1 has no key 'figure_id'",
        ),
        ([question(1, 0, "1"), question(1, 0, "0")], "entry 2 repeats the question VD/chart/0/1/0"),
    ],
)
def test_a_question_without_a_name_or_twice_is_refused(entries, message, tmp_path):
    path = tmp_path / "HallusionBench.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(EvaluationError, match=message):
        hallusionbench.read_questions(path)


def test_questions_with_and_without_an_image_are_asked_scored_and_compared(run, tmp_path):
    entries = [question(1, 0, "1"), question(1, 1, "0"), question(0, 0, "0", "VS")]
    path = tmp_path / "HallusionBench.json"
    path.write_text(json.dumps(entries))
    (tmp_path / "images" / "VD").mkdir(parents=True)
    benchmark = hallusionbench.HallusionBench(data_path=tmp_path / "images", questions_path=path)
    with pytest.raises(EvaluationError, match="lacks 1 of the 1 images"):
        benchmark.sections(0)
    Image.new("RGB", (7, 8)).save(tmp_path / "images" / "VD" / "1.png")
    captioner, saved, result = run(benchmark, lambda size, text: "Yes" if size else "Who knows")
    assert captioner.asked == [((7, 8), "Is it 0?"), ((7, 8), "Is it 1?"), (None, "Is it 0?")]
    sizes = {"questions": 3, "pairs": 3, "figures": 1}
    assert saved["all"] == {"aAcc": 66.6667, "qAcc": 66.6667, "fAcc": 0} | sizes
    assert result.things == ["VD/chart/0", "VS/chart/0"]
    measured = result.columns.measure(result.counts.sum(0))
    assert np.array_equal(measured, list(saved["overall_metrics"].values()))
