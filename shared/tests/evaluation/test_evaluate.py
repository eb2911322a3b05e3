"""Runs of CHAIR from flags to scores, on captioners without a model."""

import hashlib
import json
import shutil

import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

from revisit.commands.main import main as program
from revisit.config import ReVisiTConfig
from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks.chair import read_captions
from revisit.evaluation.benchmarks.objects.lemmas import LEMMATIZERS
from revisit.evaluation.captioner import Answer, unusable_images
from revisit.evaluation.run import Generation
from revisit.transformers.checkpoint import own_dtype


class Sizes:
    """Answers with the size of each image; keeps the sizes of batches."""

    settings = {"prompt": "v1"}  # noqa: RUF012
    fails_at = None
    batches: list[int]

    def __init__(self, run):
        type(self).batches = []

    def answer(self, images, questions):
        self.batches.append(len(images))
        if self.fails_at == len(self.batches):
            raise RuntimeError("out of memory")
        return [Answer(f"{image.width} by {image.height}", image.width) for image in images]


@pytest.fixture
def run(eval_command, tmp_path):
    out, model = tmp_path / "out" / "captions.jsonl", tmp_path / "model"
    flags = ["--output_path", str(out), "--num_eval_samples", "10", "--batch_size", "3"]

    def run(*more: str, load=Sizes, **family) -> int:
        return eval_command("chair", *flags, *more, load=load, **family)

    run.flags, run.out, run.model = flags, out, model
    run.record = lambda: json.loads(out.with_name("captions.jsonl.run.json").read_text())
    return run


def name(image: int) -> str:
    return f"COCO_val2014_{image:012d}.jpg"


def test_every_image_gets_its_own_caption(run, annotations):
    assert run("--anno_path", str(annotations)) == 0
    assert read_captions(run.out) == {i: f"{10 + i} by {20 + i}" for i in range(1, 11)}
    assert sorted(Sizes.batches) == [1, 3, 3, 3]


def test_the_run_record_says_what_made_the_captions(run):
    assert run("--use_revisit", "--early_exit_layers", "0,2", "5", "--relative_top", "0.1") == 0
    record = run.record()
    settings = record["settings"]
    assert settings["early_exit_layers"] == [0, 2, 5] and settings["relative_top"] == 0.1
    assert settings["model"]["name"] == "model" and len(settings["model"]["sha256"]) == 64
    assert record["captioner"] == {"prompt": "v1"} and record["failed"] == []
    (start,) = record["runs"]
    assert (start["captions"], start["batch_size"]) == (10, 3)
    assert start["tokens"] == sum(range(11, 21))
    assert start["peak_bytes"] > 10**7 and start["peak_bytes_of"] == "process"


def test_a_finished_run_is_not_done_again_and_loads_no_model(run):
    assert run() == 0
    before = run.out.read_bytes()
    assert run(load=None) == 0
    assert run.out.read_bytes() == before


def test_other_settings_on_a_rerun_are_refused_and_nothing_is_lost(run, capsys):
    assert run() == 0
    before = run.out.read_bytes()
    for flags, difference in (
        (["--use_revisit"], "use_revisit: not set, now true"),
        (["--seed", "5"], "seed: 42, now 5"),
        (["--question", "What?"], 'now "What?"'),
    ):
        assert run(*flags) == 2
        assert difference in capsys.readouterr().err
    (run.model / "config.json").write_text('{"other": 1}')
    assert run() == 2
    assert "model" in capsys.readouterr().err
    assert run.out.read_bytes() == before


def test_another_captioner_on_a_rerun_is_refused(run, capsys):
    Broken = type("Broken", (Sizes,), {"fails_at": 2})
    assert run(load=Broken) == 1
    Other = type("Other", (Sizes,), {"settings": {"prompt": "v2"}})
    assert run(load=Other) == 2
    assert 'prompt: "v1", now "v2"' in capsys.readouterr().err


def test_batch_size_may_change_between_runs_except_with_sampling(run, capsys):
    assert run() == 0
    assert run("--batch_size", "2") == 0
    run.out.unlink()
    assert run("--do_sample") == 0
    assert run("--do_sample", "--batch_size", "2") == 2
    assert "batch_size: 3, now 2" in capsys.readouterr().err


def test_images_that_cannot_be_read_are_reported_and_tried_again(run, images, capsys):
    contents = {image: (images / name(image)).read_bytes() for image in (2, 5, 8)}
    (images / name(2)).write_bytes(b"no image")
    (images / name(5)).write_bytes(contents[5][: len(contents[5]) // 2])
    (images / name(8)).unlink()
    (images / name(8)).symlink_to("nowhere.jpg")
    assert run() == 1
    err = capsys.readouterr().err
    assert name(2) in err and name(5) in err and name(8) in err
    assert err.strip().splitlines()[-1].startswith("WARNING: 3 images could not be read")
    assert sorted(read_captions(run.out)) == [1, 3, 4, 6, 7, 9, 10]
    assert sorted(entry["image_id"] for entry in run.record()["failed"]) == [2, 5, 8]
    for image, content in contents.items():
        (images / name(image)).unlink()
        (images / name(image)).write_bytes(content)
    assert run() == 0
    assert len(read_captions(run.out)) == 10
    assert run.record()["failed"] == []


def test_an_image_removed_between_runs_is_reported_and_the_sample_stays(run, images, capsys):
    Broken = type("Broken", (Sizes,), {"fails_at": 2})
    assert run("--num_eval_samples", "6", load=Broken) == 1
    sample = run.record()["images"]
    (images / sample[-1]).unlink()
    (images / name(77)).write_bytes((images / sample[0]).read_bytes())
    assert run("--num_eval_samples", "6") == 1
    assert run.record()["images"] == sample
    assert sample[-1] in capsys.readouterr().err
    assert len(read_captions(run.out)) == 5


class Picky(Sizes):
    """Cannot take images of some widths."""

    refused = (12, 15)

    def answer(self, images, questions):
        try:
            for image in images:
                self.take(image)
        except Exception as error:
            raise unusable_images(error, images, lambda _, image: self.take(image)) from error
        return super().answer(images, questions)

    def take(self, image):
        if image.width in self.refused:
            raise ValueError(f"{image.width} pixels are too few")


def test_an_image_that_the_model_cannot_take_is_listed_and_the_others_go_on(run, capsys):
    assert run(load=Picky) == 1
    assert sorted(read_captions(run.out)) == [1, 3, 4, 6, 7, 8, 9, 10]
    failed = {entry["image_id"]: entry["error"] for entry in run.record()["failed"]}
    assert failed == {2: "12 pixels are too few", 5: "15 pixels are too few"}
    err = capsys.readouterr().err
    assert f"{name(2)}: 12 pixels are too few" in err and "WARNING: 2 images" in err
    before = run.out.read_bytes()
    assert run(load=Picky) == 1
    assert run.out.read_bytes() == before and not Picky.batches
    assert run() == 0
    assert len(read_captions(run.out)) == 10


@pytest.mark.parametrize(
    ("refused", "error"),
    [(range(300), ValueError("broken")), ((12,), RuntimeError("CUDA out of memory"))],
    ids=["every image fails", "memory is short"],
)
def test_an_error_that_is_of_no_image_ends_the_run(run, refused, error, capsys):
    def take(self, image):
        if image.width in refused:
            raise error

    assert run(load=type("Broken", (Picky,), {"take": take})) == 1
    assert f"stopped by {type(error).__name__}: {error}" in capsys.readouterr().err
    assert run.record()["failed"] == []


def test_an_image_is_turned_upright_and_the_record_says_so(run, images):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 22)).save(images / name(1), exif=exif)
    assert run() == 0
    assert read_captions(run.out)[1] == "22 by 40"
    changed = run.record()["runs"][0]["changed_images"]
    assert changed == {name(1): ["turned upright, as its EXIF says"]}


def test_a_failing_model_stops_the_run_and_keeps_the_captions_unscored(run, annotations, capsys):
    scored = ["--anno_path", str(annotations), "--lemmatizer", "noun"]
    Broken = type("Broken", (Sizes,), {"fails_at": 3})
    assert run(*scored, load=Broken) == 1
    err = capsys.readouterr().err
    assert "stopped by RuntimeError: out of memory" in err
    assert "6 of 10 captions are in" in err
    assert len(read_captions(run.out)) == 6
    assert not run.out.with_name("chair.json").exists()
    assert run(*scored) == 0
    assert len(read_captions(run.out)) == 10
    result = json.loads(run.out.with_name("chair.json").read_text())
    assert result["captions"]["file"] == str(run.out)
    assert result["settings"]["ground_truth"]["annotations"] == str(annotations)


def test_a_model_that_cannot_be_loaded_is_named(run, capsys):
    def load(args):
        raise OSError("config.json is missing")

    assert run(load=load) == 2
    assert f"cannot load {run.model}: config.json is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--relative_top", "1.5"], "alpha (relative_top) must be in [0, 1], got 1.5"),
        (["--early_exit_layers", "middle"], "middle"),
        (["--early_exit_layers", ""], "or a list of ints, got ''"),
        (["--temperature", "0"], "--temperature 0.0: say a number in ]0, inf]"),
        (["--batch_size", "0"], "--batch_size 0: say a whole number >= 1"),
        (["--num_eval_samples", "many"], "--num_eval_samples: unable to convert"),
        (["--decoder", "beam"], 'Invalid value "beam" for --decoder'),
        (["--decoder", "vcd", "--vcd_noise_step", "1000"], "--decoder vcd: noise_step must be"),
        (["--vcd_alpha", "much"], "--vcd_alpha: could not convert"),
        (["--use_revisit", "perhaps"], "neither true nor false"),
        (["--device", "cuda:99"], "--device cuda:99: PyTorch finds no such device here"),
        (["--anno_path", "nowhere"], "annotations not found: nowhere"),
    ],
)
def test_bad_flags_are_refused_before_the_model_loads(run, flags, message, capsys):
    assert run(*flags, load=None) == 2
    assert message in capsys.readouterr().err
    assert not run.out.exists()


def test_flags_become_a_run(run):
    seen = []

    def load(args):
        seen.append(args)
        return Sizes(args)

    assert run(load=load) == 0
    run.out.unlink()
    flags = ["--use_revisit", "true", "--do_sample", "--top_p", ".9"]
    assert run(*flags, "--repetition_penalty", "1.2", load=load, layers="all") == 0
    assert seen[0].decoder is None and seen[0].generation == Generation()
    assert seen[0].place.dtype == "float32"
    assert seen[1].decoder == ReVisiTConfig(layers="all")  # the family's default
    chosen = Generation(do_sample=True, top_p=0.9, repetition_penalty=1.2)
    assert seen[1].generation == chosen


def test_a_family_names_its_dtype_on_a_gpu(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert run("--device", "cuda", gpu_dtype="float16") == 0
    assert run.record()["settings"]["dtype"] == "float16"


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"torch_dtype": "float16"}, "float16"),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"text_config": {"dtype": "bfloat16"}}, "bfloat16"),
    ],
    ids=str,
)
def test_a_checkpoints_own_dtype_is_what_its_config_names(tmp_path, config, dtype):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert own_dtype(str(tmp_path)) == dtype


def test_a_checkpoint_without_a_dtype_of_its_own_is_refused(run, capsys):
    assert run("--dtype", "auto") == 2
    assert f"config.json of {run.model} names no dtype" in capsys.readouterr().err
    assert not run.out.exists()


def test_a_rerun_by_the_dtype_that_auto_meant_continues(run):
    (run.model / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    assert run("--dtype", "bfloat16") == 0
    assert run("--dtype", "auto") == 0
    assert run() == 2


def test_settings_are_recorded_under_the_names_that_they_always_had(run):
    """What continues the files of earlier versions: a name more or less would refuse them."""
    assert run("--use_revisit") == 0
    always = {"model", "dtype", "question", "data_path", "num_eval_samples", "seed"}
    decoding = {"max_new_tokens", "do_sample", "num_beams", "use_revisit", "early_exit_layers"}
    decoding |= {"relative_top", "revisit_divergence"}
    versions = {"torch version", "transformers version", "revisit version"}
    assert run.record()["settings"].keys() == always | decoding | versions
    run.out.unlink()
    assert run() == 0
    plain = decoding - {"use_revisit", "early_exit_layers", "relative_top", "revisit_divergence"}
    assert run.record()["settings"].keys() == always | plain | versions


def test_a_batch_has_the_seed_that_its_images_names_always_gave(run, images):
    seeds = []

    class Seeds(Sizes):
        def answer(self, images, questions):
            seeds.append(torch.initial_seed())
            return super().answer(images, questions)

    assert run(load=Seeds) == 0
    sample = run.record()["images"]
    batches = [sample[start : start + 3] for start in range(0, 10, 3)]
    digests = [hashlib.sha256(f"42\n{batch}".encode()).digest() for batch in batches]
    assert seeds == [int.from_bytes(digest[:8], "big") >> 1 for digest in digests]


def test_a_file_of_an_earlier_version_continues(run):
    assert run("--do_sample") == 0
    whole = run.out.read_bytes()
    record = run.record()
    for newer in ("tokens", "peak_bytes", "peak_bytes_of"):
        del record["runs"][0][newer]
    run.out.with_name("captions.jsonl.run.json").write_text(json.dumps(record))
    run.out.write_bytes(b"".join(whole.splitlines(keepends=True)[:4]))
    assert run("--do_sample") == 0
    assert run.out.read_bytes() == whole
    assert ["tokens" in each for each in run.record()["runs"]] == [False, True]


def test_a_captioner_that_batches_by_itself_gets_as_many_as_it_takes(run):
    Seven = type("Seven", (Sizes,), {"batch_size": 7})
    assert run(load=Seven) == 0
    assert Seven.batches == [7, 3]


def test_another_decoder_s_other_settings_are_refused_on_a_rerun(run, capsys):
    assert run("--decoder", "m3id") == 0
    assert run("--decoder", "m3id", "--vcd_alpha", "2") == 0  # that is not in force
    assert run("--decoder", "m3id", "--m3id_gamma", "0.03") == 2
    assert "m3id_gamma: 0.02, now 0.03" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "folder"),
    [
        (["--use_revisit", "False", "--seed", "7"], "plain-seed7"),
        (["--decoder", "vcd", "--vcd_alpha", "0.50"], "vcd-0.50-0.1-500-0-seed42"),
        (["--decoder", "dola", "--dola_layers", "0,2", "4"], "dola-0-2-4-0.1-seed42"),
        (
            ["--use_revisit", "--early_exit_layers", "0", "10,20", "--relative_top", "0.10"],
            "revisit-0-10-20-0.10-ag-seed42",
        ),
    ],
)
def test_without_an_output_path_the_folder_is_named_by_the_settings(
    eval_command, tmp_path, flags, folder
):
    assert eval_command("chair", *flags, load=Sizes) == 0
    assert [path.name for path in (tmp_path / "results").iterdir()] == [folder]
    assert len(read_captions(tmp_path / "results" / folder / "captions.jsonl")) == 10


def test_scoring_that_lacks_something_is_refused_first(run, annotations, capsys, monkeypatch):
    def missing():
        raise EvaluationError("no data of NLTK")

    monkeypatch.setitem(LEMMATIZERS, "nltk", missing)
    assert run("--anno_path", str(annotations), "--lemmatizer", "nltk") == 2
    assert "no data of NLTK" in capsys.readouterr().err
    assert run("--lemmatizer", "noun") == 2
    assert "give --anno_path" in capsys.readouterr().err
    assert not run.out.exists()


def test_output_path_may_be_a_folder(run, tmp_path):
    assert run("--output_path", str(tmp_path / "results")) == 0
    assert len(read_captions(tmp_path / "results" / "captions.jsonl")) == 10


def test_captions_are_scored_by_the_annotations_and_images_of_their_run_alone(
    run, annotations, tmp_path, capsys
):
    assert run("--anno_path", str(annotations)) == 0
    other = tmp_path / "other"
    shutil.copytree(annotations, other)
    file = other / "instances_val2014.json"
    file.write_text(file.read_text().replace('"category_id": 2', '"category_id": 4'))
    flags = ["--cap_file", str(run.out), "--lemmatizer", "noun", "--coco_path"]
    assert program(["score", "chair", *flags, str(annotations)]) == 0
    assert program(["score", "chair", *flags, str(other)]) == 2
    err = capsys.readouterr().err
    assert "was made for other annotations: its run saw a instances_val2014.json" in err
    record = run.out.with_name("captions.jsonl.run.json")
    saved = json.loads(record.read_text())
    record.write_text(json.dumps(saved | {"images": [name(n) for n in range(1, 10)]}))
    assert program(["score", "chair", *flags, str(annotations)]) == 2
    assert "1 images that its run was not asked about (image id 10" in capsys.readouterr().err


def test_a_rerun_with_other_annotations_is_refused_before_it_captions(
    run, annotations, tmp_path, capsys
):
    Broken = type("Broken", (Sizes,), {"fails_at": 2})
    assert run("--anno_path", str(annotations), load=Broken) == 1
    other = shutil.copytree(annotations, tmp_path / "other")
    with (other / "captions_val2014.json").open("a") as file:
        file.write("\n")
    assert run("--anno_path", str(other), load=None) == 2
    assert "was made for other annotations" in capsys.readouterr().err
    assert run("--anno_path", str(annotations)) == 0
