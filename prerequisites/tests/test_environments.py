"""The conda files, and how nox makes an environment with each tool of conda's kind."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = {
    "llava": ("revisit_llava", ROOT / "LLaVA1.5" / "ReVisiT_LLaVA.yaml"),
    "qwen": ("revisit_qwen", ROOT / "Qwen2.5-VL" / "ReVisiT_Qwen.yaml"),
}
TOOLS = ("mamba", "conda", "micromamba")
BACKEND = "NOX_DEFAULT_VENV_BACKEND"
PIN = re.compile(r"([A-Za-z0-9_.-]+)==(\S+?)(; .*)?")

by_family = pytest.mark.parametrize("family", FAMILIES)


def requirements(family: str) -> list[str]:
    lines = (FAMILIES[family][1].parent / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@by_family
def test_conda_makes_the_environment_of_the_instructions_with_the_pins_that_nox_reads(family):
    name, path = FAMILIES[family]
    content = yaml.safe_load(path.read_text())
    assert set(content) == {"name", "channels", "dependencies"} and content["name"] == name
    assert content["channels"] == ["conda-forge"]  # conda takes any other word for a channel
    (pip,) = [entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-r requirements.txt"]  # conda reads it relative to the file: the family's list
    assert f'"{path.parent.name}/requirements.txt"' in (ROOT / "noxfile.py").read_text()
    instructions = (ROOT / "docs" / "reproducing.md").read_text()
    assert f"conda env create -f {path.relative_to(ROOT)}" in instructions
    assert f"conda activate {name}" in instructions


@by_family
def test_its_conda_packages_are_specs_that_conda_reads(family):
    rattler = pytest.importorskip("rattler")
    dependencies = yaml.safe_load(FAMILIES[family][1].read_text())["dependencies"]
    parsed = [rattler.MatchSpec(spec) for spec in dependencies if isinstance(spec, str)]
    specs = {spec.name.normalized: spec for spec in parsed}
    assert set(specs) == {"python", "pip"}  # all else is pip's, from the one list
    build = {"build": rattler.BuildString("0"), "build_number": 0, "subdir": "linux-64"}
    for version, fits in (("3.11.9", True), ("3.12.0", False), ("3.10.1", False)):
        record = rattler.PackageRecord(name="python", version=version, **build)
        assert specs["python"].matches(record) == fits


@by_family
def test_every_requirement_is_pinned_once(family):
    pins = [PIN.fullmatch(line) for line in requirements(family)]
    assert all(pins)
    names = [re.sub(r"[-_.]+", "-", pin[1]).lower() for pin in pins]
    assert len(names) == len(set(names)) and {"torch", "huggingface-hub", "nltk"} <= set(names)


@pytest.fixture
def scratch(tmp_path):
    """A copy of the files that nox needs."""
    (tmp_path / "shared").mkdir()
    for file in ("noxfile.py", "shared/pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path / file)
    unneeded = shutil.ignore_patterns("data", "tests", "__pycache__")
    shutil.copytree(ROOT / "LLaVA1.5", tmp_path / "LLaVA1.5", ignore=unneeded)
    return tmp_path


def nox(folder: Path, *path: Path, flags: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    kept = [name for name in os.environ if name == BACKEND or "NOX" not in name]
    variables = {name: os.environ[name] for name in kept}
    variables["PATH"] = os.pathsep.join(map(str, path))
    command = [sys.executable, "-m", "nox", "-s", "llava", "--install-only", *flags]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)


def failing_tool(folder: Path, name: str, command: str = "") -> Path:
    """A folder with one program, which runs a command and fails."""
    tools = folder / "tools"
    tools.mkdir()
    (tools / name).write_text(f"#!/bin/sh\n{command}\nexit 1\n")
    (tools / name).chmod(0o755)
    return tools


@pytest.mark.parametrize("tool", TOOLS)
def test_nox_asks_the_tool_that_is_there_for_python_3_11(scratch, tool):
    """There is no channel here: the tool records its arguments, and fails."""
    pytest.importorskip("nox")
    asked = scratch / "asked"
    tools = failing_tool(scratch, tool, f'printf "%s\\n" "$@" >> "{asked}"')
    run = nox(scratch, tools, Path("/usr/bin"), Path("/bin"))
    assert run.returncode != 0 and f"Creating {tool} env" in run.stderr, run.stderr
    environment = str(scratch / ".nox" / "llava")
    arguments = asked.read_text().split("\n")
    assert arguments[:4] == ["create", "--yes", "--prefix", environment]
    assert {"pip", "python=3.11"} <= set(arguments)
    assert {"--override-channels", "--channel=conda-forge"} <= set(arguments)


@pytest.mark.parametrize("asked", ["flag", "variable"])
def test_conda_s_channel_is_not_given_to_another_tool_that_is_asked_for(
    scratch, asked, monkeypatch
):
    pytest.importorskip("nox")
    tools = failing_tool(scratch, "conda")
    (scratch / "LLaVA1.5" / "requirements.txt").write_text("nothing is installed\n")
    flags = ["--default-venv-backend", "virtualenv"] if asked == "flag" else []
    if asked == "variable":
        monkeypatch.setenv(BACKEND, "virtualenv")
    run = nox(scratch, tools, Path("/usr/bin"), Path("/bin"), flags=flags)
    assert "Creating virtual environment (virtualenv)" in run.stderr, run.stderr
    assert "requirements.txt" in run.stderr and "channel" not in run.stderr


@pytest.mark.skipif(
    os.environ.get("REVISIT_TEST_CONDA") != "1",
    reason="needs conda and a channel: set REVISIT_TEST_CONDA=1",
)
@by_family
def test_conda_makes_the_environment(family, tmp_path):
    """The real thing: minutes, and 5 GB. The tool is the first of `TOOLS` on the PATH."""
    tool = next((tool for tool in TOOLS if shutil.which(tool)), None)
    assert tool, f"REVISIT_TEST_CONDA=1 needs one of {', '.join(TOOLS)} on the PATH"
    make = [tool, "env", "create", "--yes", "--prefix", tmp_path / "made"]
    subprocess.run([*make, "-f", FAMILIES[family][1]], check=True)
    python = tmp_path / "made" / "bin" / "python"
    listed = [python, "-m", "pip", "list", "--format=json"]
    installed = {
        re.sub(r"[-_.]+", "-", package["name"]).lower(): package["version"]
        for package in json.loads(subprocess.check_output(listed))
    }
    for line in requirements(family):
        name, version, marker = PIN.fullmatch(line).groups()
        if not marker or sys.platform == "linux":
            assert installed[re.sub(r"[-_.]+", "-", name).lower()].partition("+")[0] == version
    assert subprocess.check_output([python, "-V"], text=True).startswith("Python 3.11.")
