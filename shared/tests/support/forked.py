"""Processes that start at once: forked from a server that has only imported.

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
    """A process that runs `work`, and its output.

    `work`, a function of a module and not of a test, and its arguments are pickled. Its value is
    the exit status.
    """

    def __init__(
        self, folder: Path, environment: dict[str, str], work: Callable[..., int], *arguments: Any
    ) -> None:
        self.files = [folder / f"{uuid.uuid4()}.{name}" for name in ("out", "err")]
        self.process = SERVER.Process(target=_run, args=(self.files, environment, work, arguments))
        self.process.start()

    def wait(self) -> tuple[int, str, str]:
        """The exit status, stdout and stderr."""
        self.process.join(300)
        assert not self.process.is_alive(), [file.read_text() for file in self.files]
        return (self.process.exitcode, *(file.read_text() for file in self.files))


def place(rank: int, count: int) -> dict[str, str]:
    """The environment that a launcher sets for one process of several."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}


def die(*_, **__):
    """As the system kills: at once, without a word."""
    os.kill(os.getpid(), signal.SIGKILL)


def _run(files: list[Path], environment: dict[str, str], work, arguments) -> None:
    os.environ.update(environment)
    sys.stdout, sys.stderr = (file.open("w") for file in files)
    sys.exit(work(*arguments))
