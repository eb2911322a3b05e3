"""What decoders cost: the same images by each of them in turn, round by round.

A speed is a ratio, and a machine is not equally fast from one minute to the next: what is told is
the median, over the rounds, of a decoder's seconds a token over those that the first one took in
the same round. The seconds are the processor's, on one thread: what else runs takes none of them.
"""

from __future__ import annotations

import json
import runpy
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from revisit.commands.eval import Family, runs_of
from revisit.commands.eval_flags import parse
from revisit.evaluation.benchmarks.chair import Chair
from revisit.evaluation.images import open_image
from revisit.evaluation.run import Run


def measure(job: Mapping[str, Any]) -> None:
    """Do a job of ``asking.py``: {"script": PATH, "ways": {NAME: FLAGS},
    "rounds": [[IMAGE, ...], ...], "timing": OUT}.

    The script is a family's, the flags are its; all ways have the same model. OUT gets, for each
    way, its seconds and tokens of each round.
    """
    import torch

    script = runpy.run_path(job["script"])
    family: Family = script["FAMILY"]
    ways: dict[str, Run] = {}
    for name, flags in job["ways"].items():
        (ways[name],) = runs_of(parse(["chair", *flags], "timing", family.layers), family)
    first = next(iter(ways.values()))
    captioner = family.load(first)
    question = Chair(data_path=Path()).question
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in ways}
    rounds = [[open_image(file).image for file in files] for files in job["rounds"]]
    captioner.answer(rounds[0], [question] * len(rounds[0]))  # what happens only once
    for number, images in enumerate(rounds):
        # Backwards every second time: what a way does after another one is not always the same.
        for name in list(ways)[:: -1 if number % 2 else 1]:
            captioner.decode(ways[name])
            torch.manual_seed(0)
            began = time.process_time()
            answers = captioner.answer(images, [question] * len(images))
            took = time.process_time() - began
            found[name].append((took, sum(answer.tokens for answer in answers)))
    Path(job["timing"]).write_text(json.dumps(found), encoding="utf-8")


def relative(found: Mapping[str, list[tuple[float, int]]]) -> dict[str, float]:
    """Of each way the median over the rounds; the first way is what it is held against."""
    costs = {name: [took / tokens for took, tokens in rounds] for name, rounds in found.items()}
    first = next(iter(costs.values()))
    return {
        name: median(mine / theirs for mine, theirs in zip(own, first, strict=True))
        for name, own in costs.items()
    }
