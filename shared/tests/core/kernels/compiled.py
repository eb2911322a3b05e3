"""Compile the kernels for a GPU that is not here, as a step launches them, and say what they take.

    python shared/tests/core/kernels/compiled.py cuda:90

prints for each kernel: its name, registers, bytes spilled, bytes of shared memory.
Triton's interpreter forgives what a compiler refuses: a type that changes in a branch, for one.
Buffers are on the device "meta" and hold nothing; the launch itself is left out.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from revisit.config import ReVisiTConfig
from revisit.core.head import LMHead
from revisit.core.kernels.steps import Steps


def cases() -> list[tuple[LMHead, int, int, bool]]:
    """Heads, vision states, rows, and whether tokens beyond V_cons are filled."""

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    llava = LMHead(empty(32_000, 4096, dtype=torch.float16))
    qwen, bias = empty(152_064, 3584), empty(152_064)
    return [
        (llava, 576, 1, False),
        (LMHead(qwen), 16_800, 32, True),
        (LMHead(qwen, bias, 0.5, 30.0), 1200, 8, True),
    ]


def compiled(target: str) -> list[tuple[str, Any]]:
    """Names of kernels and what the compiler made of them."""
    backend, architecture = target.split(":")
    gpu = GPUTarget("hip", architecture, 64)
    if backend == "cuda":
        gpu = GPUTarget("cuda", int(architecture), 32)
    here = SimpleNamespace(
        get_current_target=lambda: gpu,
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )
    triton.runtime.driver.set_active(here)
    made: list[tuple[str, Any]] = []
    run = triton.JITFunction.run

    def compile_alone(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        made.append((self.__name__, run(self, *args, grid=grid, warmup=True, **kwargs)))

    triton.JITFunction.run = compile_alone
    for head, longest, rows, fill in cases():
        steps = Steps(head, slots=rows, rows=rows, longest=longest, budget=2**35, fill=fill)
        slot = steps.open(head.weight[:longest], ReVisiTConfig())
        steps.batch([slot] * rows)
        steps.step(torch.empty((rows, head.size), dtype=head.dtype, device="meta"))
    return made


def taken(target: str, made: Any) -> tuple[int, int]:
    """Registers of a kernel, and the bytes of them that are spilled to memory."""
    if "ptx" in made.asm:
        number = target.split(":")[1]
        text = assembled(made.asm["ptx"], f"sm_{number}{'a' if number >= '90' else ''}")
        patterns = r"Used (\d+) registers", r"(\d+) bytes spill stores"
    else:
        text = made.asm["amdgcn"]
        # Scalar registers spill into vector registers, and only those into memory.
        patterns = r"\.vgpr_count:\s+(\d+)", r"\.private_segment_fixed_size:\s+(\d+)"
    registers, spilled = (int(re.search(pattern, text)[1]) for pattern in patterns)
    return registers, spilled


def assembled(ptx: str, architecture: str) -> str:
    """What NVIDIA's assembler prints for a kernel; Triton has one for older GPUs, one for newer."""
    folder = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        for assembler in sorted(folder.glob("ptxas*")):
            command = [assembler, "-v", f"-arch={architecture}", file.name, "-o", "/dev/null"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if not done.returncode:
                return done.stderr
    raise RuntimeError(done.stderr)


if __name__ == "__main__":
    for name, made in compiled(sys.argv[1]):
        print(name, *taken(sys.argv[1], made), made.metadata.shared, flush=True)
