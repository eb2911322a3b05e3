"""The arguments and the commands of .ci/run; the commands themselves are not run here."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "run"


@pytest.fixture
def run(tmp_path):
    """Call it with arguments; it returns the finished process, and the commands that it ran."""
    noted = tmp_path / "noted"
    for tool in ("python", "nox", "chromium", "apt-get"):
        (tmp_path / tool).write_text(f'#!/bin/sh\necho {tool} "$@" >> "{noted}"\n')
        (tmp_path / tool).chmod(0o755)
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_bytes(SCRIPT.read_bytes())
    (tmp_path / ".ci" / "run").chmod(0o755)
    path = os.pathsep.join([str(tmp_path), "/usr/bin", "/bin"])

    def call(*arguments: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        environment = os.environ | {"PATH": path, "TMPDIR": str(tmp_path)}
        done = subprocess.run(
            [tmp_path / ".ci" / "run", *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        return done, noted.read_text().splitlines() if noted.exists() else []

    return call


def test_without_an_argument_it_runs_the_commands_of_the_readme_tests_pages_and_vllm(run):
    done, commands = run()
    assert done.returncode == 0, done.stderr
    first = ["python -m pip install nox uv", "nox -s demo", "nox", "nox -s docs package"]
    assert commands[1:] == [*first, "nox -s web -- --test", "nox -s vllm"]
    assert commands[0].startswith("python -m venv ")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_says_what_it_does_and_runs_nothing(run, flag):
    done, commands = run(flag)
    assert done.returncode == 0 and done.stdout.startswith("usage: .ci/run") and commands == []


@pytest.mark.parametrize("arguments", [("lint",), ("--fast",), ("",), ("--help", "lint")], ids=str)
def test_any_other_argument_is_an_error_and_runs_nothing(run, arguments):
    done, commands = run(*arguments)
    assert done.returncode == 2 and "takes no argument" in done.stderr and commands == []
