"""vLLM's server with ReVisiT, in other processes.

As a program it is vLLM's server, in whose worker a step with a seed of `FAILING_SEED` fails.
"""

import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server_process import free_port, server_process

FAILING_SEED = 404


@contextmanager
def served(folder: Path, log: Path, layers: str = "all") -> Iterator[str]:
    """The address of a server of a model, called "tiny", for as long as it is needed."""
    port = free_port()
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
    command = [sys.executable, __file__, "--enforce-eager", "--skip-mm-profiling", *words]
    with server_process(command, port, log, {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}) as address:
        yield address


if __name__ in ("__main__", "__mp_main__"):  # the server, and the processes that it starts
    from revisit.vllm import pytorch_steps

    original = pytorch_steps.refine

    def refine(logits, sessions):
        if any(session and session.config.seed == FAILING_SEED for session in sessions):
            raise MemoryError("no room")
        return original(logits, sessions)

    pytorch_steps.refine = refine

if __name__ == "__main__":
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
