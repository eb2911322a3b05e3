"""Do jobs in a family's environment, one after another, in one process.

A job is a JSON object that names a family's evaluation script:

{"script", "arguments"}                        runs it as a program
{"script", "arguments", "trace", "images"}     captions images, (id, file) each, and writes to the
                                               file `trace` what ReVisiT did at each token
{"script", "ways", "rounds", "timing"}         measures what decoders cost: see `measure`
"""

from __future__ import annotations

import json
import runpy
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from captions import QUESTION
from revisit.commands.eval import Family, run_of
from revisit.evaluation.images import open_image


def run_script(script: str, arguments: Sequence[str]) -> None:
    """Run an evaluation script as a program with these arguments; SystemExit where it fails."""
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise SystemExit(f"failed: {script} {' '.join(arguments)}") from end


def trace(job: Mapping[str, Any]) -> None:
    """Write a line for each image: {"image_id", "caption", "steps"}, the tokens in order."""
    family: Family = runpy.run_path(job["script"])["FAMILY"]
    captioner: Any = family.load(run_of(["chair", *job["arguments"]], family))
    found = []
    for start in range(0, len(job["images"]), job["batch_size"]):
        batch = job["images"][start : start + job["batch_size"]]
        images = [open_image(file).image for _, file in batch]
        inputs = captioner.inputs(images, [QUESTION] * len(images))
        output = captioner.model.generate(
            **inputs, **captioner.arguments, return_dict_in_generate=True, revisit_trace=True
        )
        new = output.sequences[:, inputs["input_ids"].shape[1] :]
        for (number, _), tokens, steps in zip(batch, new, output.revisit_trace, strict=True):
            entry = {"image_id": number, "caption": _text(captioner, tokens)}
            pairs = zip(tokens.tolist(), steps, strict=True)
            entry["steps"] = [
                {
                    "text": _text(captioner, [token]),
                    "plain": _text(captioner, [step.plain_token]),
                    "changed": step.changed,
                    "patch": step.patch,
                    "layer": step.layer,
                    "candidates": step.candidates,
                    "divergence": step.divergence,
                }
                for token, step in pairs
            ]
            found.append(entry)
    lines = "".join(json.dumps(entry) + "\n" for entry in found)
    Path(job["trace"]).write_text(lines, encoding="utf-8")


def _text(captioner: Any, tokens: Any) -> str:
    (text,) = captioner.tokenizer.batch_decode([tokens], skip_special_tokens=True)
    return str(text).strip()


def measure(job: Mapping[str, Any]) -> None:
    """Caption the same images by each way in turn, round by round, all with one model.

    "ways": name -> flags; "rounds": the files of each round. A way's seconds, the processor's, and
    its tokens in each round go to the file "timing".
    """
    family: Family = runpy.run_path(job["script"])["FAMILY"]
    ways = {name: run_of(["chair", *flags], family) for name, flags in job["ways"].items()}
    captioner = family.load(next(iter(ways.values())))
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in ways}
    rounds = [[open_image(file).image for file in files] for files in job["rounds"]]
    captioner.answer(rounds[0], [QUESTION] * len(rounds[0]))  # what happens only once
    for number, images in enumerate(rounds):
        # Backwards every second time: what a way does after another one is not always the same.
        for name in list(ways)[:: -1 if number % 2 else 1]:
            captioner.decode(ways[name])
            torch.manual_seed(0)
            began = time.process_time()
            answers = captioner.answer(images, [QUESTION] * len(images))
            took = time.process_time() - began
            found[name].append((took, sum(answer.tokens for answer in answers)))
    Path(job["timing"]).write_text(json.dumps(found), encoding="utf-8")


def main(jobs: Path) -> None:
    """Do the jobs of a file, a JSON list."""
    for job in json.loads(jobs.read_text("utf-8")):
        if "timing" in job:
            measure(job)
        elif "trace" in job:
            trace(job)
        else:
            run_script(job["script"], job["arguments"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
