"""`revisit score`: what it prints, and what it refuses before it scores."""

import json

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
