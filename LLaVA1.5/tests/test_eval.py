"""The evaluation: COCO captions, from images to CHAIR, and POPE's questions."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import llava
import revisit
from llava import llava_v1_prompt, load_pretrained_model, process_images, tokenizer_image_token
from revisit.config import DoLaConfig, M3IDConfig, RITUALConfig, VCDConfig
from revisit.decoders.transformations import second_image

FAMILY = Path(__file__).parents[1]
SIZES = [(60, 40), (30, 70), (56, 56), (20, 80), (64, 64)]
REVISIT = {"use_revisit": True, "early_exit_layers": "all", "relative_top": 0.01}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Five images of noise in the layout of COCO, with their annotations."""
    images = tmp_path / "coco" / "val2014"
    images.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for number, (width, height) in enumerate(SIZES, 1):
        noise = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(images / f"COCO_val2014_{number:012d}.jpg")
    ids = range(1, len(SIZES) + 1)
    shared = {"images": [{"id": i, "file_name": f"COCO_val2014_{i:012d}.jpg"} for i in ids]}
    boxes = [{"id": i, "image_id": i, "category_id": 18} for i in ids]
    texts = [{"id": i, "image_id": i, "caption": "A dog."} for i in ids]
    folder = tmp_path / "coco" / "annotations"
    folder.mkdir()
    instances = {"annotations": boxes, "categories": [{"id": 18, "name": "dog"}], **shared}
    (folder / "instances_val2014.json").write_text(json.dumps(instances))
    (folder / "captions_val2014.json").write_text(json.dumps({"annotations": texts, **shared}))
    return tmp_path / "coco"


def captions_in(file: Path) -> dict[int, str]:
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return {line["image_id"]: line["caption"] for line in lines}


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("decoder", [{}, REVISIT], ids=["greedy", "revisit"])
def test_captions_are_what_the_model_says_of_each_image(
    checkpoint, coco, tmp_path, batch_size, decoder
):
    script = runpy.run_path(str(FAMILY / "eval" / "chair_eval_llava.py"))
    arguments = {
        "model_path": checkpoint,
        "data_path": coco / "val2014",
        "anno_path": coco / "annotations",
        "output_path": tmp_path / "captions.jsonl",
        "max_new_tokens": 12,
        "batch_size": batch_size,
        "device": "cpu",
        **decoder,
    }
    argv = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    assert script["main"](["chair", *argv], script["FAMILY"]) == 0

    tokenizer, model, processor = load_pretrained_model(checkpoint, device="cpu")
    prompt = llava_v1_prompt(["<image>\nPlease describe this image in detail."])
    ids = tokenizer_image_token(prompt, tokenizer, return_tensors="pt")[None]
    expected = {}
    for path in (coco / "val2014").iterdir():
        pixels = process_images([Image.open(path)], processor, model.config)
        tokens = model.generate(ids, images=pixels, max_new_tokens=12, **decoder)
        text = tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True)
        expected[int(path.stem[-12:])] = text.strip()
    assert captions_in(tmp_path / "captions.jsonl") == expected
    assert len(set(expected.values())) > 1


OTHERS = [
    ({"decoder": "vcd", "vcd_alpha": 2, "vcd_seed": 1}, VCDConfig(alpha=2, seed=1)),
    ({"decoder": "ritual", "ritual_seed": 4}, RITUALConfig(seed=4)),
    ({"decoder": "m3id", "m3id_gamma": 0.3}, M3IDConfig(gamma=0.3)),
    ({"decoder": "dola", "dola_layers": "0"}, DoLaConfig(layers=[0])),
]


@pytest.mark.parametrize(("flags", "config"), OTHERS, ids=str)
def test_another_decoder_s_captions_are_what_it_says_of_each_image(
    checkpoint, coco, tmp_path, flags, config
):
    script = runpy.run_path(str(FAMILY / "eval" / "chair_eval_llava.py"))
    out = tmp_path / "captions.jsonl"
    arguments = {"model_path": checkpoint, "data_path": coco / "val2014", "output_path": out}
    arguments |= {"max_new_tokens": 12, "batch_size": 4, "device": "cpu", **flags}
    argv = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    assert script["main"](["chair", *argv], script["FAMILY"]) == 0

    tokenizer, model, processor = load_pretrained_model(checkpoint, device="cpu")
    prompt = llava_v1_prompt(["<image>\nPlease describe this image in detail."])
    ids = tokenizer_image_token(prompt, tokenizer, return_tensors="pt")[None]
    expected, plain = {}, {}
    for path in (coco / "val2014").iterdir():
        image = Image.open(path)
        given = {"images": process_images([image], processor, model.config), "max_new_tokens": 12}
        second = {}
        if isinstance(config, RITUALConfig):
            turned = process_images([second_image(image, config.seed)], processor, model.config)
            second = {"second_inputs": {"images": turned}}
        with revisit.attach(model, config):
            tokens = {"other": model.generate(ids, **given, **second)}
        tokens["plain"] = model.generate(ids, **given)
        for name, kept in (("other", expected), ("plain", plain)):
            text = tokenizer.decode(tokens[name][0, ids.shape[1] :], skip_special_tokens=True)
            kept[int(path.stem[-12:])] = text.strip()
    assert captions_in(out) == expected
    assert expected != plain


def run_script(
    folder: Path,
    checkpoint: Path,
    coco: Path,
    *arguments: str,
    script: str = "eval_chair_llava.sh",
    **settings: str,
) -> int:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MODEL_PATH": str(checkpoint),
        "DATA_PATH": str(coco / "val2014"),
        "ANNO_PATH": str(coco / "annotations"),
        "OUTPUT_PATH": "out put",
        "EARLY_EXIT_LAYERS": "0 2",
        "MAX_NEW_TOKENS": "4",
        "NUM_EVAL_SAMPLES": "3",
        "BATCH_SIZE": "2",
        "DEVICE": "cpu",
        "LEMMATIZER": "noun",
        **settings,
    }
    command = ["bash", str(FAMILY / script), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


@pytest.mark.parametrize("script", ["eval_chair_llava.sh", "eval_pope_llava.sh"])
def test_another_package_of_the_same_name_is_named(checkpoint, coco, tmp_path, capfd, script):
    (tmp_path / "revisit").mkdir()
    other = tmp_path / "revisit" / "__init__.py"
    other.touch()
    assert run_script(tmp_path, checkpoint, coco, script=script, PYTHONPATH=str(tmp_path)) == 1
    printed = capfd.readouterr().err
    assert f"`revisit` here is {other}" in printed and "-s llava" in printed
    assert "Traceback" not in printed


def test_the_script_captions_and_scores_from_any_folder(checkpoint, coco, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert run_script(elsewhere, checkpoint, coco, DATA_PATH="../coco/val2014") == 0
    assert len(captions_in(elsewhere / "out put" / "captions.jsonl")) == 3
    result = (elsewhere / "out put" / "chair.json").read_text()
    assert "CHAIRs" in result and '"relative_top": 1e-05' in result


def test_flags_after_the_scripts_name_count_before_the_environment(checkpoint, coco, tmp_path):
    flags = ["--output_path", "mine", "--use_revisit", "false", "--seed", "5"]
    assert run_script(tmp_path, checkpoint, coco, *flags, USE_REVISIT="TRUE", SEED="4") == 0
    assert not (tmp_path / "out put").exists()
    assert len(captions_in(tmp_path / "mine" / "captions.jsonl")) == 3
    recorded = json.loads((tmp_path / "mine" / "chair.json").read_text())["captions"]["run"]
    assert recorded["settings"]["seed"] == 5
    assert "use_revisit" not in recorded["settings"]


def test_the_script_takes_another_decoder(checkpoint, coco, tmp_path):
    assert run_script(tmp_path, checkpoint, coco, "--decoder", "m3id") == 0
    recorded = json.loads((tmp_path / "out put" / "chair.json").read_text())["captions"]["run"]
    assert recorded["settings"]["decoder"] == "m3id"
    assert recorded["settings"]["m3id_gamma"] == 0.02


QUESTIONS = [
    "Is there a dog?",
    "What is the colour of the car beside the two chairs and the table in this image?",
    "A bus?",
    "Is there a cat on the grass?",
]


def write_questions(folder: Path, name: str) -> None:
    """A file of POPE's, with questions of unequal length."""
    folder.mkdir(exist_ok=True)
    images = [1, 2, 1, 4]
    entries = [
        {"question_id": 7 + number, "image": f"COCO_val2014_{image:012d}.jpg", "text": text}
        for number, (image, text) in enumerate(zip(images, QUESTIONS, strict=True))
    ]
    lines = [json.dumps(entry | {"label": "yes"}) + "\n" for entry in entries]
    (folder / name).write_text("".join(lines))


@pytest.mark.parametrize("decoder", ["greedy", "revisit", "ritual"])
def test_the_script_asks_each_question_as_if_it_were_alone(checkpoint, coco, tmp_path, decoder):
    write_questions(tmp_path / "pope", "coco_pope_random.json")
    write_questions(tmp_path / "pope", "coco_pope_adversarial.json")
    pope = {"SPLITS": "random,adversarial", "POPE_PATH": "pope", "MAX_NEW_TOKENS": "12"}
    more = {"BATCH_SIZE": "3", "EARLY_EXIT_LAYERS": "last", "ONE_WORD": "true"}
    more |= {"DECODER": decoder, "LAUNCHER": "python -u"}
    script = "eval_pope_llava.sh"
    assert run_script(tmp_path, checkpoint, coco, script=script, **pope, **more) == 0

    tokenizer, model, processor = load_pretrained_model(checkpoint, device="cpu")
    config = {"revisit": revisit.ReVisiTConfig(), "ritual": RITUALConfig()}.get(decoder)
    if config is not None:
        revisit.enable(model, config)
    expected = {}
    for number, (image_id, text) in enumerate(zip([1, 2, 1, 4], QUESTIONS, strict=True), 7):
        asked = f"<image>\n{text} Please answer this question with one word."
        ids = tokenizer_image_token(llava_v1_prompt([asked]), tokenizer, return_tensors="pt")[None]
        image = Image.open(coco / "val2014" / f"COCO_val2014_{image_id:012d}.jpg")
        pixels = process_images([image], processor, model.config)
        second = {}
        if decoder == "ritual":
            turned = process_images([second_image(image)], processor, model.config)
            second = {"second_inputs": {"images": turned}}
        tokens = model.generate(ids, images=pixels, max_new_tokens=12, **second)
        answer = tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True)
        expected[number] = answer.strip()
    for split in ("random", "adversarial"):
        folder = tmp_path / "out put" / split
        lines = map(json.loads, (folder / "answers.jsonl").read_text("utf-8").splitlines())
        assert {line["question_id"]: line["answer"] for line in lines} == expected
        assert json.loads((folder / "pope.json").read_text())["count"] == 4
    assert len(set(expected.values())) > 1


def test_a_sweep_continues_and_says_what_its_settings_say_alone(checkpoint, coco, tmp_path):
    sweep = ["--sweep", "selection=max,random"]
    assert run_script(tmp_path, checkpoint, coco, *sweep, NUM_EVAL_SAMPLES="5") == 0
    made = tmp_path / "out put"
    names = [f"revisit-0-2-1e-5-ag-{each}-seed42" for each in ("max", "random")]
    assert sorted(path.name for path in made.iterdir()) == ["plain-seed42", *names]
    files = [made / name / "captions.jsonl" for name in names]
    whole = [file.read_text() for file in files]
    for file, text in zip(files, whole, strict=True):
        file.write_text("".join(text.splitlines(keepends=True)[:3]))
    assert run_script(tmp_path, checkpoint, coco, *sweep, NUM_EVAL_SAMPLES="5") == 0
    assert [file.read_text() for file in files] == whole
    flags = ["--revisit_selection", "random", "--output_path", "alone"]
    assert run_script(tmp_path, checkpoint, coco, *flags, NUM_EVAL_SAMPLES="5") == 0
    assert (tmp_path / "alone" / "captions.jsonl").read_text() == whole[1] != whole[0]


@pytest.mark.parametrize(("device", "dtype"), [("cuda", "float16"), ("cpu", "float32")])
def test_the_dtype_on_a_gpu_is_float16_whatever_the_checkpoints_own(
    coco, tmp_path, monkeypatch, capsys, device, dtype
):
    """As published. There is no GPU here: what matters is what the model is loaded with."""
    (tmp_path / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def load(name, **given):
        raise OSError(f"{given['device']} {given['dtype']}")

    monkeypatch.setattr(llava, "load_pretrained_model", load)
    flags = ["--model_path", str(tmp_path), "--data_path", str(coco / "val2014")]
    flags += ["--output_path", str(tmp_path / "out")]
    flags += ["--device", "cpu"] if device == "cpu" else []
    monkeypatch.setattr(sys, "argv", ["chair_eval_llava.py", *flags])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(FAMILY / "eval" / "chair_eval_llava.py"), run_name="__main__")
    assert capsys.readouterr().err.endswith(f": {device} torch.{dtype}\n")
