"""The ways to decode the small Llama: by `revisit.attach`, by `revisit.enable`, and plainly.

Each returns the sequences as lists, or the output object where `generate` returns one.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

import revisit
from revisit import ReVisiTConfig
from small_llama import PAD, batch

CONFIG = ReVisiTConfig(layers="all", alpha=0.02)
SETTINGS = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD}


def attached(model, prompts, config=CONFIG, **arguments):
    with revisit.attach(model, config):
        return plain(model, prompts, **arguments)


def enabled(model, prompts, config=CONFIG, **arguments):
    with enabling(model, config):
        return plain(model, prompts, **arguments)


def plain(model, prompts, **arguments):
    """Without ReVisiT, where the model is not enabled."""
    output = model.generate(**batch(prompts, model.device), **{**SETTINGS, **arguments})
    return output.tolist() if isinstance(output, torch.Tensor) else output


@contextmanager
def enabling(model, config=CONFIG):
    revisit.enable(model, config)
    try:
        yield
    finally:
        revisit.disable(model)


both_routes = pytest.mark.parametrize(
    "route", [attached, enabled], ids=lambda route: route.__name__
)


class Streamer(BaseStreamer):
    """Keeps the tokens that it receives, and "end"."""

    def __init__(self):
        self.received = []

    def put(self, value):
        self.received += value.flatten().tolist()

    def end(self):
        self.received.append("end")


def in_another_thread(step):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(step).result()
