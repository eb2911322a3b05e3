import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from revisit.commands.main import main as program
from revisit.evaluation import EvaluationError
from revisit.evaluation.answer_files import read_answers
from revisit.evaluation.benchmarks.pope import FORM, means_yes, read_labels, score

WORDS = ("No", "no", "not", "NO", "Not", "none", "know", "Yes", "a", "dog", "cannot", "n,o", "-")
JOINTS = (" ", " ", " ", "  ", "", ",", ", ", ". ", "\n", "!", "'")
DENIAL = re.compile(r"(^| )(No|no|not)( |$)")


def odd_answers(count: int) -> list[str]:
    draw = random.Random(0)
    return [
        "".join(draw.choice(WORDS) + draw.choice(JOINTS) for _ in range(draw.randint(0, 6)))
        for _ in range(count)
    ]


def lines(path: Path, *entries: Any) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def test_300_odd_answers_mean_what_the_published_rule_says() -> None:
    meanings = []
    for answer in odd_answers(300):
        sentence = re.sub(r"\..*", "", answer, flags=re.DOTALL).translate({ord(","): None})
        # The pattern's `$` would also match before a newline that ends the text.
        meanings.append(DENIAL.search(f"{sentence} ") is None)
        assert means_yes(answer) == meanings[-1], repr(answer)
    assert 50 < sum(meanings) < 250


@pytest.mark.parametrize(
    ("yes", "answers"),
    [
        (True, ["Yes", "Yes. No dog is missing.", "NO", "Nope", "No!", "No\n", ""]),
        (False, ["No", "No, there is no dog.", "There is not a dog", "n,ot"]),
    ],
)
def test_only_the_first_sentence_and_whole_words_count(yes: bool, answers: list[str]) -> None:
    assert {means_yes(answer) for answer in answers} == {yes}


def test_metrics_are_those_of_a_count_by_hand() -> None:
    labels = {1: True, 2: True, 3: True, 4: False, 5: False}
    answers = {1: "Yes", 2: "Yes", 3: "No", 4: "Yes", 5: "no"}
    expected = {"Accuracy": 0.6, "Precision": 2 / 3, "Recall": 2 / 3, "F1": 2 / 3, "Yes": 0.6}
    assert score(labels, answers) == pytest.approx(expected)


def test_a_model_that_always_denies_has_no_precision_and_no_f1() -> None:
    found = score({1: True, 2: False}, {1: "No", 2: "No"})
    assert found == {"Accuracy": 0.5, "Precision": 0.0, "Recall": 0.0, "F1": 0.0, "Yes": 0.0}


def test_the_program_reads_the_published_files_and_writes_the_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = {"image": "COCO_val2014_000000000001.jpg", "text": "Is there a dog in the image?"}
    asked = [{"question_id": 1, "label": "yes"} | text, {"question_id": 2, "label": "no"} | text]
    questions = lines(tmp_path / "questions.jsonl", *asked)
    texts = [{"question_id": 2, "answer": "No."}, {"question_id": 1, "answer": "Yes, there is."}]
    answers = lines(tmp_path / "answers.jsonl", *texts)
    out = tmp_path / "out.json"
    paths = ["--questions", str(questions), "--answers", str(answers), "--save_path", str(out)]
    assert program(["score", "pope", *paths]) == 0
    saved = json.loads(out.read_text("utf-8"))
    assert saved["count"] == 2
    assert saved["overall_metrics"] == score(read_labels(questions), read_answers(answers, FORM))
    assert saved["overall_metrics"]["Accuracy"] == 1
    assert "100.0" in capsys.readouterr().out


ASKED = {"question_id": 1, "label": "yes"}
ANSWER = {"question_id": 1, "answer": "No"}
SECOND, SEVENTH = {"question_id": 2}, {"question_id": 7}


@pytest.mark.parametrize(
    ("asked", "answered", "message"),
    [
        ([ASKED, ASKED | SECOND], [ANSWER | SECOND], r"1 of 2 .* no answer \(question_id 1,"),
        ([], [ANSWER], "no questions"),
        ([ASKED], [ANSWER, ANSWER | SEVENTH], r"1 answers are to no question \(question_id 7,"),
        ([ASKED | {"label": "maybe"}], [], "line 1: label 'maybe'"),
        ([{"question_id": 1}], [], "line 1 needs the keys 'question_id' and 'label'"),
        ([ASKED | {"question_id": [1]}], [], r"line 1: question_id \[1\] is no number"),
        ([ASKED], [ANSWER, ANSWER], "line 2 is a second answer of question_id 1"),
        ([ASKED], [ANSWER | {"answer": 0}], "is not text"),
        ([ASKED], ["No"], "line 1 has no key"),
    ],
)
def test_bad_input_is_named(
    tmp_path: Path, asked: list[Any], answered: list[Any], message: str
) -> None:
    questions = lines(tmp_path / "questions.jsonl", *asked)
    answers = lines(tmp_path / "answers.jsonl", *answered)
    with pytest.raises(EvaluationError, match=message):
        score(read_labels(questions), read_answers(answers, FORM))


def test_the_program_names_what_is_wrong_and_overwrites_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = lines(tmp_path / "questions.jsonl", {"question_id": 1, "label": "yes"})
    broken = tmp_path / "answers.jsonl"
    broken.write_text('\n{"question_id": 1,\n', encoding="utf-8")
    score_pope = ["score", "pope", "--questions", str(questions), "--answers"]
    assert program([*score_pope, str(broken)]) == 2
    assert "line 2 is not JSON" in capsys.readouterr().err
    assert program([*score_pope, str(tmp_path / "none")]) == 2
    before = questions.read_bytes()
    assert program([*score_pope, str(broken), "--save_path", str(questions)]) == 2
    assert "would overwrite" in capsys.readouterr().err
    assert questions.read_bytes() == before
