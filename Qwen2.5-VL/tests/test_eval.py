"""The evaluation, COCO captions and POPE's questions, on the demo's images and tiny checkpoint."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

import revisit
from revisit.config import RITUALConfig, VCDConfig
from revisit.decoders.transformations import second_image

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "prerequisites" / "demo"
CHECKPOINT = DEMO / "qwen-tiny"
SCRIPTS = ("Qwen2.5-VL/eval_chair_qwenvl.sh", "Qwen2.5-VL/eval/chair_eval_qwenvl.py")
POPE = "Qwen2.5-VL/eval_pope_qwenvl.sh"


def run_script(
    folder: Path,
    *arguments: str,
    root: Path = ROOT,
    script: str = SCRIPTS[0],
    **settings: str,
) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MODEL_PATH": str(CHECKPOINT),
        "DATA_PATH": str(DEMO / "coco" / "val2014"),
        "ANNO_PATH": str(DEMO / "coco" / "annotations"),
        "OUTPUT_PATH": "out put",
        "RELATIVE_TOP": "0.001",
        "MAX_NEW_TOKENS": "24",
        "NUM_EVAL_SAMPLES": "3",
        "BATCH_SIZE": "2",
        "DTYPE": "float32",
        "DEVICE": "cpu",
        "LEMMATIZER": "noun",
        **settings,
    }
    command = ["bash", str(root / script), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def captions_in(file: Path) -> dict[int, str]:
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return {line["image_id"]: line["caption"] for line in lines}


@torch.no_grad()
def caption_alone(
    image_id: int,
    other: object = None,
    asked: str = "Please describe this image in detail.",
    **arguments: object,
) -> str:
    """What the model says of one image, by Transformers' own steps; `other`: another decoder."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(CHECKPOINT).float().eval()
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    image = {"type": "image"}
    question = {"type": "text", "text": asked}
    conversation = [{"role": "user", "content": [image, question]}]
    text = processor.apply_chat_template(conversation, add_generation_prompt=True)
    picture = Image.open(DEMO / "coco" / "val2014" / f"COCO_val2014_{image_id:012d}.jpg")
    inputs = processor(text=[text], images=[picture], return_tensors="pt")
    if isinstance(other, RITUALConfig):
        turned = second_image(picture, other.seed)
        pixels = processor(text=[text], images=[turned], return_tensors="pt").pixel_values
        arguments["second_inputs"] = {"pixel_values": pixels}
    if other is not None:
        revisit.enable(model, other)
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False, **arguments)
    answer = output[0, inputs.input_ids.shape[1] :]
    return processor.decode(answer, skip_special_tokens=True).strip()


@pytest.mark.parametrize("revisit", [False, True], ids=["greedy", "revisit"])
def test_the_script_captions_and_scores_from_any_folder(tmp_path, revisit):
    done = run_script(tmp_path, USE_REVISIT=str(revisit).lower())
    assert done.returncode == 0, done.stderr
    captions = captions_in(tmp_path / "out put" / "captions.jsonl")
    arguments = {"use_revisit": True, "relative_top": 0.001} if revisit else {}
    assert len(captions) == 3
    for image_id, caption in captions.items():
        assert caption == caption_alone(image_id, **arguments)
    result = json.loads((tmp_path / "out put" / "chair.json").read_text())
    assert set(result["overall_metrics"]) == {"CHAIRs", "CHAIRi", "Recall", "F1", "Len"}
    recorded = result["captions"]["run"]["settings"]
    assert recorded.get("early_exit_layers") == ("all" if revisit else None)


def test_a_sweep_continues_and_says_what_its_settings_say_alone(tmp_path):
    sweep = ["--sweep", "selection=max,random"]
    assert run_script(tmp_path, *sweep, NUM_EVAL_SAMPLES="5").returncode == 0
    made = tmp_path / "out put"
    names = [f"revisit-all-0.001-ag-{each}-seed42" for each in ("max", "random")]
    assert sorted(path.name for path in made.iterdir()) == ["plain-seed42", *names]
    files = [made / name / "captions.jsonl" for name in names]
    whole = [file.read_text() for file in files]
    for image_id, caption in captions_in(files[0]).items():
        arguments = {"relative_top": 0.001, "revisit_selection": "max"}
        assert caption == caption_alone(image_id, use_revisit=True, **arguments)
    for file, text in zip(files, whole, strict=True):
        file.write_text("".join(text.splitlines(keepends=True)[:3]))
    done = run_script(tmp_path, *sweep, NUM_EVAL_SAMPLES="5")
    assert done.returncode == 0 and "5 images\n" in done.stdout
    assert [file.read_text() for file in files] == whole
    flags = ["--revisit_selection", "random", "--output_path", "alone"]
    assert run_script(tmp_path, *flags, NUM_EVAL_SAMPLES="5").returncode == 0
    assert (tmp_path / "alone" / "captions.jsonl").read_text() == whole[1] != whole[0]


@pytest.mark.parametrize(
    ("flags", "config"),
    [
        (["vcd", "--vcd_alpha", "2"], VCDConfig(alpha=2)),
        (["ritual", "--ritual_seed", "5"], RITUALConfig(seed=5)),
    ],
    ids=str,
)
def test_the_script_captions_by_another_decoder(tmp_path, flags, config):
    done = run_script(tmp_path, "--decoder", *flags)
    assert done.returncode == 0, done.stderr
    captions = captions_in(tmp_path / "out put" / "captions.jsonl")
    assert len(captions) == 3
    for image_id, caption in captions.items():
        assert caption == caption_alone(image_id, config)
    assert any(caption != caption_alone(image_id) for image_id, caption in captions.items())
    result = json.loads((tmp_path / "out put" / "chair.json").read_text())
    recorded = result["captions"]["run"]["settings"]
    assert recorded["decoder"] == flags[0]
    assert recorded[flags[1].removeprefix("--")] == getattr(config, flags[1].split("_", 1)[1])


@pytest.mark.parametrize("decoder", ["greedy", "revisit"])
def test_the_script_asks_popes_questions_and_scores_the_answers(tmp_path, decoder):
    asked = [
        (1, "Is there a suitcase in the image?", "yes"),
        (2, "Is there a dog, a cat, a bear or any other animal in the image?", "no"),
        (1, "A handbag?", "no"),
    ]
    entries = [
        {"question_id": n, "image": f"COCO_val2014_{image:012d}.jpg", "text": text, "label": label}
        for n, (image, text, label) in enumerate(asked)
    ]
    (tmp_path / "pope").mkdir()
    for split in ("random", "popular", "adversarial"):
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        (tmp_path / "pope" / f"coco_pope_{split}.json").write_text(lines)
    settings = {"POPE_PATH": "pope", "DECODER": decoder, "BATCH_SIZE": "3"}
    done = run_script(tmp_path, script=POPE, **settings)
    assert done.returncode == 0, done.stderr
    arguments = {"use_revisit": True, "relative_top": 0.001} if decoder == "revisit" else {}
    alone = [caption_alone(image, asked=text, **arguments) for image, text, _ in asked]
    for split in ("random", "popular", "adversarial"):
        folder = tmp_path / "out put" / split
        lines = map(json.loads, (folder / "answers.jsonl").read_text("utf-8").splitlines())
        assert [line["answer"] for line in lines] == alone
        assert json.loads((folder / "pope.json").read_text())["count"] == 3
    assert done.stdout.count("Accuracy") == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"EARLY_EXIT_LAYERS": "0 99"}, "out of range"),
        ({"RELATIVE_TOP": "1.5"}, "relative_top"),
        ({"MODEL_PATH": "/nowhere/at/all"}, "no checkpoint at /nowhere/at/all"),
        ({"ANNO_PATH": str(DEMO)}, "instances_"),
        ({"DECODER": "beam"}, 'Invalid value "beam" for --decoder'),
        ({"USE_REVISIT": "yes"}, "--use_revisit yes: it is neither true nor false"),
    ],
    ids=str,
)
def test_bad_input_is_named_and_nothing_is_captioned(tmp_path, settings, message):
    done = run_script(tmp_path, **settings)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    captions = tmp_path / "out put" / "captions.jsonl"
    assert not captions.exists() or not captions.read_text()


@pytest.mark.parametrize(
    ("settings", "arguments", "name", "revisit"),
    [
        ({"USE_REVISIT": "TRUE"}, [], "revisit-all-0.001-ag-seed42", True),
        (
            {},
            ["--early_exit_layers", "0", "2", "--relative_top", "1e-4", "--seed", "7"],
            "revisit-0-2-1e-4-ag-seed7",
            True,
        ),
        ({"DECODER": "greedy"}, [], "plain-seed42", False),
    ],
    ids=str,
)
def test_the_results_folder_is_named_by_what_decoded(tmp_path, settings, arguments, name, revisit):
    for file in (*SCRIPTS, "shared/eval_chair.sh"):  # a repository whose results/ is ours
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    done = run_script(tmp_path, *arguments, root=tmp_path, OUTPUT_PATH="", **settings)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "results" / "qwen").iterdir()] == [name]
    result = json.loads((tmp_path / "results" / "qwen" / name / "chair.json").read_text())
    assert result["captions"]["run"]["settings"].get("use_revisit", False) is revisit


@pytest.mark.parametrize("script", [SCRIPTS[0], POPE])
def test_another_package_of_the_same_name_is_named(tmp_path, script):
    (tmp_path / "revisit").mkdir()
    other = tmp_path / "revisit" / "__init__.py"
    other.touch()
    done = run_script(tmp_path, script=script, PYTHONPATH=str(tmp_path), POPE_PATH="")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"`revisit` here is {other}" in done.stderr and "-s qwen" in done.stderr


def test_flags_after_the_scripts_name_count_before_the_environment(tmp_path):
    annotations = DEMO / "coco" / "annotations" / "instances_val2014.json"
    flags = ["--output_path", "mine.jsonl", "--anno_path", str(annotations)]
    done = run_script(tmp_path, *flags, ANNO_PATH="/nowhere")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out put").exists()
    result = json.loads((tmp_path / "chair.json").read_text())
    assert result["captions"]["file"] == "mine.jsonl"
    assert result["settings"]["ground_truth"]["annotations"] == str(annotations)


@pytest.mark.parametrize(("device", "dtype"), [("cuda", "bfloat16"), ("cpu", "float32")])
def test_the_dtype_on_a_gpu_is_the_checkpoints_own(tmp_path, monkeypatch, capsys, device, dtype):
    """As published. There is no GPU here: what matters is what the model is loaded with."""
    (tmp_path / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def load_complete(load, name, **given):
        raise OSError(f"{given['device_map']} {given['torch_dtype']}")

    monkeypatch.setattr("revisit.transformers.checkpoint.load_complete", load_complete)
    flags = ["--model_path", str(tmp_path), "--data_path", str(DEMO / "coco" / "val2014")]
    flags += ["--output_path", str(tmp_path / "out")]
    flags += ["--device", "cpu"] if device == "cpu" else []
    monkeypatch.setattr(sys, "argv", ["chair_eval_qwenvl.py", *flags])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / SCRIPTS[1]), run_name="__main__")
    assert capsys.readouterr().err.endswith(f": {device} torch.{dtype}\n")
