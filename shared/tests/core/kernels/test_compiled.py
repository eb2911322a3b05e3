"""The kernels compile for GPUs that are not here, as a step launches them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is not here: there is nothing to compile")
VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
# Shared memory that a program may have, bytes: A100, H100, MI300.
TARGETS = {"cuda:80": 163 * 1024, "cuda:90": 227 * 1024, "hip:gfx942": 64 * 1024}


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_and_spills_nothing(target):
    if VERSION < (3, 2) or (VERSION == (3, 2) and target.startswith("hip")):
        pytest.skip("this Triton cannot compile for it")
    script = Path(__file__).with_name("compiled.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, script, target],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    # Three cases of six kernels; one computes all columns of a prompt in advance.
    assert len(lines) == 3 * 6 + 1 and len({name for name, *_ in lines}) == 6
    for name, _registers, spilled, shared in lines:
        # Triton 3.2 has its assembler spill one register of `count_tokens` for an A100.
        assert int(spilled) <= (4 if VERSION == (3, 2) else 0), name
        assert int(shared) <= TARGETS[target]
