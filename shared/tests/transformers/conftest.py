"""The forks' releases lack most families: what is tried on tiny ones is left out there.

And the kernels, which `generate` takes on a GPU alone, for tests that ask for them elsewhere.
"""

import inspect

import pytest
import torch
from transformers import GenerationMixin

OF_FAMILIES = [
    "test_check.py",
    "test_decoders.py",
    "test_families.py",
    "test_image_regions.py",
    "test_lm_heads.py",
]
newer = "custom_generate" in inspect.signature(GenerationMixin.generate).parameters
collect_ignore = [] if newer else OF_FAMILIES


@pytest.fixture
def kernels_allowed(monkeypatch):
    """Kernels decode wherever the LM head is, on a CPU in Triton's interpreter: those that did."""
    from revisit.core.kernels import available
    from revisit.transformers import processor

    triton = pytest.importorskip("triton", reason="Triton is not here: there are no kernels")
    if not torch.cuda.is_available():
        if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
            pytest.skip("the interpreter of this Triton cannot run here")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    ran = []

    class Listed(processor.Kernels):
        def __init__(self, *given):
            super().__init__(*given)
            ran.append(self)

    monkeypatch.setattr(processor, "kernels_run", available)
    monkeypatch.setattr(processor, "Kernels", Listed)
    return ran
