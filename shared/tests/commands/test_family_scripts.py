"""The scripts of the two families, on the demo: from a command line to captions and scores."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image

import revisit
from releases import RELEASE
from revisit.config import DoLaConfig, M3IDConfig, RITUALConfig, VCDConfig
from revisit.decoders.transformations import second_image

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "prerequisites" / "demo"
IMAGES, ANNOTATIONS = DEMO / "coco" / "val2014", DEMO / "coco" / "annotations"
DESCRIBE = "Please describe this image in detail."
LENGTH = 24


class Llava:
    """LLaVA-1.5 as its package loads and asks it."""

    name, folder, pixels = "llava", "LLaVA1.5", "images"
    layers, gpu_dtype = "last", "float16"
    load_function, load_arguments = "llava.load_pretrained_model", ("device", "dtype")

    def __init__(self):
        import llava

        self.llava = llava
        loaded = llava.load_pretrained_model(DEMO / "llava-tiny", device="cpu")
        self.tokenizer, self.model, self.processor = loaded

    def inputs(self, image, question):
        prompt = self.llava.llava_v1_prompt([f"<image>\n{question}"])
        ids = self.llava.tokenizer_image_token(prompt, self.tokenizer, return_tensors="pt")
        images = self.llava.process_images([image], self.processor, self.model.config)
        return {"input_ids": ids[None], "images": images}


class Qwen:
    """Qwen2.5-VL as Transformers loads and asks it."""

    name, folder, pixels = "qwen", "Qwen2.5-VL", "pixel_values"
    layers, gpu_dtype = "all", "bfloat16"
    load_function = "revisit.transformers.checkpoint.load_complete"
    load_arguments = ("device_map", "torch_dtype")

    def __init__(self):
        from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

        checkpoint = DEMO / "qwen-tiny"
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint).float().eval()
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.tokenizer = self.processor.tokenizer

    def inputs(self, image, question):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        conversation = [{"role": "user", "content": content}]
        text = self.processor.apply_chat_template(conversation, add_generation_prompt=True)
        return {**self.processor(text=[text], images=[image], return_tensors="pt")}


FAMILIES = {(4, 31): Llava, (4, 50): Qwen}
if RELEASE not in FAMILIES:
    pytest.skip("runs in the environments of the families", allow_module_level=True)
FAMILY = FAMILIES[RELEASE]
CHECKPOINT = DEMO / f"{FAMILY.name}-tiny"
SUFFIX = {"llava": "llava", "qwen": "qwenvl"}[FAMILY.name]
CHAIR, POPE = (f"{FAMILY.folder}/eval_{name}_{SUFFIX}.sh" for name in ("chair", "pope"))
PROGRAM = f"{FAMILY.folder}/eval/chair_eval_{SUFFIX}.py"
family = cache(FAMILY)


@torch.no_grad()
def answer(image_id, question=DESCRIBE, config=None, **settings):
    """The answer of the family's model to one question about one image.

    `config`: of another decoder than the fork's, which `settings` ask for.
    """
    image = Image.open(IMAGES / f"COCO_val2014_{image_id:012d}.jpg")
    inputs = family().inputs(image, question)
    if isinstance(config, RITUALConfig):
        second = family().inputs(second_image(image, config.seed), question)
        settings["second_inputs"] = {FAMILY.pixels: second[FAMILY.pixels]}
    with revisit.attach(family().model, config) if config else nullcontext():
        output = family().model.generate(
            **inputs, max_new_tokens=LENGTH, do_sample=False, **settings
        )
    new_tokens = output[0, inputs["input_ids"].shape[1] :]
    return family().tokenizer.decode(new_tokens, skip_special_tokens=True).strip()


def run_script(folder, *flags, script=CHAIR, root=ROOT, **settings):
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MODEL_PATH": str(CHECKPOINT),
        "DATA_PATH": str(IMAGES),
        "ANNO_PATH": str(ANNOTATIONS),
        "OUTPUT_PATH": "out put",
        "RELATIVE_TOP": "0.001",
        "MAX_NEW_TOKENS": str(LENGTH),
        "NUM_EVAL_SAMPLES": "3",
        "BATCH_SIZE": "2",
        "DTYPE": "float32",
        "DEVICE": "cpu",
        "LEMMATIZER": "noun",
        **settings,
    }
    command = ["bash", str(root / script), *flags]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def run_program(output, *flags):
    """The program that the script starts, in this process; its exit status."""
    program = runpy.run_path(str(ROOT / PROGRAM))
    settings = ["--model_path", str(CHECKPOINT), "--data_path", str(IMAGES), "--device", "cpu"]
    settings += ["--output_path", str(output), "--max_new_tokens", str(LENGTH)]
    settings += ["--num_eval_samples", "5", "--batch_size", "4"]
    return program["main"](["chair", *settings, *flags], program["FAMILY"])


def read(file, key, value):
    """Two columns of a file of answers, as a dict."""
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return {line[key]: line[value] for line in lines}


def settings_in(result):
    return json.loads(result.read_text())["captions"]["run"]["settings"]


@pytest.mark.parametrize(
    ("flags", "config"),
    [
        (["greedy"], None),
        (["revisit", "--early_exit_layers", "all", "--relative_top", "0.01"], None),
        (["vcd", "--vcd_alpha", "2", "--vcd_seed", "1"], VCDConfig(alpha=2, seed=1)),
        (["ritual", "--ritual_seed", "4"], RITUALConfig(seed=4)),
        (["m3id", "--m3id_gamma", "0.3"], M3IDConfig(gamma=0.3)),
        (["dola", "--dola_layers", "0"], DoLaConfig(layers=[0])),
    ],
    ids=str,
)
def test_captions_are_the_model_s_answers_about_each_image(tmp_path, flags, config):
    assert run_program(tmp_path / "captions.jsonl", "--decoder", *flags) == 0
    captions = read(tmp_path / "captions.jsonl", "image_id", "caption")
    settings = {}
    if flags[0] == "revisit":
        settings = {"use_revisit": True, "early_exit_layers": "all", "relative_top": 0.01}
    assert captions == {
        image_id: answer(image_id, config=config, **settings) for image_id in captions
    }
    assert len(captions) == 5 and len(set(captions.values())) > 1
    greedy = {image_id: answer(image_id) for image_id in captions}
    assert (captions == greedy) == (flags == ["greedy"])


def test_the_script_captions_and_scores_from_any_folder(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run_script(elsewhere, DATA_PATH=os.path.relpath(IMAGES, elsewhere))
    assert done.returncode == 0, done.stderr
    captions = read(elsewhere / "out put" / "captions.jsonl", "image_id", "caption")
    settings = {"use_revisit": True, "relative_top": 0.001}
    assert captions == {image_id: answer(image_id, **settings) for image_id in captions}
    result = json.loads((elsewhere / "out put" / "chair.json").read_text())
    assert set(result["overall_metrics"]) == {"CHAIRs", "CHAIRi", "Recall", "F1", "Len"}
    assert settings_in(elsewhere / "out put" / "chair.json")["early_exit_layers"] == FAMILY.layers


def test_flags_after_the_scripts_name_count_before_the_environment(tmp_path):
    annotations = str(ANNOTATIONS / "instances_val2014.json")
    flags = ["--output_path", "mine.jsonl", "--anno_path", annotations, "--decoder", "m3id"]
    done = run_script(tmp_path, *flags, "--seed", "5", ANNO_PATH="/nowhere", SEED="4")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out put").exists()
    result = json.loads((tmp_path / "chair.json").read_text())
    assert result["captions"]["file"] == "mine.jsonl"
    assert result["settings"]["ground_truth"]["annotations"] == annotations
    settings = settings_in(tmp_path / "chair.json")
    assert settings["seed"] == 5 and settings["decoder"] == "m3id"
    assert settings["m3id_gamma"] == 0.02


@pytest.mark.parametrize(
    ("environment", "flags", "name"),
    [
        ({"USE_REVISIT": "TRUE"}, [], f"revisit-{FAMILY.layers}-0.001-ag-seed42"),
        (
            {},
            ["--early_exit_layers", "0", "2", "--relative_top", "1e-4", "--seed", "7"],
            "revisit-0-2-1e-4-ag-seed7",
        ),
        ({"DECODER": "greedy"}, [], "plain-seed42"),
        ({}, ["--use_revisit", "false"], "plain-seed42"),
    ],
    ids=str,
)
def test_the_results_folder_is_named_by_the_decoding(tmp_path, environment, flags, name):
    for file in (CHAIR, PROGRAM, "shared/eval.sh"):  # a repository whose results/ is ours
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    done = run_script(tmp_path, *flags, root=tmp_path, OUTPUT_PATH="", **environment)
    assert done.returncode == 0, done.stderr
    results = tmp_path / "results" / FAMILY.name
    assert [path.name for path in results.iterdir()] == [name]
    is_revisit = settings_in(results / name / "chair.json").get("use_revisit", False)
    assert is_revisit == name.startswith("revisit")


@pytest.mark.parametrize("decoder", ["greedy", "revisit", "ritual"])
def test_the_script_asks_popes_questions_and_scores_the_answers(tmp_path, decoder):
    questions = [
        (1, "Is there a suitcase in the image?", "yes"),
        (2, "Is there a dog, a cat, a bear or any other animal in the image?", "no"),
        (1, "A handbag?", "no"),
    ]
    entries = [
        {"question_id": n, "image": f"COCO_val2014_{image:012d}.jpg", "text": text, "label": label}
        for n, (image, text, label) in enumerate(questions)
    ]
    (tmp_path / "pope").mkdir()
    for split in ("random", "adversarial"):
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        (tmp_path / "pope" / f"coco_pope_{split}.json").write_text(lines)
    environment = {"POPE_PATH": "pope", "SPLITS": "random,adversarial", "DECODER": decoder}
    environment |= {"BATCH_SIZE": "3", "ONE_WORD": "true", "LAUNCHER": "python -u"}
    done = run_script(tmp_path, script=POPE, **environment)
    assert done.returncode == 0, done.stderr
    settings = {"use_revisit": True, "relative_top": 0.001} if decoder == "revisit" else {}
    config = RITUALConfig() if decoder == "ritual" else None
    expected = {
        n: answer(image, f"{text} Please answer this question with one word.", config, **settings)
        for n, (image, text, _) in enumerate(questions)
    }
    for split in ("random", "adversarial"):
        folder = tmp_path / "out put" / split
        assert read(folder / "answers.jsonl", "question_id", "answer") == expected
        assert json.loads((folder / "pope.json").read_text())["count"] == 3
    assert done.stdout.count("Accuracy") == 2


def test_a_sweep_continues_and_gives_what_its_settings_give_alone(tmp_path):
    swept = ["--sweep", "selection=max,random", "--use_revisit", "true"]
    score = ["--anno_path", str(ANNOTATIONS), "--lemmatizer", "noun"]
    assert run_program(tmp_path / "out", *swept, *score) == 0
    names = [f"revisit-{FAMILY.layers}-1e-5-ag-{each}-seed42" for each in ("max", "random")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["plain-seed42", *names]
    files = [tmp_path / "out" / name / "captions.jsonl" for name in names]
    whole = [file.read_text() for file in files]
    for file, text in zip(files, whole, strict=True):
        file.write_text("".join(text.splitlines(keepends=True)[:3]))
    assert run_program(tmp_path / "out", *swept, *score) == 0
    assert [file.read_text() for file in files] == whole
    alone = ["--use_revisit", "true", "--revisit_selection", "random"]
    assert run_program(tmp_path / "alone.jsonl", *alone) == 0
    assert (tmp_path / "alone.jsonl").read_text() == whole[1] != whole[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--use_revisit", "true", "--early_exit_layers", "0 99"], "out of range"),
        (["--relative_top", "1.5"], "relative_top"),
        (["--model_path", "/nowhere/at/all"], "no checkpoint at /nowhere/at/all"),
        (["--anno_path", str(DEMO)], "instances_"),
        (["--decoder", "beam"], 'Invalid value "beam" for --decoder'),
        (["--use_revisit", "yes"], "--use_revisit yes: it is neither true nor false"),
    ],
    ids=str,
)
def test_bad_input_is_named_and_nothing_is_captioned(tmp_path, capsys, flags, message):
    assert run_program(tmp_path / "captions.jsonl", *flags) == 2
    assert message in capsys.readouterr().err
    captions = tmp_path / "captions.jsonl"
    assert not captions.exists() or not captions.read_text()


@pytest.mark.parametrize("script", [CHAIR, POPE])
def test_another_package_of_the_same_name_is_named(tmp_path, script):
    (tmp_path / "revisit").mkdir()
    other = tmp_path / "revisit" / "__init__.py"
    other.touch()
    done = run_script(tmp_path, script=script, PYTHONPATH=str(tmp_path), POPE_PATH="")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"`revisit` here is {other}" in done.stderr and f"-s {FAMILY.name}" in done.stderr


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_dtype_on_a_gpu_is_the_published_one(tmp_path, monkeypatch, capsys, device):
    """LLaVA's is float16, Qwen's the checkpoint's. There is no GPU here: the loader is asked."""
    (tmp_path / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def load(*_, **settings):
        raise OSError(" ".join(str(settings[name]) for name in FAMILY.load_arguments))

    monkeypatch.setattr(FAMILY.load_function, load)
    flags = ["--model_path", str(tmp_path), "--data_path", str(IMAGES)]
    flags += ["--output_path", str(tmp_path / "out")]
    flags += ["--device", "cpu"] if device == "cpu" else []
    monkeypatch.setattr(sys, "argv", [Path(PROGRAM).name, *flags])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / PROGRAM), run_name="__main__")
    dtype = FAMILY.gpu_dtype if device == "cuda" else "float32"
    assert capsys.readouterr().err.endswith(f": {device} torch.{dtype}\n")
