"""Fixtures of the small Llama and of the kernels; and the files that the forks leave out.

The forks' releases lack most families, so what is tried on tiny ones is not collected there.
"""

import inspect

import pytest
import torch
from transformers import GenerationMixin

from routes import attached, plain
from small_llama import PROMPTS, make_model

OF_FAMILIES = [
    "test_attention.py",
    "test_check.py",
    "test_contrastive.py",
    "test_decoders.py",
    "test_families.py",
    "test_image_regions.py",
    "test_layer_logits.py",
    "test_lm_heads.py",
]
newer = "custom_generate" in inspect.signature(GenerationMixin.generate).parameters
collect_ignore = [] if newer else OF_FAMILIES


@pytest.fixture(scope="module")
def model():
    """A small Llama, which each test leaves as it was."""
    return make_model()


@pytest.fixture(scope="module")
def expected(model):
    """The sequences of PROMPTS with ReVisiT."""
    return attached(model, PROMPTS)


@pytest.fixture(scope="module")
def greedy(model):
    """The sequences of PROMPTS without it."""
    return plain(model, PROMPTS)


@pytest.fixture
def kernels_allowed(monkeypatch):
    """Kernels decode wherever the LM head is, on a CPU in Triton's interpreter.

    The value lists the `Kernels` that were made.
    """
    from revisit.core.kernels import available
    from revisit.transformers import processor

    triton = pytest.importorskip("triton", reason="Triton is not here: there are no kernels")
    if not torch.cuda.is_available():
        if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
            pytest.skip("the interpreter of this Triton cannot run here")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    ran = []

    class Listed(processor.Kernels):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            ran.append(self)

    monkeypatch.setattr(processor, "kernels_run", available)
    monkeypatch.setattr(processor, "Kernels", Listed)
    return ran
