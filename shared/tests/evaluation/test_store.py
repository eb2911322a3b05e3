import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revisit.evaluation import EvaluationError
from revisit.evaluation.answer_files import Form, read_answers
from revisit.evaluation.benchmarks import chair, pope
from revisit.evaluation.store import AnswerStore

CAPTIONS, ANSWERS = chair.Chair.form, pope.FORM

SETTINGS = {"seed": 1, "relative_top": 1e-5, "layers": [1, 2]}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "out" / "captions.jsonl"
    with AnswerStore(path, CAPTIONS) as store:
        store.agree("settings", SETTINGS)
        store.append(7, "A dog.")
        store.append(8, 'A "cat"\non a bed. ☕')
    return path


def test_captions_are_there_again_on_opening(path):
    with AnswerStore(path, CAPTIONS) as store:
        assert store.answers == {7: "A dog.", 8: 'A "cat"\non a bed. ☕'}
        store.agree("settings", SETTINGS)
        store.append(9, "")
    assert read_answers(path, CAPTIONS) == {7: "A dog.", 8: 'A "cat"\non a bed. ☕', 9: ""}
    assert json.loads(path.read_text().splitlines()[0]) == {"image_id": 7, "caption": "A dog."}


@given(cut=st.integers(0, 200))
def test_a_file_cut_anywhere_opens_with_its_whole_lines(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "captions.jsonl"
    captions = {1: "A dog.", 2: "Zwei Äpfel", 3: "line\nline"}
    with AnswerStore(path, CAPTIONS) as store:
        store.agree("settings", SETTINGS)
        for image, caption in captions.items():
            store.append(image, caption)
    content = path.read_bytes()
    path.write_bytes(content[:cut])
    whole = content[:cut].count(b"\n")
    with AnswerStore(path, CAPTIONS) as store:
        assert list(store.answers) == list(captions)[:whole]
        for image in list(captions)[whole:]:
            store.append(image, captions[image])
    assert path.read_bytes() == content


def test_other_settings_are_refused_with_the_difference_and_nothing_changes(path):
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    with AnswerStore(path, CAPTIONS) as store, pytest.raises(EvaluationError) as error:
        store.agree("settings", SETTINGS | {"relative_top": 0.1})
    assert "relative_top: 1e-05, now 0.1" in str(error.value)
    assert "seed" not in str(error.value)
    assert "another --output_path" in str(error.value)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_captions_without_their_run_record_are_refused(path):
    record = path.with_name("captions.jsonl.run.json")
    record.unlink()
    with pytest.raises(EvaluationError, match=record.name):
        AnswerStore(path, CAPTIONS)
    path.write_text("")
    with AnswerStore(path, CAPTIONS) as store:
        store.agree("settings", {"seed": 2})


def test_a_damaged_line_is_named_and_the_file_left_as_it_was(path):
    content = b'{"image_id": 1, "caption": "a"}\nrubbish\n'
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match="line 2 is not JSON"):
        AnswerStore(path, CAPTIONS)
    assert path.read_bytes() == content


def test_a_second_process_is_refused(path):
    code = "import sys; from pathlib import Path; from revisit.evaluation.store import *;"
    code += "from revisit.evaluation.benchmarks.chair import Chair;"
    code += "AnswerStore(Path(sys.argv[1]), Chair.form)"
    command = [sys.executable, "-c", code, str(path)]
    with AnswerStore(path, CAPTIONS):
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode != 0
        assert "another process is writing" in run.stderr
    subprocess.run(command, check=True)


def test_a_full_disk_leaves_whole_lines_and_a_clear_error(path):
    # A limit on the size of files makes the kernel write half a line and then refuse, as a full
    # disk does.
    code = """
import resource, sys
from pathlib import Path
from revisit.evaluation.benchmarks.chair import Chair
from revisit.evaluation.store import AnswerStore
with AnswerStore(Path(sys.argv[1]), Chair.form) as store:
    limit = Path(sys.argv[1]).stat().st_size + 100
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    store.append(9, "A bird.")
    store.append(10, "A very long caption. " * 20)
"""
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert "cannot write to" in run.stderr
    assert "Its 3 captions are whole" in run.stderr
    assert list(read_answers(path, CAPTIONS)) == [7, 8, 9]
    assert path.read_bytes().endswith(b"\n")


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(EvaluationError, match="cannot open"):
        AnswerStore(file / "captions.jsonl", CAPTIONS)


def test_a_list_is_not_appended_to_and_left_as_it_was(path):
    path.write_text('[{"image_id": 1, "caption": "a"}]')
    with pytest.raises(EvaluationError, match="give another --output_path"):
        AnswerStore(path, CAPTIONS)
    assert path.read_text() == '[{"image_id": 1, "caption": "a"}]'


@pytest.mark.parametrize(
    ("form", "keys", "line"),
    [
        (ANSWERS, (3, "b"), {"question_id": 3, "answer": "Yes"}),
        (
            Form("answers.jsonl", ("set_id", "figure_id"), "answer", "question"),
            (("1", 0), ("1", 1)),
            {"set_id": "1", "figure_id": 0, "answer": "Yes"},
        ),
    ],
    ids=["one id", "several"],
)
def test_answers_are_kept_by_their_ids(tmp_path, form, keys, line):
    path = tmp_path / "answers.jsonl"
    with AnswerStore(path, form) as store:
        store.agree("settings", SETTINGS)
        store.append(keys[0], "Yes")
        store.append(keys[1], "No")
    with AnswerStore(path, form) as store:
        assert store.answers == dict(zip(keys, ("Yes", "No"), strict=True))
    assert json.loads(path.read_text().splitlines()[0]) == line
    with pytest.raises(EvaluationError, match="has no key 'image_id'"):
        AnswerStore(path, CAPTIONS)


def test_another_version_continues_a_file_that_then_names_both(path):
    record = path.with_name("captions.jsonl.run.json")
    saved = json.loads(record.read_text())
    saved["settings"]["revisit version"] = "0.1.0"
    record.write_text(json.dumps(saved))
    for version in ("0.2.0", "0.2.0", "0.1.0"):
        with AnswerStore(path, CAPTIONS) as store:
            store.agree("settings", SETTINGS | {"revisit version": version})
        settings = json.loads(record.read_text())["settings"]
        assert settings == SETTINGS | {"revisit version": "0.1.0, 0.2.0"}
