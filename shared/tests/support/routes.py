"""The ways to decode the small Llama: by `revisit.attach`, by `revisit.enable`, and plainly."""

from contextlib import contextmanager

import pytest

import revisit
from revisit import ReVisiTConfig
from small_llama import PAD, batch

CONFIG = ReVisiTConfig(layers="all", alpha=0.02)
SETTINGS = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD}


def attached(model, prompts, config=CONFIG, **arguments):
    """Sequences by `revisit.attach`."""
    with revisit.attach(model, config):
        return plain(model, prompts, **arguments)


def enabled(model, prompts, config=CONFIG, **arguments):
    """Sequences by `revisit.enable`."""
    with enabling(model, config):
        return plain(model, prompts, **arguments)


def plain(model, prompts, **arguments):
    """Sequences without ReVisiT, where the model is not enabled."""
    return model.generate(**batch(prompts), **{**SETTINGS, **arguments})


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
