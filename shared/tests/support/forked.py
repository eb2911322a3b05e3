"""Processes that tests start, there at once: forked from a server that has only imported.

A fork of the tests' own process can hang, since PyTorch's threads do not survive it.
"""

import multiprocessing
import os
import signal
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "transformers", "revisit.commands.eval"])


class Started:
    """A process of its own that works, and what it says.

    `work` and what it is given are sent there by name: a function of a module, not of a test. Its
    value is the exit status.
    """

    def __init__(
        self, folder: Path, environment: dict[str, str], work: Callable[..., int], *given: Any
    ) -> None:
        self.files = [folder / f"{uuid.uuid4()}.{name}" for name in ("out", "err")]
        self.process = SERVER.Process(target=_run, args=(self.files, environment, work, given))
        self.process.start()

    def wait(self) -> tuple[int, str, str]:
        """The exit status, and what it said and complained of."""
        self.process.join(300)
        assert not self.process.is_alive(), [file.read_text() for file in self.files]
        return (self.process.exitcode, *(file.read_text() for file in self.files))


def place(rank: int, count: int) -> dict[str, str]:
    """What a launcher sets for one process of several."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}


def die(*_, **__):
    """As the system kills: at once, without a word."""
    os.kill(os.getpid(), signal.SIGKILL)


def _run(files: list[Path], environment: dict[str, str], work, given) -> None:
    os.environ.update(environment)
    sys.stdout, sys.stderr = (file.open("w") for file in files)
    sys.exit(work(*given))
