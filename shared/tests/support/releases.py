"""Which Transformers the tests run on, and which PyTorch."""

import pytest
import torch
import transformers

RELEASE = tuple(map(int, transformers.__version__.split(".")[:2]))

needs_stance = pytest.mark.skipif(
    not hasattr(getattr(torch, "compiler", None), "set_stance"), reason="needs PyTorch 2.6"
)
