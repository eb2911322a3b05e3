"""A captioner without a model, for processes that tests start, and ways for them to end."""

import os
import time
from pathlib import Path

import torch

from forked import die
from revisit.commands.eval import Family, main
from revisit.evaluation import shards
from revisit.evaluation.captioner import Answer


class Sizes:
    """Answers with an image's size and a random number; may be killed at a batch."""

    settings = {"prompt": "v1"}  # noqa: RUF012

    def __init__(self, run):
        self.left = int(os.environ.get("BATCHES", 10**9))
        Path(os.environ["STARTED"]).touch()
        while not Path(os.environ.get("WAITS_FOR", "/")).exists():
            time.sleep(0.02)

    def answer(self, images, questions):
        self.left -= 1
        if self.left < 0:
            die()
        draw = torch.rand(len(images), 1).tolist()
        pairs = zip(images, draw, strict=True)
        return [Answer(f"{image.size} {number}", 3) for image, number in pairs]


def caption(argv: list[str]) -> int:
    """Caption as a family's script does."""
    return main(["chair", *argv], Family(Sizes, str))


def caption_without_patience(argv: list[str]) -> int:
    """The same, but hardly waits for another process that writes."""
    shards._PATIENCE_S = 0.2
    return caption(argv)


def caption_and_die_at_the_merge(argv: list[str]) -> int:
    """The same, but killed when it writes the merged file."""
    shards.write_whole = die
    return caption(argv)


def caption_and_die_at_the_removal_of_shards(argv: list[str]) -> int:
    """The same, but killed when it removes a file."""
    Path.unlink = die
    return caption(argv)
