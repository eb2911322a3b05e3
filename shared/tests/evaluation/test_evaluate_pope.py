"""Runs of POPE from flags to scores, on a captioner without a model."""

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from revisit.commands.main import main as program
from revisit.evaluation.answer_files import read_answers
from revisit.evaluation.benchmarks.pope import FORM, Pope, read_labels
from revisit.evaluation.captioner import Answer

PUBLISHED = Path(__file__).resolve().parents[4] / "shared" / "pope"
SPLITS = ("random", "popular", "adversarial")
OBJECTS = ("dog", "cat", "bus", "cow")


class Wide:
    """Answers yes where the image's width is even; keeps the questions."""

    settings = {"prompt": "v1"}  # noqa: RUF012
    fails_at = None
    loaded = 0
    asked: list[tuple[int, str]]

    def __init__(self, run):
        type(self).asked, type(self).loaded = [], type(self).loaded + 1

    def answer(self, images, questions):
        if self.fails_at is not None and len(self.asked) >= self.fails_at:
            raise RuntimeError("out of memory")
        self.asked.extend(
            (image.width, text) for image, text in zip(images, questions, strict=True)
        )
        return [Answer("No, there is not." if image.width % 2 else "Yes.", 4) for image in images]


@pytest.fixture
def pope(tmp_path):
    """Question files about three of the images, by the published names and, one, the demo's."""
    folder = tmp_path / "pope"
    folder.mkdir()
    for number, split in enumerate(SPLITS):
        questions = [
            {
                "question_id": key,
                "image": f"COCO_val2014_{1 + key // 4:012d}.jpg",
                "text": f"Is there a {OBJECTS[(key + number) % 4]} in the image?",
                "label": "yes" if key % 2 else "no",
            }
            for key in range(12)
        ]
        name = f"{split}.jsonl" if split == "popular" else f"coco_pope_{split}.json"
        (folder / name).write_text("".join(json.dumps(each) + "\n" for each in questions))
    return folder


@pytest.fixture
def run(eval_command, tmp_path, pope):
    out = tmp_path / "out"
    flags = ["--pope_path", str(pope), "--output_path", str(out), "--batch_size", "5"]

    def run(*more: str, load=Wide) -> int:
        Wide.loaded = 0
        return eval_command("pope", *flags, *more, load=load)

    run.out, run.folder = out, pope
    run.record = lambda split: json.loads((out / split / "answers.jsonl.run.json").read_text())
    return run


def test_every_question_of_all_splits_is_asked_about_its_image_and_scored(run, capsys):
    assert run() == 0
    assert Wide.loaded == 1
    expected = [
        (11 + key // 4, f"Is there a {OBJECTS[(key + number) % 4]} in the image?")
        for number in range(3)
        for key in range(12)
    ]
    assert Wide.asked == expected
    for split in SPLITS:
        answers = read_answers(run.out / split / "answers.jsonl", FORM)
        assert list(answers) == list(range(12))
        assert answers[0] == "No, there is not." and answers[4] == "Yes."
        metrics = json.loads((run.out / split / "pope.json").read_text())["overall_metrics"]
        assert metrics["Yes"] == pytest.approx(1 / 3) and metrics["Accuracy"] == 0.5
        assert run.record(split)["runs"][0]["tokens"] == 48
        assert run.record(split)["runs"][0]["answers"] == 12
    out = capsys.readouterr().out
    files = [line for line in out.splitlines() if line.startswith("12 of 12 answers in ")]
    assert [Path(file).parent.name for file in files] == list(SPLITS)
    assert out.count("Accuracy") == 3


def test_some_splits_and_one_word_more_may_be_asked_for(run):
    assert run("--splits", "popular", "--one_word", "true", "--max_new_tokens", "3") == 0
    assert [path.name for path in run.out.iterdir()] == ["popular"]
    assert Wide.asked[0][1] == (
        "Is there a cat in the image? Please answer this question with one word."
    )
    settings = run.record("popular")["settings"]
    assert settings["question"] == "<text> Please answer this question with one word."
    assert settings["split"] == "popular" and len(settings["questions"]) == 64
    assert settings["max_new_tokens"] == 3


def test_a_run_that_stopped_continues_and_a_finished_one_loads_no_model(run):
    Broken = type("Broken", (Wide,), {"fails_at": 15})
    assert run(load=Broken) == 1
    assert len(read_answers(run.out / "popular" / "answers.jsonl", FORM)) == 5
    assert not (run.out / "popular" / "pope.json").exists()
    assert run() == 0
    assert len(Wide.asked) == 7 + 12
    before = {path: path.read_bytes() for path in run.out.rglob("answers.jsonl")}
    assert len(before) == 3
    assert run(load=None) == 0
    assert {path: path.read_bytes() for path in before} == before


def test_other_questions_on_a_rerun_are_refused(run, capsys):
    assert run("--splits", "random") == 0
    before = (run.out / "random" / "answers.jsonl").read_bytes()
    file = run.folder / "coco_pope_random.json"
    assert run("--splits", "random", "--one_word") == 2
    err = capsys.readouterr().err
    assert 'question: "<text>", now "<text> Please answer' in err
    assert "holds 12 answers made with other settings" in err
    file.write_text(file.read_text().replace("dog", "cup"))
    assert run("--splits", "random") == 2
    assert "questions: " in capsys.readouterr().err
    assert (run.out / "random" / "answers.jsonl").read_bytes() == before


def test_questions_about_an_image_that_cannot_be_read_leave_nothing_to_score(run, images, capsys):
    image = images / "COCO_val2014_000000000002.jpg"
    content = image.read_bytes()
    image.write_bytes(b"no image")
    assert run("--splits", "random") == 2
    err = capsys.readouterr().err
    assert "WARNING: 1 images could not be read" in err
    assert "4 of 12 questions have no answer" in err
    assert not (run.out / "random" / "pope.json").exists()
    failed = run.record("random")["failed"]
    assert [entry["question_id"] for entry in failed] == [4, 5, 6, 7]
    image.write_bytes(content)
    assert run("--splits", "random") == 0
    assert len(read_answers(run.out / "random" / "answers.jsonl", FORM)) == 12


def test_without_an_output_path_the_folder_is_named_by_the_settings(eval_command, tmp_path, pope):
    for flag in ("--use_revisit", "--one_word"):
        flags = [flag, "--pope_path", str(pope), "--splits", "random"]
        assert eval_command("pope", *flags, load=Wide) == 0
    made = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert made == ["pope-one-word-plain-seed42", "pope-revisit-last-1e-5-ag-seed42"]


def test_bad_input_is_refused_before_the_model_loads(run, images, capsys, tmp_path):
    for flags, message in (
        (["--pope_path", str(tmp_path)], "has no coco_pope_random.json or random.jsonl"),
        (["--pope_path", str(tmp_path)], "download_pope.py"),
        (["--output_path", "answers.jsonl"], "so give a folder"),
        (["--data_path", str(tmp_path)], "lacks 3 of the 3 images"),
        (["--data_path", str(tmp_path / "none")], "is not a folder of images"),
    ):
        assert run(*flags, load=None) == 2
        assert message in capsys.readouterr().err
    assert run("--splits", "hard", load=None) == 2
    assert 'Invalid value "hard" for --splits' in capsys.readouterr().err
    file = run.folder / "coco_pope_random.json"
    for line, message in (
        ('{"question_id": 1, "label": "yes", "image": "a.jpg"}', "'image' and 'text'"),
        ('{"question_id": 1, "label": "maybe", "image": "a.jpg", "text": "?"}', "'maybe'"),
        ("", "holds no questions"),
    ):
        file.write_text(line)
        assert run(load=None) == 2
        assert message in capsys.readouterr().err
    assert not run.out.exists()


def test_answers_are_scored_by_the_questions_that_were_asked_alone(run, capsys):
    assert run("--splits", "random") == 0
    answers = ["--answers", str(run.out / "random" / "answers.jsonl")]
    asked, others = (str(run.folder / f"coco_pope_{name}.json") for name in SPLITS[::2])
    assert program(["score", "pope", "--questions", asked, *answers]) == 0
    capsys.readouterr()
    assert program(["score", "pope", "--questions", others, *answers]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert f"answers to other questions than those in {others}" in err and "split random" in err


@pytest.mark.parametrize("source", ["aokvqa", "gqa"])
def test_files_on_other_data_sets_are_found_and_a_misspelt_copy_is_noticed(
    source, images, tmp_path, caplog
):
    entry = {"question_id": 1, "image": "COCO_val2014_000000000001.jpg", "label": "no"}
    entry["text"] = "Is there a cow in the imange?"
    (tmp_path / f"{source}_pope_seem_popular.json").write_text(json.dumps([entry]))
    pope = Pope(data_path=images, pope_path=tmp_path, splits=("popular",), source=source)
    assert pope.prefix == f"pope-{source}-"
    (section,) = pope.sections(0)
    assert [task.key for task in section.tasks] == [1]
    assert "as VCD's copy does" in caplog.text


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="POPE's files on other data sets not here")
@pytest.mark.parametrize(
    ("name", "yes"), [("aokvqa_pope_seem_adversarial", 1500), ("gqa_pope_seem_random", 1500)]
)
def test_published_files_on_other_data_sets_are_read(name, yes):
    labels = read_labels(PUBLISHED / f"{name}.json")
    assert len(labels) == 3000 and sum(labels.values()) == yes
