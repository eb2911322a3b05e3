"""Evaluations of lmms-eval with the demo's Qwen2.5-VL: their arguments and their files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKPOINT = Path(__file__).parents[3] / "prerequisites" / "demo" / "qwen-tiny"
MODEL = f"pretrained={CHECKPOINT},device_map=cpu,min_pixels=784,max_pixels=12544"
TASKS = "demo_captions,demo_questions"


def arguments(folder, output, settings="", *more, batch=4, tasks=TASKS, model="qwen2_5_vl_float32"):
    """Arguments of lmms-eval for tasks in a folder; `settings` are further model args."""
    model_args = ",".join(filter(None, [MODEL, settings]))
    return [
        *("--model", model, "--model_args", model_args, "--device", "cpu"),
        *("--tasks", tasks, "--include_path", str(folder), "--batch_size", str(batch)),
        *("--output_path", str(output), "--log_samples", *more),
    ]


@dataclass
class Evaluation:
    """The results that lmms-eval wrote, and the answers by task."""

    results: dict[str, Any]
    answers: dict[str, list[str]]

    @classmethod
    def read(cls, output):
        (file,) = output.rglob("*_results.json")
        answers = {}
        for path in output.rglob("*_samples_*.jsonl"):
            rows = sorted(
                map(json.loads, path.read_text().splitlines()), key=lambda row: row["doc_id"]
            )
            answers[path.stem.split("_samples_")[1]] = [row["filtered_resps"] for row in rows]
        return cls(json.loads(file.read_text()), answers)
