"""`--sweep`: its runs, their one model, and the table that comes last."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from revisit.evaluation.benchmarks.chair import read_captions
from revisit.evaluation.captioner import Answer
from revisit.evaluation.run import decoder_name

ANSWERS = {"greedy": "A dog and a vase.", "revisit": "A dog.", "vcd": "A vase."}


class Scripted:
    """Answers by its decoder; keeps the decoders that it answered with."""

    loaded = 0
    decoders: list[tuple[str, object]]
    fails = ""

    def __init__(self, run):
        type(self).loaded += 1
        type(self).decoders = []
        self.settings = {"prompt": "v1"}
        self.decode(run)

    def decode(self, run):
        self.decoder = decoder_name(run.decoder)
        self.now = (self.decoder, run.decoder)

    def answer(self, images, questions):
        if self.fails == self.decoder:
            raise RuntimeError("out of memory")
        if self.decoders[-1:] != [self.now]:
            self.decoders.append(self.now)
        return [Answer(ANSWERS[self.decoder], 5) for _ in images]


@pytest.fixture
def sweep(eval_command, annotations, tmp_path, monkeypatch):
    monkeypatch.setattr(Scripted, "loaded", 0)
    flags = ["--anno_path", str(annotations), "--lemmatizer", "noun", "--num_eval_samples", "4"]

    def run(*more: str, load=Scripted) -> int:
        return eval_command("chair", *flags, *more, load=load)

    run.results = tmp_path / "results"
    run.made = lambda: sorted(path.name for path in run.results.iterdir())
    return run


def test_every_combination_is_a_run_of_one_model_in_its_own_folder(sweep, capsys):
    assert sweep("--sweep", "alpha=1e-5,1e-3", "layers=last,0-2", "selection=min,random") == 0
    folders = [
        f"revisit-{layers}-{alpha}-ag{selection}-seed42"
        for alpha in ("1e-5", "1e-3")
        for layers in ("last", "0-2")
        for selection in ("", "-random")
    ]
    assert sweep.made() == sorted(["plain-seed42", *folders])
    assert Scripted.loaded == 1
    configs = [config for decoder, config in Scripted.decoders if decoder == "revisit"]
    assert [each.alpha for each in configs] == [1e-5] * 4 + [1e-3] * 4
    assert [each.layers for each in configs] == (["last"] * 2 + [(0, 2)] * 2) * 2
    assert [each.selection for each in configs] == ["min", "random"] * 4
    table = capsys.readouterr().out.split("4 images\n")[1]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| model")]
    assert rows[0] == "model greedy" and len(rows) == 9
    assert "selection random, early_exit_layers [0, 2], relative_top 1e-05" in rows[4]


def test_it_continues_and_what_is_there_is_not_done_again(sweep, capsys):
    Broken = type("Broken", (Scripted,), {"fails": "vcd"})
    assert sweep("--sweep", "decoder=revisit,vcd", load=Broken) == 1
    assert "4 images" not in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in sweep.results.glob("*/captions.jsonl")}
    assert sweep("--sweep", "decoder=revisit,vcd") == 0
    assert [decoder for decoder, _ in Scripted.decoders] == ["vcd"]  # what was there loads nothing
    assert "| model vcd" in capsys.readouterr().out
    for path in sweep.results.glob("[pr]*/captions.jsonl"):
        assert path.stat().st_mtime_ns == before[path]
    assert sweep("--sweep", "decoder=revisit,vcd", load=None) == 0


def test_an_image_that_cannot_be_read_does_not_end_a_sweep(sweep, images, capsys):
    assert sweep("--decoder", "greedy") == 0
    record = json.loads((sweep.results / "plain-seed42" / "captions.jsonl.run.json").read_text())
    (images / record["images"][0]).write_bytes(b"no image")
    (sweep.results / "plain-seed42" / "captions.jsonl").unlink()
    assert sweep("--sweep", "decoder=revisit,vcd") == 1
    assert "3 images" in capsys.readouterr().out
    assert len(sweep.made()) == 3


def test_a_run_of_a_sweep_is_the_run_alone(sweep, tmp_path):
    assert sweep("--sweep", "alpha=0.1", "--output_path", str(tmp_path / "swept")) == 0
    flags = ["--decoder", "revisit", "--relative_top", "0.1"]
    assert sweep(*flags, "--output_path", str(tmp_path / "alone")) == 0
    swept = tmp_path / "swept" / "revisit-last-0.1-ag-seed42"
    for name in ("captions.jsonl", "captions.jsonl.run.json"):
        texts = [(folder / name).read_text() for folder in (swept, tmp_path / "alone")]
        if name.endswith(".run.json"):
            texts = [{k: v for k, v in json.loads(t).items() if k != "runs"} for t in texts]
        assert texts[0] == texts[1]


def test_seeds_are_samples_of_each_decoder_and_one_row_of_the_table(sweep, capsys):
    assert sweep("--decoder", "vcd", "--sweep", "seed=1,2,3") == 0
    assert sweep.made() == [
        *(f"plain-seed{seed}" for seed in (1, 2, 3)),
        *(f"vcd-1.0-0.1-500-0-seed{seed}" for seed in (1, 2, 3)),
    ]
    samples = [set(read_captions(path)) for path in sorted(sweep.results.glob("plain*/*.jsonl"))]
    assert len(set(map(frozenset, samples))) > 1
    printed = capsys.readouterr().out
    assert "4 images of each of the seeds 1, 2, 3" in printed
    assert printed.count("| model") == 2


def test_a_setting_that_the_model_refuses_ends_a_sweep_before_anything_is_decoded(
    sweep, tmp_path, capsys
):
    class Short(Scripted):
        def decode(self, run):
            if run.decoder and run.decoder.layers == (99,):
                raise ValueError("layers [99] are out of range")
            super().decode(run)

    assert sweep("--sweep", "layers=0-2,99", load=Short) == 2
    assert "layers [99] are out of range" in capsys.readouterr().err
    assert all(not file.stat().st_size for file in tmp_path.rglob("captions.jsonl"))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is that of the process")
def test_a_run_s_peak_of_memory_leaves_out_the_runs_before(sweep):
    class Hungry(Scripted):
        def answer(self, images, questions):
            if self.decoder == "greedy":
                bytearray(b"x") * (400 * 2**20)
            return super().answer(images, questions)

    assert sweep("--sweep", "decoder=vcd", load=Hungry) == 0
    peaks = [
        json.loads(path.read_text())["runs"][0]["peak_bytes"]
        for path in sorted(sweep.results.glob("*/captions.jsonl.run.json"))
    ]
    assert 0 < peaks[1] < peaks[0] - 300 * 2**20


def test_pope_s_questions_are_swept_too_with_a_table_for_each_file(
    eval_command, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(Scripted, "loaded", 0)
    for split in ("random", "popular"):
        lines = [
            {
                "question_id": number,
                "image": f"COCO_val2014_{number:012d}.jpg",
                "text": f"Is there a {split} dog?",
                "label": "yes" if number % 2 else "no",
            }
            for number in range(1, 5)
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    flags = ["--pope_path", str(tmp_path), "--splits", "random", "popular"]
    flags += ["--sweep", "decoder=vcd,revisit"]
    assert eval_command("pope", *flags, load=Scripted) == 0
    assert Scripted.loaded == 1
    assert [decoder for decoder, _ in Scripted.decoders] == ["greedy", "vcd", "revisit"]
    made = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert made[0] == "pope-plain-seed42" and len(made) == 3
    tables = capsys.readouterr().out.split("\nrandom\n")[1].split("\npopular\n")
    for table in tables:
        assert "4 questions" in table and table.count("| model") == 3
        assert "Accuracy - baseline" in table


def test_a_sweep_that_is_not_scored_warns_before_it_begins(eval_command, capsys):
    assert eval_command("chair", "--sweep", "decoder=vcd", load=Scripted) == 0
    assert "WARNING: no table will compare these runs" in capsys.readouterr().err


def test_a_dry_run_says_what_would_run_and_writes_nothing(sweep, capsys):
    assert sweep("--sweep", "alpha=1e-3", "--dry_run", load=None) == 0
    plans = {
        file: plan for each in json.loads(capsys.readouterr().out) for file, plan in each.items()
    }
    greedy, refined = plans.values()
    assert [Path(file).parent.name for file in plans] == [
        "plain-seed42",
        "revisit-last-1e-3-ag-seed42",
    ]
    assert refined["settings"]["relative_top"] == 1e-3 and len(greedy["tasks"]) == 4
    assert not sweep.results.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["alpha"], "--sweep alpha: say NAME=VALUE,VALUE"),
        (["alpha=1e-5,"], "--sweep alpha=1e-5,: say NAME=VALUE,VALUE"),
        (["=3"], "say NAME=VALUE,VALUE"),
        (["alpha=1e-5", "alpha=1e-3"], "name each setting and each value once"),
        (["alpha=1e-5,1e-5"], "name each setting and each value once"),
        (["beta=0.1"], "--sweep beta: revisit has layers, alpha, divergence, selection"),
        (["decoder=vcd", "alpha=1"], "with decoder=... only seed=..."),
        (["decoder=beam"], "--sweep decoder=beam: there are greedy, revisit"),
        (["alpha=much"], "--sweep alpha=much: could not convert"),
        (["alpha=1.5"], "--sweep alpha=1.5: alpha (relative_top) must be in [0, 1]"),
        (["seed=-1"], "--seed -1: say a whole number"),
        (["layers=middle"], "middle"),
        (["alpha=1", "--output_path", "a.jsonl"], "--output_path a.jsonl: a sweep needs a folder"),
        (["alpha=1", "--decoder", "m3id"], "--sweep alpha: m3id has gamma, beta"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_the_model_loads(sweep, words, message, capsys):
    assert sweep("--sweep", *words, load=None) == 2
    assert message in capsys.readouterr().err
    assert not sweep.results.exists() and not Path("a.jsonl").exists()
