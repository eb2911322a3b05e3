"""`revisit caption` on the embedded demo."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("torchvision", reason="Qwen2.5-VL's processor needs it")

import transformers

import revisit
from releases import RELEASE
from revisit import ReVisiTConfig
from revisit.commands import CommandError, describe
from revisit.commands.caption import side_by_side
from revisit.commands.describe import Describer, demo_model
from revisit.commands.engines.description import Description
from revisit.commands.main import main
from revisit.evaluation.pictures.picture import replaced

if RELEASE < (4, 57):
    pytest.skip("written for stock releases", allow_module_level=True)

IMAGES = Path(demo_model()).parent / "coco" / "val2014"
FILES = [str(path) for path in sorted(IMAGES.glob("*.jpg"))[:2]]


@pytest.fixture(scope="module")
def describer():
    transformers.logging.disable_progress_bar()
    return Describer(demo_model())


@pytest.fixture
def run(describer, monkeypatch, capsys):
    """The command with the model loaded already: status, what it said, what it complained of."""

    def command(*arguments):
        monkeypatch.setattr(describe, "Describer", lambda name: describer)
        status = main(["caption", *arguments])
        told = capsys.readouterr()
        return status, told.out, told.err

    return command


def test_the_command_runs_with_nothing_but_an_image(tmp_path):
    report = tmp_path / "out.html"
    command = [sys.executable, "-m", "revisit", "caption", FILES[0], "--report", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{FILES[0]}: ") and len(done.stdout.split()) > 8
    assert '"vision_token": ' in report.read_text("utf-8")
    assert "knows drawn scenes only" not in done.stderr  # it is one


def test_words_come_one_after_another_and_say_what_the_whole_says(describer):
    image = Image.open(FILES[0])
    lengths = []
    said = describer.describe(
        image, ReVisiTConfig(), on_words=lambda words: lengths.append(len(words))
    )
    assert len(lengths) == said.tokens > 10
    assert lengths == sorted(lengths) and lengths[0] <= 1
    assert "".join(word.before + word.text for word in said.words).strip() == said.text
    assert not said.stopped


def test_the_words_and_changes_are_those_of_the_trace(describer):
    image = Image.open(FILES[0])
    inputs = describer.inputs([image], describe.QUESTION)
    with revisit.attach(describer.model, ReVisiTConfig(trace=True)) as run:
        output = describer.model.generate(**inputs, max_new_tokens=256, do_sample=False)
    said = describer.describe(image, ReVisiTConfig())
    steps = [step for word in said.words for token in word.tokens for step in [token.step]]
    (trace,) = run.trace
    ids = output[0, inputs["input_ids"].shape[1] :].tolist()
    assert [step.token for step in trace] == ids
    assert steps == trace[: len(steps)]  # what follows is the end
    for word in said.words:
        for token in word.tokens:
            assert (token.instead is not None) == token.step.changed


def test_greedy_words_have_no_patches_and_are_those_of_plain_generate(describer, run):
    image = Image.open(FILES[0])
    inputs = describer.inputs([image], describe.QUESTION)
    output = describer.model.generate(**inputs, max_new_tokens=256, do_sample=False)
    new = output[0, inputs["input_ids"].shape[1] :]
    said = describer.describe(image, None)
    assert said.text == describer.processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    status, out, _ = run(FILES[0], "--decoder", "greedy")
    assert status == 0 and out == f"{FILES[0]}: {said.text}\n"


def test_what_greedy_would_have_said_stands_before_a_changed_word(describer, run):
    file = str(IMAGES / "COCO_val2014_000000000123.jpg")
    said = describer.describe(Image.open(file), ReVisiTConfig(layers="all"))
    status, out, _ = run(file, "--layers", "all")
    assert status == 0
    changed = {word.text: word.instead for word in said.words if replaced(word)}
    assert "frisbee" in changed.values() and out.count("[greedy: ") == len(changed)
    for word, instead in changed.items():
        assert f" [greedy: {instead}] {word}" in out


def test_a_photograph_is_not_described_by_the_demo_s_model_without_a_warning(run, tmp_path):
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "sea.jpg")
    status, _, err = run(str(tmp_path / "sea.jpg"))
    assert status == 0
    assert "knows drawn scenes only; for photographs: --model Qwen/" in err
    assert "knows drawn scenes" not in run(FILES[0])[2]


def test_compare_sets_both_side_by_side_and_says_where_they_differ(describer, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "81")
    file = str(IMAGES / "COCO_val2014_000000000123.jpg")
    status, out, _ = run(file, "--layers", "all", "--compare")
    assert status == 0
    _, head, *rows = out.splitlines()
    assert [each.strip() for each in head.split("|")] == ["Greedy decoding", "With ReVisiT"]
    assert all(len(row) <= 81 and row[40] == "|" for row in rows)
    columns = [" ".join(row[:40] for row in rows), " ".join(row[42:] for row in rows)]
    for column, config in zip(columns, (None, ReVisiTConfig(layers="all")), strict=True):
        text = describer.describe(Image.open(file), config).text
        assert re.sub(r"[\[\]]", "", column).split() == text.split()
    assert "[frisbee.]" in columns[0] and "[cup,]" in columns[1]


def test_columns_are_coloured_on_a_terminal():
    said = {
        name: Description(text, [], 1, False) for name, text in (("one", "a b c"), ("two", "a x c"))
    }
    made = side_by_side(said, 43, coloured=True)
    assert made.splitlines()[1] == f"a \033[31mb\033[0m c{' ' * 15} | a \033[1;32mx\033[0m c"


@pytest.mark.parametrize("ending", ["pdf", "png", "svg"])
def test_a_figure_and_a_report_show_both_captions(run, tmp_path, ending):
    report, figure = tmp_path / "out.html", tmp_path / f"out.{ending}"
    status, _, err = run(FILES[0], "--figure", str(figure), "--report", str(report))
    assert status == 0 and err.count("written: ") == 2
    assert figure.stat().st_size > 5000
    assert "Greedy decoding" in report.read_text("utf-8")


def test_the_report_s_boxes_cover_the_image_once(describer):
    image = Image.open(FILES[0])
    boxes = [box for _, box in describer.boxes(image)]
    assert sum((right - left) * (bottom - top) for left, top, right, bottom in boxes) == (
        pytest.approx(1, abs=0.02)
    )


def test_an_image_that_fails_does_not_stop_the_next(run, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    Image.new("RGB", (900, 3)).save(tmp_path / "thin.png")
    names = [str(tmp_path / "text.jpg"), str(tmp_path / "thin.png"), "http://a.b/c.jpg", FILES[1]]
    status, out, err = run(*names, "--report", str(tmp_path / "out.html"))
    assert status == 1
    assert out.splitlines()[-1].startswith(f"{FILES[1]}: ")
    assert "not an image that can be read" in err and "is a URL" in err
    assert "cannot read this image" in err
    assert (tmp_path / "out.html").read_text("utf-8").count("<section") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--alpha", "2"], r"alpha \(relative_top\) must be in \[0, 1\]"),
        (["--layers", "middle"], "layers must be one of"),
        (["--layers", "0,99"], "99"),
        (["--report", "out.txt"], r"must end in \.html"),
        (["--report", "/missing/out.html"], "there is no folder /missing"),
        ([FILES[1], "--figure", "out.png"], "--figure out.png shows one image"),
        (["--figure", "out.gif"], r"ends in \.pdf, \.png, \.svg"),
        (["--figure", "/missing/out.png"], "there is no folder /missing"),
        (["--decoder", "greedy", "--compare"], "--compare and --figure show greedy decoding"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_said(run, arguments, message):
    status, out, err = run(FILES[0], *arguments)
    assert status == 2 and not out
    assert re.search(message, err), err


def test_json_is_a_line_for_each_image_with_the_words_and_their_patches(describer, run):
    question = "Is there a dog?"
    status, out, _ = run(*FILES, "--json", "--question", question)
    assert status == 0
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["image"] for record in records] == FILES
    said = describer.describe(Image.open(FILES[0]), ReVisiTConfig(), question=question)
    assert records[0]["text"] == said.text and records[0]["question"] == question
    for record, word in zip(records[0]["words"], said.words, strict=True):
        assert record["text"] == word.text and (record["greedy"] is None) == (not word.instead)
        assert tuple(record["patch"]) == word.tokens[0].step.patch


def test_without_an_image_that_can_be_read_no_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(describe, "Describer", lambda name: pytest.fail("loaded"))
    assert main(["caption", "/missing/1.jpg", "/missing/2.jpg"]) == 1
    assert capsys.readouterr().err.count("No such file or directory") == 2


def test_a_model_that_is_not_there_is_named():
    with pytest.raises(CommandError, match="no checkpoint at /missing/model"):
        Describer("/missing/model")
