"""`revisit score`: what it prints, and what it refuses before it scores."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from revisit.commands.main import main


@pytest.fixture
def captions(tmp_path):
    """Flags for two captions, of which one names an object that its image does not show."""
    texts = {1: "A dog.", 2: "A dog and a cat."}
    lines = [json.dumps({"image_id": i, "caption": text}) for i, text in texts.items()]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    objects = {"objects": {"1": ["dog"], "2": ["dog"]}}
    (tmp_path / "objects.json").write_text(json.dumps(objects))
    flags = ["--cap_file", str(tmp_path / "captions.jsonl"), "--lemmatizer", "noun"]
    return ["score", "chair", *flags, "--cache", str(tmp_path / "objects.json")]


def test_the_table_is_markdown_where_no_terminal_is(captions, capsys):
    assert main(captions) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "Percent; Len in words"
    assert out[2].split("|")[2:-1] == [" CHAIRs ", " CHAIRi ", " Recall ", " F1   ", " Len "]
    assert "50.0" in out[4]


def test_json_is_the_metrics(captions, capsys, tmp_path):
    out = tmp_path / "chair.json"
    assert main([*captions, "--json", "--save_path", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text())["overall_metrics"]
    assert printed["CHAIRs"] == 0.5


def test_a_folder_that_is_not_there_is_said_before_scoring(captions, capsys, monkeypatch):
    monkeypatch.setattr(
        "revisit.evaluation.benchmarks.chair.score_file", lambda *_: pytest.fail("scored")
    )
    assert main([*captions, "--save_path", "/missing/chair.json"]) == 2
    assert "there is no folder /missing" in capsys.readouterr().err


def test_the_table_is_drawn_on_a_terminal(captions):
    pty = pytest.importorskip("pty")
    reading, writing = pty.openpty()
    subprocess.run([sys.executable, "-m", "revisit", *captions], stdout=writing, check=True)
    os.close(writing)
    drawn = os.read(reading, 10_000).decode()
    assert "CHAIRs" in drawn and "50.0" in drawn and "|" not in drawn


SHARED = Path(__file__).resolve().parents[4] / "shared"
published = pytest.mark.skipif(not SHARED.is_dir(), reason="published cases not here")


@published
def test_amber_s_figures_lie_in_the_saved_result(tmp_path, capsys):
    folder, out = SHARED / "amber", tmp_path / "amber.json"
    flags = ["--amber_path", str(folder), "--lemmatizer", "noun", "--save_path", str(out)]
    assert main(["score", "amber", "--answers", str(folder / "answers.json"), *flags]) == 0
    expected = json.loads((folder / "expected.json").read_text())
    saved, figures = json.loads(out.read_text()), expected["noun, words alike only when equal"]
    assert {part: saved[part] for part in figures} == figures
    assert "discriminative F1" in capsys.readouterr().out


def test_amber_s_table_of_similar_words_is_spacy_s(tmp_path, capsys):
    flags = ["--answers", "a.json", "--amber_path", ".", "--similarity_table", "table.json"]
    assert main(["score", "amber", *flags]) == 2
    assert "--similarity spacy" in capsys.readouterr().err


@published
def test_hallusionbench_says_who_judged(tmp_path, capsys):
    folder = SHARED / "hallusionbench"
    flags = ["--data_path", str(folder / "HallusionBench.json")]
    assert main(["score", "hallusionbench", "--answers", str(folder / "answers.json"), *flags]) == 0
    out, err = capsys.readouterr()
    assert "73.3" in out and "GPT-4" in err


def test_mme_is_scored_in_points(tmp_path, capsys):
    (tmp_path / "existence").mkdir()
    (tmp_path / "existence" / "1.jpg").touch()
    (tmp_path / "existence" / "1.txt").write_text("A dog?\tYes\nA cat?\tNo\n")
    entry = {"category": "existence", "image": "1", "answer": "Yes"}
    lines = [json.dumps({**entry, "question": text}) for text in ("A dog?", "A cat?")]
    (tmp_path / "answers.jsonl").write_text("\n".join(lines))
    flags = ["--answers", str(tmp_path / "answers.jsonl"), "--data_path", str(tmp_path)]
    assert main(["score", "mme", *flags]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Points") and "50.0" in out
