import json
from pathlib import Path

import pytest

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
    }


def measured(questions, texts):
    named = hallusionbench.by_key(questions, "questions")
    counts = hallusionbench.counts(named, dict(zip(named, texts, strict=True)))
    return counts.sum(0).tolist()


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="HallusionBench's questions not here")
@pytest.mark.parametrize("part", ["all", "VD", "VS"])
def test_the_published_functions_figures_come_out_to_the_last_digit(part):
    def read(name):
        entries = json.loads((PUBLISHED / name).read_text())
        kept = [entry for entry in entries if part in ("all", entry["category"])]
        return hallusionbench.by_key(kept, name)

    questions = read("HallusionBench.json")
    answers = {key: entry["answer"] for key, entry in read("answers.json").items()}
    totals = hallusionbench.counts(questions, answers).sum(0)
    expected = json.loads((PUBLISHED / "expected.json").read_text())[part]
    found = (100 * hallusionbench.measure(totals)).round(4).tolist()
    assert found == [expected[name] for name in ("aAcc", "qAcc", "fAcc")]
    assert totals[1::2].tolist() == [expected[name] for name in ("questions", "pairs", "figures")]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("Yes", True),
        ("yes, it is.", True),
        ("NO", False),
        ("No.", False),
        (' "No", it is not', False),
        ("I do not know", None),
        ("Nothing", None),
        ("It is so: yes", None),
        ("", None),
    ],
)
def test_an_answer_says_what_its_first_word_says(answer, says):
    assert hallusionbench.read_answer(answer) is says


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
        ([question(1, 0, "1")], [], "1 questions have no answer"),
        ([question(1, 0, "1")], [question(1, 0, "1"), question(1, 1, "1")], "to no question"),
    ],
)
def test_answers_and_questions_belong_together(questions, answers, message):
    named = hallusionbench.by_key(questions, "questions")
    with pytest.raises(EvaluationError, match=message):
        hallusionbench.counts(
            named, dict.fromkeys(hallusionbench.by_key(answers, "answers"), "Yes")
        )


def test_an_entry_without_a_name_or_twice_is_refused():
    with pytest.raises(EvaluationError, match="entry 1 lacks 'figure_id'"):
        hallusionbench.by_key([{"category": "VD", "subcategory": "map", "set_id": "0"}], "file")
    with pytest.raises(EvaluationError, match="entry 2 repeats"):
        hallusionbench.by_key([question(1, 0, "1"), question(1, 0, "0")], "file")
