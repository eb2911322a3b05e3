"""`revisit compare`: its table, and the results that it refuses to compare."""

import csv
import json
import statistics

import pytest

from revisit.commands.main import main as program
from revisit.evaluation.benchmarks import chair
from revisit.evaluation.results.result import name_of, read_result
from scored_captions import score_captions

OBJECTS = {1: ["dog"], 2: ["cat", "chair"], 3: ["pizza"]}
GREEDY = {1: "A dog and a cat.", 2: "A cat on a chair.", 3: "A pizza, a pizza and a fork."}
REFINED = {1: "A dog.", 2: "A cat on a chair.", 3: "A pizza on a plate."}
START = {
    "device": "cpu",
    "processor": "Z80",
    "threads": 1,
    "batch_size": 4,
    "seconds": 6.0,
    "tokens": 300,
    "peak_bytes": 2**30,
}


@pytest.fixture
def result(tmp_path):
    """Scores captions that a run with these settings made."""

    def make(name, captions, settings=None, objects=OBJECTS, runs=()):
        record = {"settings": settings, "images": [], "runs": list(runs)}
        if settings is None:
            record = None
        return score_captions(tmp_path, name, captions, objects, record)

    return make


@pytest.fixture
def answered(tmp_path):
    """Scores answers by `revisit score pope`."""

    def make(name, answers, questions=None):
        labels = questions or {1: "yes", 2: "no", 3: "yes", 4: "no"}
        files = []
        for flag, key, texts in (("questions", "label", labels), ("answers", "answer", answers)):
            lines = [json.dumps({"question_id": i, key: text}) for i, text in texts.items()]
            (tmp_path / f"{name}-{flag}.jsonl").write_text("\n".join(lines))
            files += [f"--{flag}", str(tmp_path / f"{name}-{flag}.jsonl")]
        out = tmp_path / f"{name}.json"
        assert program(["score", "pope", *files, "--save_path", str(out)]) == 0
        return out

    return make


@pytest.fixture
def refused(capsys):
    """The error that `revisit compare` prints."""

    def compare(*arguments):
        capsys.readouterr()
        assert program(["compare", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    return compare


@pytest.fixture
def table(capsys):
    """Compares results; returns the rows of the CSV, and the printed table."""

    def compare(*files):
        capsys.readouterr()
        assert program(["compare", *map(str, files)]) == 0
        printed = capsys.readouterr().out
        assert program(["compare", *map(str, files), "--format", "csv"]) == 0
        return list(csv.DictReader(capsys.readouterr().out.splitlines())), printed

    return compare


def test_differences_equal_the_paired_bootstrap(result, table):
    files = [result("greedy", GREEDY), result("refined", dict(reversed(REFINED.items())))]
    (first, second), printed = table(*files)
    assert first[""] == "greedy" and first["CHAIRs - baseline"] == first["CHAIRs low"] == ""
    for name, value in json.loads(files[0].read_text())["overall_metrics"].items():
        assert float(first[name]) == pytest.approx(100 * value, abs=1e-3)
    assert float(first["twice"]) == pytest.approx(100 / 3, abs=1e-3)
    assert float(second["twice - baseline"]) == pytest.approx(-100 / 3, abs=1e-3)
    counts = [read_result(file).counts[:, :-1] for file in files]
    for metric, gap in chair.paired_bootstrap(*counts).items():
        numbers = [100 * gap[name] for name in ("difference", "low", "high")]
        cells = [float(second[f"{metric}{name}"]) for name in (" - baseline", " low", " high")]
        assert cells == pytest.approx(numbers, abs=1e-3)
        assert "{:+.1f} [{:+.1f}, {:+.1f}]".format(*numbers) in printed
    assert float(second["CHAIRs - baseline"]) == pytest.approx(-200 / 3, abs=1e-3)
    assert "3 images" in printed and "| refined" in printed


def test_answers_to_questions_are_compared_too(answered, table):
    before = answered("greedy", {1: "Yes", 2: "Yes", 3: "No", 4: "Yes"})
    after = answered("revisit", {4: "No", 3: "No", 2: "Yes", 1: "Yes"})
    (first, second), printed = table(before, after)
    assert printed.startswith("4 questions")
    for name, value in json.loads(before.read_text())["overall_metrics"].items():
        assert float(first[name]) == pytest.approx(100 * value, abs=1e-3)
    assert float(second["Accuracy - baseline"]) == 25
    assert float(second["Accuracy low"]) == 0 < float(second["Accuracy high"])
    assert float(second["Yes - baseline"]) == -25


SETTINGS = {"decoder": "vcd", "vcd_alpha": 1.0, "dtype": "float32"}


def test_a_cost_is_relative_to_the_baseline_s(result, table):
    slow = START | {"seconds": 15.0, "tokens": 200, "peak_bytes": 2**31}
    (first, second), printed = table(
        result("greedy", GREEDY, {"dtype": "float32"}, runs=[START, START]),
        result("vcd", REFINED, SETTINGS, runs=[slow, slow | {"seconds": 5.0, "peak_bytes": 1}]),
    )
    assert float(first["s/token"]) == 1 and float(first["MiB"]) == 1024
    assert float(second["s/token"]) == pytest.approx(20 / 400 / (6 / 300))
    assert float(second["MiB"]) == 2048
    assert "Without a cost" not in printed


UNKNOWN_COSTS = [
    ([START | {"batch_size": 1}], {}, "batch_size 1, the baseline's 4"),
    ([START | {"processor": "6502"}], {}, "processor 6502, the baseline's Z80"),
    ([START | {"device": "cuda"}], {}, "device cuda, the baseline's cpu"),
    ([START], {"dtype": "float16"}, "dtype float16, the baseline's float32"),
    ([START, START | {"threads": 2}], {}, "the run was continued with another threads"),
    ([START | {"tokens": None}], {}, "the run record does not count tokens"),
    ([START | {"processor": None}], {}, "the run record does not name the processor"),
    ([], {}, "no run record says how long it took"),
]


@pytest.mark.parametrize(("runs", "settings", "why"), UNKNOWN_COSTS, ids=str)
def test_a_cost_that_cannot_be_compared_has_a_reason_in_its_place(
    result, table, runs, settings, why
):
    (first, second), printed = table(
        result("greedy", GREEDY, {"dtype": "float32"}, runs=[START]),
        result("vcd", REFINED, SETTINGS | settings, runs=runs),
    )
    assert first["s/token"] == "1.0000"
    assert second["s/token"] == second["MiB"] == ""
    assert f"- vcd (alpha 1.0): {why}\n" in printed
    assert float(second["CHAIRs - baseline"]) == pytest.approx(-200 / 3, abs=1e-3)


def test_without_the_baseline_s_cost_there_is_no_other(result, table):
    (first, second), printed = table(
        result("greedy", GREEDY, {"dtype": "float32"}),
        result("vcd", REFINED, SETTINGS, runs=[START]),
    )
    assert first["s/token"] == second["s/token"] == ""
    assert "- vcd (alpha 1.0): of the baseline, no run record says" in printed


@pytest.fixture
def seeded(result):
    """Scores the same captions and scenes under the image ids of another sample."""

    def make(name, seed, captions, settings, **more):
        texts, objects = (
            {10 * seed + image: each for image, each in of_image.items()}
            for of_image in (captions, OBJECTS)
        )
        return result(f"{name}{seed}", texts, settings | {"seed": seed}, objects, **more)

    return make


def test_results_that_differ_by_their_seed_are_one_row(seeded, table):
    weak = {**REFINED, 1: "A dog and a fork."}
    slow = START | {"seconds": 9.0}
    files = [
        seeded("greedy", 42, GREEDY, {"dtype": "float32"}, runs=[START]),
        seeded("greedy", 43, REFINED, {"dtype": "float32"}, runs=[START]),
        seeded("vcd", 43, REFINED, SETTINGS, runs=[slow]),
        seeded("vcd", 42, weak, SETTINGS, runs=[START]),
    ]
    rows, printed = table(*files)
    assert [row[""] for row in rows] == ["greedy", "vcd (alpha 1.0)"]
    assert printed.startswith("3 images of each of the seeds 42, 43: mean ± standard deviation")
    assert [row["samples"] for row in rows] == ["2", "2"]
    chairs = {42: (200 / 3, 100 / 3), 43: (0, 0)}
    before, after = zip(*chairs.values(), strict=True)
    for row, values in zip(rows, (before, after), strict=True):
        assert float(row["CHAIRs"]) == pytest.approx(statistics.mean(values), abs=1e-3)
        assert float(row["CHAIRs sd"]) == pytest.approx(statistics.stdev(values), abs=1e-3)
    # Each difference is of one sample, whatever the order of the files.
    assert float(rows[1]["CHAIRs - baseline"]) == pytest.approx(-50 / 3, abs=1e-3)
    gaps = [-100 / 3, 0]
    assert float(rows[1]["CHAIRs - baseline sd"]) == pytest.approx(statistics.stdev(gaps), abs=1e-3)
    assert rows[1]["CHAIRs low"] == ""
    assert float(rows[1]["s/token"]) == 1.25
    assert float(rows[1]["s/token sd"]) == pytest.approx(statistics.stdev([1, 1.5]), abs=1e-3)


def test_means_are_compared_over_the_same_samples_only(seeded, refused):
    files = [
        seeded("greedy", 42, GREEDY, {}),
        seeded("greedy", 43, GREEDY, {}),
        seeded("vcd", 42, REFINED, SETTINGS),
    ]
    assert "the seeds 42, 43, of the second's 42" in refused(*files)


def test_the_same_settings_and_seed_a_second_time_are_another_row(result, table):
    runs = [result(name, GREEDY, {"seed": 42}) for name in ("once", "again")]
    (_, second), _ = table(*runs)
    assert second["samples"] == "1" and float(second["CHAIRs - baseline"]) == 0


RUN = {"question": "What?", "max_new_tokens": 64}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"captions": {1: "A dog."}}, "2 images are in one of them only (image id 2, for one)"),
        ({"objects": OBJECTS | {3: ["pizza", "fork"]}}, "the images' objects differ"),
        ({"settings": RUN | {"max_new_tokens": 512}}, "max_new_tokens is 64 in the first and 512"),
        ({"settings": RUN | {"question": "Who?"}}, "question is 'What?' in the first and 'Who?'"),
        ({"settings": None}, "question is 'What?' in the first and None in the second"),
    ],
)
def test_settings_that_move_the_numbers_must_be_the_same(result, refused, other, message):
    first = result("first", GREEDY, RUN)
    second = result("second", **{"captions": REFINED, "settings": RUN} | other)
    assert message in refused(first, second)


ALL_NO = dict.fromkeys(range(1, 5), "No")


def test_captions_and_answers_are_not_compared(result, answered, refused):
    both = [result("captions", GREEDY), answered("answers", ALL_NO)]
    assert "one is of chair, the other of pope" in refused(*both)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({1: "yes", 2: "no", 3: "yes"}, "1 questions are in one of them only (question id 4"),
        ({1: "yes", 2: "yes", 3: "no", 4: "no"}, "the question files differ"),
    ],
)
def test_answers_to_other_questions_are_not_compared(answered, refused, other, message):
    first = answered("first", ALL_NO)
    second = answered("second", dict.fromkeys(other, "Yes"), other)
    assert message in refused(first, second)


@pytest.mark.parametrize("content", ["[]", "{}", '{"sentences": []}', "no json"])
def test_a_file_that_is_no_result_is_named(tmp_path, refused, content):
    (tmp_path / "other.json").write_text(content)
    assert "other.json is not" in refused(tmp_path / "other.json")


@pytest.mark.parametrize("flag", ["--plot", "--report"])
def test_files_that_must_not_or_cannot_be_written_are_refused_first(result, refused, flag):
    file = result("greedy", GREEDY)
    before = file.read_text()
    assert f"{flag} {file} would overwrite a result" in refused(file, flag, file)
    assert file.read_text() == before
    assert f"{flag} /missing/out: there is no folder /missing" in refused(
        file, flag, "/missing/out"
    )


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
def test_a_run_is_named_by_its_model_and_decoder(settings, name):
    assert name_of(settings) == name


def test_a_result_of_answers_to_other_questions_than_its_run_s_is_refused(answered, refused):
    file = answered("first", ALL_NO)
    saved = json.loads(file.read_text())
    saved["answers"]["run"] = {"settings": {"questions": "0" * 64, "split": "random"}, "runs": []}
    file.write_text(json.dumps(saved))
    assert "answers to other questions" in refused(file)


def test_a_result_of_captions_against_other_annotations_is_refused(result, refused):
    file = result("first", GREEDY, RUN)
    saved = json.loads(file.read_text())
    saved["settings"]["ground_truth"]["source"] = {"instances_val2014.json": "1" * 64}
    saved["captions"]["run"]["annotations"] = {"instances_val2014.json": "0" * 64}
    file.write_text(json.dumps(saved))
    assert "made for other annotations" in refused(file)


def test_the_folder_of_a_run_stands_for_its_result(result, table, refused):
    folder = result("chair", GREEDY).parent
    (folder / "chair-objects.json").unlink()
    _, printed = table(folder)
    assert "3 images" in printed
    message = "holds captions or answers, and no result: `revisit score`"
    assert message in refused(folder / "chair.jsonl")
    (folder / "empty").mkdir()
    assert "has no result" in refused(folder / "empty")
    for split in ("popular", "random"):
        (folder / "empty" / split).mkdir()
        (folder / "empty" / split / "pope.json").write_text("{}")
    assert "several results, name one" in refused(folder / "empty")


def test_all_formats_have_the_same_numbers(result, table, capsys):
    files = [str(result("greedy_1", GREEDY)), str(result("refined", REFINED))]
    rows, _ = table(*files)
    assert program(["compare", *files, "--format", "json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in values] == [row[""] for row in rows]
    assert values[1]["CHAIRs - baseline"] == float(rows[1]["CHAIRs - baseline"])
    assert values[0]["CHAIRs - baseline"] is None
    assert program(["compare", *files, "--format", "latex"]) == 0
    latex = capsys.readouterr().out
    assert r"greedy\_1 & " in latex and latex.count(r" \\") == 3


def test_the_paper_s_figures_are_printed_beside_a_result(result, capsys):
    model = {"model": {"name": "llava-v1.5-7b"}, "max_new_tokens": 512}
    settings = {**model, "question": "Please describe this image in detail."}
    greedy = result("greedy", GREEDY, settings)
    assert program(["compare", str(greedy), "--paper"]) == 0
    out = capsys.readouterr().out
    assert "53.80" in out and "CHAIR (v1)" in out and "notes" in out
    other = result("other", GREEDY, {**settings, "model": {"name": "tiny"}})
    assert program(["compare", str(other), "--paper"]) == 0
    assert "not the same setting: model tiny, the paper's" in capsys.readouterr().out


def test_a_report_that_is_no_html_is_refused(result, refused, tmp_path):
    message = refused(result("greedy", GREEDY), "--report", tmp_path / "out.txt")
    assert "out.txt: its name must end in .html" in message


def test_the_paper_s_table_is_refused_in_other_formats(result, refused):
    message = refused(result("greedy", GREEDY), "--paper", "--format", "csv")
    assert "--format csv has no place" in message
