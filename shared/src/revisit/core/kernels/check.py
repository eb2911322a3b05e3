"""Whether the kernels can be used: asked before anything of Triton is imported."""

import importlib.util
import os
import warnings
from typing import Any

import torch
from torch import Tensor

from revisit.config import ReVisiTConfig
from revisit.core.head import Head, LMHead
from revisit.core.step import Step, step

_OLDEST = (3, 2)  # Triton, that of PyTorch 2.6
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_CONFIGS = [
    ReVisiTConfig(alpha=1e-3),
    ReVisiTConfig(alpha=1e-4, divergence="js", selection="max"),
]

# Whether the kernels agreed, by device and kind of head: it runs once a process for each.
_checked: dict[object, bool] = {}


def available(head: Head) -> bool:
    """Whether `Steps` can decode with this LM head where it is.

    False without a word where it cannot be: another head than `LMHead` with a plain weight, a
    device that is no GPU, no Triton or one before 3.2. Where it could be, a small case is compared
    with `core.step`, milliseconds once the kernels are compiled; if it fails, one warning says so.
    """
    if not isinstance(head, LMHead) or type(head.weight) not in (Tensor, torch.nn.Parameter):
        return False
    if head.dtype not in _DTYPES or head.weight.stride(1) != 1 or not _has_triton(head.device):
        return False
    kind = (head.device, head.dtype, head.weight.shape, head.bias is None, head.scale, head.softcap)
    if kind not in _checked:
        _checked[kind] = True  # a second thread does not check again
        try:
            fault = _differs(head)
        except Exception as error:  # a compiler or a driver raises what it likes
            fault = f"{type(error).__name__}: {error}"
        if fault:
            _checked[kind] = False
            warnings.warn(
                f"ReVisiT's kernels are not used on {head.device}, plain PyTorch is: {fault}",
                RuntimeWarning,
                stacklevel=2,
            )
    return _checked[kind]


def _has_triton(device: torch.device) -> bool:
    """On a GPU, or in Triton's interpreter."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != ("cpu" if interpreted else "cuda"):
        return False
    if importlib.util.find_spec("triton") is None:
        return False
    from triton import __version__

    return tuple(map(int, __version__.split(".")[:2])) >= _OLDEST


def _differs(head: LMHead) -> str:
    """Two prompts, one with too little room for its columns, and a plain row: what differs."""
    from revisit.core.kernels.steps import Steps, buffer_bytes

    V, longest = head.size, 64
    columns = 64 * longest * head.dtype.itemsize  # for 64 tokens, 32 of which are new in a step
    room = 2 * longest * (head.width + 64) * head.dtype.itemsize
    budget = buffer_bytes(V, slots=2, rows=3, longest=longest) + room
    steps = Steps(head, slots=2, rows=3, longest=longest, budget=budget, columns=columns)
    plain: Any = {"dtype": torch.float32, "device": "cpu"}  # whatever is set as the default
    random = torch.Generator("cpu").manual_seed(0)
    prompts = []
    for count in (longest, 37):
        states = torch.randn(count, head.width, generator=random, **plain)
        prompts.append(states.to(head.device, head.dtype))
    steps.batch([steps.open(*each) for each in zip(prompts, _CONFIGS, strict=True)])
    tokens = torch.arange(0, V, max(1, V // 60), device="cpu")
    for first in (0, 10):  # some tokens stay, some are new
        logits = torch.full((3, V), -30.0, **plain)
        for row, count in enumerate((20, 45, 45)):
            some = tokens[first : first + count]
            logits[row, some] = torch.randn(len(some), generator=random, **plain)
        logits = logits.to(head.device)
        scores, decided = steps.step(logits), steps.decided(3)
        if not torch.equal(scores[2], logits[2]):
            return "a plain row was changed"
        each = zip(prompts, _CONFIGS, decided.choices.tolist(), strict=False)
        for row, (states, config, choice) in enumerate(each):
            want = step(logits[row], states, head, config)
            near = {torch.float32: 1e-3, torch.float16: 2e-2}.get(head.dtype, 0.1)
            if not torch.equal(scores[row].isfinite(), want.scores.isfinite()):
                return "V_cons differs from that of core.step"
            further = (want.distances[choice] - want.divergence).abs().item()
            # A rounding may decide between vision states that are as near.
            if not further <= near or abs(float(decided.divergences[row] - want.divergence)) > near:
                return f"the chosen vision state is {further:.2g} nats further than the nearest"
            if choice == want.choice and not _close(scores[row], want, near):
                return "scores differ from those of core.step"
    return ""


def _close(scores: Tensor, want: Step, near: float) -> bool:
    kept = want.vocabulary
    return torch.allclose(scores[kept], want.scores[kept], rtol=near, atol=near)
