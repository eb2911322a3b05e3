"""`revisit-compare`: what it tells of results, and which it does not compare."""

import csv
import json

import pytest

from revisit.evaluation import chair
from revisit.evaluation.compare import HEADER, main, name_of, read_result

OBJECTS = {1: ["dog"], 2: ["cat", "chair"], 3: ["pizza"]}
GREEDY = {1: "A dog and a cat.", 2: "A cat on a chair.", 3: "A pizza, a pizza and a fork."}
REFINED = {1: "A dog.", 2: "A cat on a chair.", 3: "A pizza on a plate."}


@pytest.fixture
def result(tmp_path):
    """Score captions by `revisit-chair`, as a run with these settings made them."""

    def make(name, captions, settings=None, objects=OBJECTS):
        file = tmp_path / f"{name}.jsonl"
        lines = [json.dumps({"image_id": i, "caption": text}) for i, text in captions.items()]
        file.write_text("\n".join(lines))
        if settings is not None:
            record = {"settings": settings, "images": []}
            (tmp_path / f"{name}.jsonl.run.json").write_text(json.dumps(record))
        cache = tmp_path / f"{name}-objects.json"
        cache.write_text(json.dumps({"objects": {str(i): o for i, o in objects.items()}}))
        out = tmp_path / f"{name}.json"
        flags = ["--cache", str(cache), "--save_path", str(out), "--lemmatizer", "noun"]
        assert chair.main(["--cap_file", str(file), *flags]) == 0
        return out

    return make


def test_counts_are_those_that_were_scored(result):
    out = result("greedy", GREEDY)
    found = chair.metrics(read_result(out).counts.sum(0))
    assert found == pytest.approx(json.loads(out.read_text())["overall_metrics"])
    assert read_result(out).repeats == pytest.approx(1 / 3)


def test_differences_are_those_of_the_paired_bootstrap(result, tmp_path, capsys):
    files = [result("greedy", GREEDY), result("refined", dict(reversed(REFINED.items())))]
    table = tmp_path / "table.csv"
    assert main([*map(str, files), "--csv", str(table)]) == 0
    header, first, second = csv.reader(table.read_text().splitlines())
    assert header == HEADER
    assert first[:1] == ["greedy"] and first[-5:] == [""] * 5
    baseline, other = (read_result(file).counts for file in files)
    gap = chair.paired_bootstrap(baseline, other)["CHAIRs"]
    numbers = [f"{100 * gap[name]:+.1f}" for name in ("difference", "low", "high")]
    assert second[HEADER.index("CHAIRs - baseline")] == "{} [{}, {}]".format(*numbers)
    assert gap["difference"] == pytest.approx(-2 / 3)
    printed = capsys.readouterr().out
    assert "3 images" in printed and "| refined" in printed


RUN = {"question": "What?", "max_new_tokens": 64}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"captions": {1: "A dog."}}, "2 images are in one of them only (image id 2, for one)"),
        ({"objects": OBJECTS | {3: ["pizza", "fork"]}}, "scored against other ground truths"),
        ({"settings": RUN | {"max_new_tokens": 512}}, "max_new_tokens is 64 in the first and 512"),
        ({"settings": RUN | {"question": "Who?"}}, "question is 'What?' in the first and 'Who?'"),
        ({"settings": None}, "question is 'What?' in the first and None in the second"),
    ],
)
def test_what_moves_the_numbers_by_itself_has_to_be_the_same(result, capsys, other, message):
    files = [
        result("first", GREEDY, RUN),
        result("second", **{"captions": REFINED, "settings": RUN} | other),
    ]
    assert main([*map(str, files)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", "{}", '{"sentences": []}', "no json"])
def test_what_revisit_chair_did_not_write_is_said(tmp_path, capsys, content):
    (tmp_path / "other.json").write_text(content)
    assert main([str(tmp_path / "other.json")]) == 2
    assert "other.json is not" in capsys.readouterr().err


def test_a_result_is_not_overwritten(result, capsys):
    file = result("greedy", GREEDY)
    before = file.read_text()
    assert main([str(file), "--csv", str(file)]) == 2
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, ""),
        ({"model": {"name": "tiny"}}, "tiny greedy"),
        ({"do_sample": True}, "sampling"),
        (
            {
                "use_revisit": True,
                "early_exit_layers": "all",
                "relative_top": 1e-05,
                "revisit_divergence": "ag",
                "revisit version": "0.1.0",
            },
            "revisit (divergence ag, early_exit_layers all, relative_top 1e-05)",
        ),
        ({"decoder": "vcd", "vcd_alpha": 1.0, "vcd_seed": 0}, "vcd (alpha 1.0, seed 0)"),
    ],
)
def test_a_run_is_called_by_its_model_and_decoder(settings, name):
    assert name_of(settings) == name
