"""`revisit eval` on the embedded demo: alone, by several processes, and as a sweep."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("torchvision", reason="Qwen2.5-VL's processor needs it")

import transformers

import evaluating
import forked
import revisit
from releases import RELEASE
from revisit.commands import eval as command
from revisit.commands.describe import demo_model
from revisit.commands.engines.transformers import token_counts
from revisit.config import DoLaConfig, M3IDConfig, ReVisiTConfig, RITUALConfig, VCDConfig
from revisit.decoders.transformations import second_image
from revisit.evaluation.answer_files import read_answers
from revisit.evaluation.benchmarks.chair import read_captions
from revisit.evaluation.benchmarks.pope import FORM

if RELEASE < (4, 57):
    pytest.skip("written for stock releases", allow_module_level=True)

COCO = Path(demo_model()).parent / "coco"
QUESTION = "Please describe this image in detail."
PLAIN = {"max_new_tokens": 24, "do_sample": False}


@pytest.fixture(scope="module")
def reference():
    """The demo's model by Transformers' own steps: what it says of an image alone."""
    transformers.logging.disable_progress_bar()
    processor = transformers.AutoProcessor.from_pretrained(demo_model())
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        demo_model(), torch_dtype=torch.float32
    )

    def say(file, question, config=None, **settings):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        image = Image.open(COCO / "val2014" / file)
        inputs = processor(text=[text], images=[image], return_tensors="pt")
        second = {}
        if isinstance(config, RITUALConfig):
            turned = [second_image(image, config.seed)]
            pixels = processor(text=[text], images=turned, return_tensors="pt").pixel_values
            second = {"second_inputs": {"pixel_values": pixels}}
        if config is None:
            output = model.generate(**inputs, **PLAIN, **settings)
        else:
            with revisit.attach(model, config):
                output = model.generate(**inputs, **PLAIN, **settings, **second)
        new = output[0, inputs["input_ids"].shape[1] :]
        ends = torch.isin(new, torch.tensor(model.generation_config.eos_token_id)).nonzero()
        count = int(ends[0]) + 1 if len(ends) else len(new)
        return processor.tokenizer.decode(new, skip_special_tokens=True).strip(), count

    return say


def flags(out: Path, *more: str) -> list[str]:
    where = ["--data_path", str(COCO / "val2014"), "--output_path", str(out), "--device", "cpu"]
    return ["--model", demo_model(), *where, "--max_new_tokens", "24", "--batch_size", "2", *more]


def image_of(key: int) -> str:
    return f"COCO_val2014_{key:012d}.jpg"


DECODERS = [
    (["greedy"], None),
    (["revisit", "--early_exit_layers", "all"], ReVisiTConfig(layers="all")),
    (["vcd", "--vcd_alpha", "2"], VCDConfig(alpha=2)),
    (["ritual", "--ritual_seed", "5"], RITUALConfig(seed=5)),
    (["m3id", "--m3id_gamma", "0.3"], M3IDConfig(gamma=0.3)),
    (["dola", "--dola_layers", "high"], DoLaConfig(layers="high")),
]


@pytest.mark.parametrize(("decoder", "config"), DECODERS, ids=str)
def test_captions_are_what_the_model_says_of_each_image(tmp_path, reference, decoder, config):
    out = tmp_path / "captions.jsonl"
    annotations = ["--anno_path", str(COCO / "annotations"), "--lemmatizer", "noun"]
    asked = flags(out, "--num_eval_samples", "3", "--decoder", *decoder, *annotations)
    assert command.main(["chair", *asked]) == 0
    captions = read_captions(out)
    expected = {key: reference(image_of(key), QUESTION, config) for key in captions}
    assert captions == {key: text for key, (text, _) in expected.items()}
    assert len(set(captions.values())) == 3
    result = json.loads((tmp_path / "chair.json").read_text())
    run = result["captions"]["run"]
    assert run["runs"][0]["tokens"] == sum(count for _, count in expected.values())
    assert run["captioner"]["prompt"].count("<question>") == 1
    if decoder[0] == "revisit":
        assert run["settings"]["early_exit_layers"] == "all"


def test_answers_to_questions_of_unequal_length_are_what_the_model_says_alone(
    tmp_path, reference, capsys
):
    questions = [
        (1, "Is there a dog in the image?", "no"),
        (2, "Is there a sheep, a goat or any other animal with four legs in the image?", "no"),
        (1, "A cat?", "yes"),
        (3, "Is there a traffic light in the image?", "no"),
    ]
    entries = [
        {"question_id": number, "image": image_of(key), "text": text, "label": label}
        for number, (key, text, label) in enumerate(questions)
    ]
    pope = tmp_path / "pope"
    pope.mkdir()
    (pope / "random.jsonl").write_text("".join(json.dumps(each) + "\n" for each in entries))
    asked = ["--pope_path", str(pope), "--splits", "random", "--batch_size", "4"]
    assert command.main(["pope", *flags(tmp_path / "out", *asked)]) == 0
    answers = read_answers(tmp_path / "out" / "random" / "answers.jsonl", FORM)
    alone = {n: reference(image_of(key), text)[0] for n, (key, text, _) in enumerate(questions)}
    assert answers == alone
    assert "Accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--decoder", "revisit", "--early_exit_layers", "0,99"], "[99] are out of range"),
        (["--model", "/nowhere/at/all"], "cannot load /nowhere/at/all: no checkpoint at"),
        (["--device", "cuda:7"], "PyTorch finds no such device"),
    ],
    ids=str,
)
def test_bad_input_is_named(tmp_path, arguments, message, capsys):
    assert command.main(["chair", *flags(tmp_path / "captions.jsonl"), *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("revisit eval chair: error: ") and message in err


@pytest.fixture
def photos(tmp_path):
    """The demo's first three images, of which the second has another size."""

    def make(*size: int) -> list[str]:
        folder = tmp_path / "val2014"
        folder.mkdir()
        for key in (1, 3):
            shutil.copy(COCO / "val2014" / image_of(key), folder)
        Image.new("RGB", size).save(folder / image_of(2))
        return ["--data_path", str(folder), "--batch_size", "3"]

    return make


def failure(out: Path) -> str:
    """The error of the one image that the record lists, which is the second."""
    (entry,) = json.loads(out.with_name("captions.jsonl.run.json").read_text())["failed"]
    assert entry["file"] == image_of(2)
    return entry["error"]


def test_an_image_that_the_processor_cannot_take_is_listed_and_the_others_captioned(
    photos, tmp_path
):
    out, whole = tmp_path / "out" / "captions.jsonl", tmp_path / "whole" / "captions.jsonl"
    few = photos(2, 500)
    assert command.main(["chair", *flags(out), *few]) == 1
    assert "aspect ratio" in failure(out)
    (tmp_path / "val2014" / image_of(2)).unlink()
    assert command.main(["chair", *flags(whole), *few]) == 0
    assert read_captions(out) == read_captions(whole)


def test_an_image_that_generate_fails_on_is_listed_and_the_others_captioned(
    photos, tmp_path, monkeypatch
):
    original = transformers.GenerationMixin.generate

    def generate(self, **inputs):
        if (inputs["image_grid_thw"] == 10).any():
            raise ValueError("its scores hold NaN")
        return original(self, **inputs)

    monkeypatch.setattr(transformers.GenerationMixin, "generate", generate)
    out = tmp_path / "captions.jsonl"
    assert command.main(["chair", *flags(out), *photos(56, 140)]) == 1
    assert failure(out) == "its scores hold NaN"
    assert sorted(read_captions(out)) == [1, 3]


def test_tokens_count_up_to_the_first_end():
    rows = torch.tensor([[5, 6, 2, 0, 0], [5, 6, 7, 8, 9], [3, 2, 2, 2, 2], [5, 3, 0, 0, 2]])
    assert token_counts(rows, [2, 3]) == [3, 5, 1, 2]
    assert token_counts(rows, []) == [5, 5, 5, 5]


SAMPLE = ["--num_eval_samples", "10", "--do_sample", "--temperature", "2"]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one process writes, with sampling."""
    out = tmp_path_factory.mktemp("one") / "captions.jsonl"
    assert command.main(["chair", *flags(out, *SAMPLE)]) == 0
    return out.read_bytes()


def start(out: Path, rank: int, count: int, work=command.main) -> forked.Started:
    """One process of several."""
    out.parent.mkdir(exist_ok=True)
    environment = forked.place(rank, count)
    return forked.Started(out.parent.parent, environment, work, ["chair", *flags(out, *SAMPLE)])


def test_after_a_kill_three_processes_go_on_to_the_bytes_of_one(tmp_path, one):
    out = tmp_path / "out" / "captions.jsonl"
    whole = start(out, 0, 2)
    killed = start(out, 1, 2, evaluating.evaluate_and_die_at_the_second_batch)
    assert whole.wait()[0] == 0
    assert killed.wait()[0] == -signal.SIGKILL
    assert len(read_captions(out.with_name("captions.jsonl.part-0-of-2"))) == 6
    assert len(read_captions(out.with_name("captions.jsonl.part-1-of-2"))) == 2
    three = [start(out, rank, 3) for rank in range(3)]
    assert [each.wait()[0] for each in three] == [0, 0, 0]
    assert out.read_bytes() == one
    assert one.count(b"\n") == 10
    assert not list(out.parent.glob("*.part-*"))


def test_two_processes_of_torchrun_write_the_bytes_of_one(tmp_path, one):
    out = tmp_path / "out" / "captions.jsonl"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc_per_node", "2", "-m", "revisit.commands.eval"]
    done = subprocess.run(
        [*launcher, "chair", *flags(out, *SAMPLE)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == one
    record = json.loads(out.with_name("captions.jsonl.run.json").read_text())
    assert sorted(run["captions"] for run in record["runs"]) == [4, 6]


SELECTIONS = ("min", "max", "random")
SIX = ("--num_eval_samples", "6")


def selected(selection: str) -> list[str]:
    """Flags of six captions by a selection, over all layers."""
    decoder = ["--decoder", "revisit", "--early_exit_layers", "all"]
    return [*SIX, *decoder, "--revisit_selection", selection]


def made(folder: Path) -> str:
    return (folder / "captions.jsonl").read_text()


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("swept")
    scoring = ["--anno_path", str(COCO / "annotations"), "--lemmatizer", "noun"]
    sweep = ["--sweep", f"selection={','.join(SELECTIONS)}", "layers=last,all"]
    assert command.main(["chair", *flags(out, *SIX, *sweep, *scoring)]) == 0
    return out


def folder_of(selection: str, layers: str) -> str:
    named = "" if selection == "min" else f"-{selection}"
    return f"revisit-{layers}-1e-5-ag{named}-seed42"


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_run_of_a_sweep_gives_what_it_gives_alone(swept, tmp_path, selection):
    assert command.main(["chair", *flags(tmp_path, *selected(selection))]) == 0
    assert made(tmp_path) == made(swept / folder_of(selection, "all"))
    assert (swept / folder_of(selection, "all") / "chair.json").exists()


def test_swept_settings_and_greedy_decoding_give_different_captions(swept):
    captions = [made(swept / folder_of(selection, "all")) for selection in SELECTIONS]
    assert len({*captions, made(swept / "plain-seed42")}) == 4
    assert made(swept / folder_of("random", "last")) != made(swept / folder_of("random", "all"))


def test_what_is_drawn_at_random_continues_to_what_one_run_draws(swept, tmp_path):
    asked = ["chair", *flags(tmp_path, *selected("random"))]
    assert command.main(asked) == 0
    whole = made(tmp_path)
    file = tmp_path / "captions.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
    assert command.main(asked) == 0
    assert made(tmp_path) == whole


def test_only_another_selection_than_the_default_is_recorded(swept):
    for selection in SELECTIONS:
        record = swept / folder_of(selection, "last") / "captions.jsonl.run.json"
        settings = json.loads(record.read_text())["settings"]
        default = None if selection == "min" else selection
        assert settings.get("revisit_selection") == default
        # Rows of a batch share a stream of draws.
        assert settings.get("batch_size") == (2 if selection == "random" else None)
