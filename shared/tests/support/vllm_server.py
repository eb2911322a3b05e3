"""vLLM's server with ReVisiT, in processes of its own.

As a program it is vLLM's server, in whose worker a step with a seed of `FAILING_SEED` fails.
"""

import os
import runpy
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FAILING_SEED = 404
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
    with log.open("w") as lines:
        process = subprocess.Popen(
            [sys.executable, __file__, "--enforce-eager", "--skip-mm-profiling", *words],
            env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
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


if __name__ in ("__main__", "__mp_main__"):  # the server, and the processes that it starts
    from revisit.vllm import plain

    original = plain.refine

    def refine(logits, sessions):
        if any(session and session.config.seed == FAILING_SEED for session in sessions):
            raise MemoryError("no room")
        return original(logits, sessions)

    plain.refine = refine

if __name__ == "__main__":
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
