"""The evaluation of COCO captions, on the demo's images and tiny checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "prerequisites" / "demo"
CHECKPOINT = DEMO / "qwen-tiny"


def run_script(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
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
    script = ROOT / "Qwen2.5-VL" / "eval_chair_qwenvl.sh"
    command = ["bash", str(script), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def captions_in(file: Path) -> dict[int, str]:
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return {line["image_id"]: line["caption"] for line in lines}


@torch.no_grad()
def caption_alone(image_id: int, **arguments: object) -> str:
    """What the model says of one image, by Transformers' own steps."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(CHECKPOINT).float().eval()
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    image = {"type": "image"}
    question = {"type": "text", "text": "Please describe this image in detail."}
    conversation = [{"role": "user", "content": [image, question]}]
    text = processor.apply_chat_template(conversation, add_generation_prompt=True)
    picture = Image.open(DEMO / "coco" / "val2014" / f"COCO_val2014_{image_id:012d}.jpg")
    inputs = processor(text=[text], images=[picture], return_tensors="pt")
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"EARLY_EXIT_LAYERS": "0 99"}, "out of range"),
        ({"RELATIVE_TOP": "1.5"}, "relative_top"),
        ({"MODEL_PATH": "/nowhere/at/all"}, "no checkpoint at /nowhere/at/all"),
        ({"ANNO_PATH": str(DEMO)}, "instances_"),
    ],
    ids=str,
)
def test_bad_input_is_named_and_nothing_is_captioned(tmp_path, settings, message):
    done = run_script(tmp_path, **settings)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    captions = tmp_path / "out put" / "captions.jsonl"
    assert not captions.exists() or not captions.read_text()
