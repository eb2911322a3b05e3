"""An engine in a process of its own, by `serve_elsewhere.py`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("serve_elsewhere.py")


def elsewhere(model: Path, layers: str, into: Path, *flags: str | Path, seconds: int = 240) -> Any:
    """What another process generates, and how: the JSON that it writes into a folder."""
    out = into / "answers.json"
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    command = [sys.executable, PROGRAM, model, layers, out, *flags]
    run = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=seconds, cwd=into
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-6000:]
    return json.loads(out.read_text())
