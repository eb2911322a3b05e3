"""What a process may set for PyTorch, which must change no token."""

from contextlib import contextmanager

import torch


@contextmanager
def setting(change, value, back):
    change(value)
    try:
        yield
    finally:
        change(back)


SETTINGS = {
    "deterministic algorithms": lambda: setting(torch.use_deterministic_algorithms, True, False),
    "mixed precision": lambda: torch.autocast("cpu", torch.bfloat16),
    "mixed precision, no cache": lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
    **{
        f"default {dtype}": lambda dtype=dtype: setting(
            torch.set_default_dtype, dtype, torch.float32
        )
        for dtype in (torch.float16, torch.bfloat16, torch.float64)
    },
    "a default device": lambda: torch.device("meta"),  # what is made there is nowhere
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "gradients": torch.enable_grad,
    "two threads": lambda: setting(torch.set_num_threads, 2, torch.get_num_threads()),
}
