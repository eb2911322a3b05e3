"""A server of vLLM on this machine, in processes of its own."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS = 240


@contextmanager
def served(folder: Path, log: Path, layers: str = "all") -> Iterator[str]:
    """The address of a server of a model, called "tiny", for as long as it is needed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = {
        "--model": folder,
        "--served-model-name": "tiny",
        "--host": "127.0.0.1",
        "--port": port,
        "--dtype": "float32",
        "--max-model-len": 512,
        "--kv-cache-memory-bytes": 64 * 2**20,
        "--limit-mm-per-prompt": '{"image": 2}',
        "--logits-processors": "revisit.vllm:ReVisiT",
        "--additional-config": f'{{"revisit": {{"layers": "{layers}"}}}}',
    }
    words = [str(word) for pair in flags.items() for word in pair]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    program = Path(__file__).with_name("serve_and_fail.py")
    with log.open("w") as lines:
        process = subprocess.Popen(
            [sys.executable, program, "--enforce-eager", "--skip-mm-profiling", *words],
            env=environment,
            stdout=lines,
            stderr=subprocess.STDOUT,
        )
        address = f"http://127.0.0.1:{port}"
        try:
            _wait(address, process, log)
            yield address
        finally:
            process.terminate()
            process.wait(30)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-6000:]
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5)
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-6000:])
