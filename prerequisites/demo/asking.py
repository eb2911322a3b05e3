"""What the demo asks of a model, in one process: load it once, do a list of jobs.

A family's program (``ask_llava.py``, ``ask_qwen.py``) says how its model answers questions about
images. A job is a JSON object:

{"script": PATH, "arguments": [...]}     runs the family's evaluation script as a program
{"questions": PATH, "images": FOLDER, "out": PATH, "batch_size": N, "decoding": {...}}
                                         answers POPE's questions; with "revisit_trace" in
                                         "decoding" each answer says what ReVisiT did at each token
{"timing": PATH, ...}                    measures what decoders cost: see ``timing.py``
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from tqdm import tqdm

from revisit.evaluation.images import open_image
from timing import measure


class Asker(Protocol):
    """A loaded model of one of the families."""

    def answer(
        self, images: list[Image.Image], questions: list[str], **decoding: Any
    ) -> tuple[Any, Any]:
        """What the model generates for each image and its question: the fork's output and, of it,
        the answers' tokens (B, T). ``decoding`` is for the fork's ``generate``."""

    def text(self, tokens: Any) -> str:
        """The text of some tokens."""


def answer_questions(asker: Asker, job: dict[str, Any]) -> None:
    """Answer each question of the job's file; an answer is a line of the file ``out``."""
    lines = Path(job["questions"]).read_text("utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    found: list[dict[str, Any]] = []
    for start in tqdm(range(0, len(entries), job["batch_size"]), desc=job["out"], unit="batch"):
        batch = entries[start : start + job["batch_size"]]
        images = [open_image(Path(job["images"], entry["image"])).image for entry in batch]
        asked = [entry["text"] for entry in batch]
        output, tokens = asker.answer(images, asked, **job["decoding"])
        for row, entry in enumerate(batch):
            answer = {"question_id": entry["question_id"], "answer": asker.text(tokens[row])}
            if "revisit_trace" in job["decoding"]:
                steps = zip(tokens[row].tolist(), output.revisit_trace[row], strict=True)
                answer["steps"] = [_shown(asker, token, step) for token, step in steps]
            found.append(answer)
    text = "".join(json.dumps(answer) + "\n" for answer in found)
    Path(job["out"]).write_text(text, encoding="utf-8")


def _shown(asker: Asker, token: int, step: Any) -> dict[str, Any]:
    """A step of the trace, as far as the demo shows it."""
    return {
        "text": asker.text([token]),
        "plain": asker.text([step.plain_token]),
        "changed": step.changed,
        "patch": step.patch,
        "layer": step.layer,
        "candidates": step.candidates,
        "divergence": step.divergence,
    }


def run_script(script: str, arguments: list[str]) -> None:
    """Run an evaluation script as a program with these arguments; SystemExit where it fails."""
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise SystemExit(f"failed: {script} {' '.join(arguments)}") from end


def main(load: Callable[[str], Asker]) -> None:
    """Do the jobs; ``load(checkpoint)`` is called if one of them asks questions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="folder of the model")
    parser.add_argument("jobs", type=Path, help="file with a JSON list of jobs")
    args = parser.parse_args()
    asker = None
    for job in json.loads(args.jobs.read_text("utf-8")):
        if "timing" in job:
            measure(job)
        elif "script" in job:
            run_script(job["script"], job["arguments"])
        else:
            asker = asker or load(args.checkpoint)
            answer_questions(asker, job)
