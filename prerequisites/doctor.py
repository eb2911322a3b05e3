"""List what the paper's setting needs, what of it is missing, and how to get it."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import download_data
import download_from_huggingface

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Family:
    """One of the two models. `gpu`, `disk`: GB that it takes."""

    title: str
    folder: str
    session: str
    conda: str
    gpu: int
    disk: float


FAMILIES = (
    Family("LLaVA-1.5", "LLaVA1.5", "llava", "revisit_llava", 16, 5),
    Family("Qwen2.5-VL", "Qwen2.5-VL", "qwen", "revisit_qwen", 20, 6),
)
"""GPU: the weights in 16 bits (14 and 17 GB), and what a caption adds."""


@dataclass(frozen=True)
class Finding:
    """One thing that is needed. `missing`: what is wrong with it ("" if nothing); `remedy`: the
    command that puts it right; `disk`: GB that it then takes."""

    name: str
    found: str
    missing: str = ""
    remedy: str = ""
    disk: float = 0.0


def examine() -> Iterator[tuple[str, list[Finding]]]:
    """The findings for each family, and for both."""
    pythons = []
    for family in FAMILIES:
        python = find_python(family)
        state = ask(python, family) if python else {}
        if python and not state.get("error"):
            pythons.append(python)
        environment, fork = _environment(family, python, state), _fork(family, python, state)
        yield family.title, [environment, fork, _checkpoint(family, python), _gpu(family, state)]
    coco = _data("coco", "COCO val2014", "bash prerequisites/download_coco.sh", 14.0)
    yield "Both", [coco, _nltk(pythons)]


def find_python(family: Family) -> Path | None:
    """The Python of the family's environment: the activated one, nox's, or conda's by its name."""
    nox = ROOT / ".nox" / family.session
    active = [Path(os.environ.get(name, "")) for name in ("CONDA_PREFIX", "VIRTUAL_ENV")]
    known = Path.home() / ".conda" / "environments.txt"  # where conda and mamba list theirs
    conda = [Path(line) for line in known.read_text().splitlines()] if known.is_file() else []
    prefixes = [prefix for prefix in active if prefix.name == family.conda or prefix == nox]
    prefixes += [nox, *(prefix for prefix in conda if prefix.name == family.conda)]
    pythons = (prefix / "bin" / "python" for prefix in prefixes)
    return next((python for python in pythons if python.exists()), None)


def ask(python: Path, family: Family) -> dict[str, Any]:
    """An environment's versions, the folder of its Transformers, and its GPUs."""
    command = [str(python), "-c", _PROBE, *pins(family), *packages(family)]
    # Python imports from the current folder first: this one has no packages.
    run = subprocess.run(command, cwd=python.parents[1], capture_output=True, text=True)
    try:
        state: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
        return state
    except (IndexError, ValueError):
        return {"error": (run.stderr.strip().splitlines() or ["it says nothing"])[-1]}


# An editable package has two distributions, pip's and the egg-info of its sources; the import
# system knows which folder is imported.
_PROBE = """
import importlib.metadata, importlib.util, json, sys
state = {"python": sys.version.split()[0], "versions": {}, "transformers": "", "gpus": []}
for name in sys.argv[1:]:
    try:
        state["versions"][name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
spec = importlib.util.find_spec("transformers")
if spec and spec.submodule_search_locations:
    state["transformers"] = list(spec.submodule_search_locations)[0]
try:
    import torch
    state["gpus"] = [[properties.name, properties.total_memory]
                     for properties in map(torch.cuda.get_device_properties,
                                           range(torch.cuda.device_count()))]
except Exception as error:
    state["torch"] = f"{type(error).__name__}: {error}"
print(json.dumps(state))
"""


def pins(family: Family) -> dict[str, str]:
    """Package -> version, as the family's requirements.txt pins it on every system."""
    lines = (ROOT / family.folder / "requirements.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and ";" not in line)
    return {name.strip().lower().replace("_", "-"): version.strip() for name, version in pairs}


def packages(family: Family) -> list[str]:
    """The packages that are installed from this repository."""
    files = [ROOT / folder / "pyproject.toml" for folder in ("shared", family.folder)]
    names = [tomllib.loads(file.read_text())["project"]["name"] for file in files if file.exists()]
    return [*names, "transformers"]


def _environment(family: Family, python: Path | None, state: dict[str, Any]) -> Finding:
    build = f"python -m nox -s {family.session} --install-only"
    if python is None:
        by_hand = f"conda env create -f {family.folder}/{_yaml(family)}: docs/reproducing.md"
        missing = f"neither .nox/{family.session} nor a conda environment {family.conda}"
        return Finding("environment", "", missing, f"{build}   (or {by_hand})", family.disk)
    prefix = python.parents[1]
    remedy = f"{build} --reuse-venv=never"  # otherwise nox keeps the environment as it is
    if _is_conda(family, python):
        wanted = f"-r {family.folder}/requirements.txt -e 'shared[evaluation]'"
        remedy = f"conda activate {family.conda} && pip install {wanted}"
    versions = state.get("versions", {})
    wrong = [
        f"{name} is {versions.get(name, 'missing')}, not {version}"
        for name, version in pins(family).items()
        if versions.get(name) != version
    ]
    wrong += [f"{name} is not installed" for name in packages(family) if name not in versions]
    if state.get("torch"):
        wrong.append(state["torch"])
    trouble = state.get("error") or "; ".join(wrong[:4] + ["..."] * (len(wrong) > 4))
    found = f"{_short(prefix)}: Python {state.get('python')}, torch {versions.get('torch')}"
    return Finding("environment", found, f"{_short(prefix)}: {trouble}" if trouble else "", remedy)


def _fork(family: Family, python: Path | None, state: dict[str, Any]) -> Finding:
    # It needs the standard library only: any Python can run it from the sources.
    check = subprocess.run(
        [sys.executable, "-m", "revisit.forks.make", family.folder, "--check"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "shared" / "src")},
        capture_output=True,
        text=True,
    )
    output = (check.stdout or check.stderr).strip()
    tree = output.partition(": ")[0]
    is_package = (ROOT / family.folder / "pyproject.toml").exists()
    install = f"python -m pip install -e {tree}" + f" -e {family.folder}" * is_package
    activate = f"conda activate {family.conda} &&" if python and _is_conda(family, python) else ""
    if check.returncode:
        remedy = f"python -m nox -s {family.session} --install-only"
        if activate:
            remedy = f"{activate} python -m revisit.forks.make {family.folder} && {install}"
        return Finding("fork", "", output, remedy)
    imported = state.get("transformers", "")
    is_fork = Path(imported).resolve() == (ROOT / tree / "src" / "transformers").resolve()
    if not state or state.get("error") or is_fork:
        return Finding("fork", tree)
    instead = f"is {_shortened(imported)}" if imported else "is missing"
    missing = f"{tree} is made, but not installed: the environment's transformers {instead}"
    remedy = f"{activate} {install}" if activate else f".nox/{family.session}/bin/{install}"
    return Finding("fork", tree, missing, remedy)


def _checkpoint(family: Family, python: Path | None) -> Finding:
    about = download_from_huggingface.CHECKPOINTS[family.session]
    folder = ROOT / "prerequisites" / about["folder"]
    why = download_from_huggingface.why_incomplete(folder)
    runner = _short(python) if python else f".nox/{family.session}/bin/python"
    remedy = f"{runner} prerequisites/download_from_huggingface.py --model {family.session}"
    return Finding("checkpoint", _short(folder), _shortened(why), remedy, about["bytes"] / 1e9)


def _gpu(family: Family, state: dict[str, Any]) -> Finding:
    gpus = visible = _nvidia_smi()
    if state and not state.get("error"):  # the environment's torch was asked
        gpus = [(name, size / 1e9) for name, size in state["gpus"]]
    found = ", ".join(f"{name} with {size:.0f} GB" for name, size in gpus)
    needed = f"about {family.gpu} GB are needed"
    if any(size >= family.gpu for _, size in gpus):
        return Finding("GPU", found)
    if gpus:
        remedy = "a larger one, or DEVICE=auto, which spreads the model"
        return Finding("GPU", found, f"{found}; {needed}", remedy)
    trouble = "no GPU that CUDA can use"
    if visible:
        trouble = f"nvidia-smi sees {visible[0][0]}, but this environment's torch does not"
    remedy = "a machine that has one; DEVICE=cpu runs the scripts without, slowly"
    return Finding("GPU", "", f"{trouble}; {needed}", remedy)


def _nvidia_smi() -> list[tuple[str, float]]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        rows = [line.rsplit(",", 1) for line in output.splitlines()]
        return [(name.strip(), float(mebibytes) * 2**20 / 1e9) for name, mebibytes in rows]
    except (OSError, subprocess.CalledProcessError, ValueError):
        return []


def _data(name: str, title: str, remedy: str, disk: float) -> Finding:
    folder = download_data.folder_of(name)
    why = download_data.why_incomplete(name, folder)
    return Finding(title, _short(folder), _shortened(why), remedy, disk)


def _nltk(pythons: Sequence[Path]) -> Finding:
    finding = _data("nltk", "NLTK's data", "python prerequisites/download_nltk.py", 0.1)
    if finding.missing and pythons:  # it may be where NLTK looks by itself
        program = "from nltk import WordNetLemmatizer, pos_tag, word_tokenize as words; "
        program += "pos_tag(words('A dog.')), WordNetLemmatizer().lemmatize('dogs')"
        folder = download_data.folder_of("nltk")
        variables = {"NLTK_DATA": str(folder)} | os.environ  # as the evaluation scripts set it
        run = subprocess.run([pythons[0], "-c", program], env=variables, capture_output=True)
        if not run.returncode:
            return Finding("NLTK's data", "found by NLTK itself")
    return finding


def _is_conda(family: Family, python: Path) -> bool:
    return python.parents[1].name == family.conda


def _yaml(family: Family) -> str:
    return next(path.name for path in (ROOT / family.folder).glob("*.yaml"))


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _shortened(text: str) -> str:
    return text.replace(f"{ROOT}{os.sep}", "")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0 if all is there and 1 if something is missing."""
    argparse.ArgumentParser(
        description="List, for each family, what is there and what is missing (environment, fork, "
        "checkpoint, GPU; COCO and NLTK's data) and the command that gets it, to be run in the "
        "repository's folder. Changes nothing. Exit status 1 if something is missing.",
    ).parse_args(arguments)
    missing: list[Finding] = []
    for title, findings in examine():
        print(title)
        for finding in findings:
            state = "MISSING" if finding.missing else "ok"
            print(f"  {state:8} {finding.name:13} {finding.missing or finding.found}")
            if finding.missing:
                print(f"  {'':22} get it: {finding.remedy}", flush=True)
        missing += [finding for finding in findings if finding.missing]
    free = shutil.disk_usage(ROOT).free / 1e9
    needed = sum(finding.disk for finding in missing)
    print(f"Disk: {free:.0f} GB free; what is missing takes about {needed:.0f} GB.")
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
