"""The doctor, run in a small copy of the repository whose parts come and go."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from itertools import pairwise
from pathlib import Path

import pytest

from download_data import DATA
from revisit.forks import make

ROOT = Path(__file__).resolve().parents[2]
SESSIONS = {"LLaVA1.5": "llava", "Qwen2.5-VL": "qwen"}
DEMO = ROOT / "prerequisites" / "demo"
# A torch that finds one GPU of the size that the test says.
TORCH = """
class cuda:
    device_count = lambda: {count}
    class get_device_properties:
        name, total_memory = "Test GPU", {memory}
        def __init__(self, index): pass
"""

# What makes a fork's tree a package, as in the release: its source is in src/.
SETUP = """
from setuptools import find_packages, setup
setup(name="{}", version="{}", package_dir={{"": "src"}}, packages=find_packages("src"))
"""


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "a repository")


class Repository:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root.parent / "home"
        self.home.mkdir()
        unneeded = shutil.ignore_patterns("data", "tests", "__pycache__", "*.egg-info")
        for folder in ("LLaVA1.5", "Qwen2.5-VL", "shared"):
            shutil.copytree(ROOT / folder, root / folder, ignore=unneeded)
        (root / "prerequisites").mkdir()
        for path in (ROOT / "prerequisites").glob("*.*"):
            shutil.copy(path, root / "prerequisites")

    def doctor(self, **environment: str) -> tuple[int, str]:
        clean = {"PATH": "/usr/bin:/bin", "HOME": str(self.home)} | environment
        program = [sys.executable, self.root / "prerequisites" / "doctor.py"]
        run = subprocess.run(program, cwd="/", env=clean, capture_output=True, text=True)
        assert run.stderr == ""
        return run.returncode, run.stdout

    def make_environment(self, prefix: Path, family: str, gpus: int = 1, memory: float = 24e9):
        """An environment that has what the family's requirements.txt lists."""
        venv.create(prefix, symlinks=True)
        (site,) = prefix.glob("lib/python*/site-packages")
        (site / "torch.py").write_text(TORCH.format(count=gpus, memory=int(memory)))
        pins = (self.root / family / "requirements.txt").read_text().splitlines()
        versions = dict(line.partition(";")[0].split("==") for line in pins if "==" in line)
        for file in (self.root / folder / "pyproject.toml" for folder in ("shared", family)):
            if file.exists():
                project = tomllib.loads(file.read_text())["project"]
                versions[project["name"]] = project["version"]
        (patch,) = (self.root / family).glob("*.patch")
        name, versions[name] = patch.stem.split("-")
        for package, version in versions.items():
            self.install(site, package, version)
        (site / "__editable__.pth").write_text(f"{self.root / family}/data/{patch.stem}/src\n")
        return site

    @staticmethod
    def install(site: Path, package: str, version: str) -> None:
        info = site / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        fields = ("Metadata-Version: 2.1", f"Name: {package}", f"Version: {version}", "")
        (info / "METADATA").write_text("\n".join(fields))

    def make_fork(self, family: str) -> Path:
        (patch,) = (self.root / family).glob("*.patch")
        name, version = patch.stem.split("-")
        tree = self.root / family / "data" / patch.stem
        (tree / "src" / name).mkdir(parents=True)
        (tree / "src" / name / "__init__.py").write_text("")
        (tree / "setup.py").write_text(SETUP.format(name, version))
        make.write_state(tree, make.find_patch(self.root / family))
        return tree

    def make_downloads(self) -> None:
        here = self.root / "prerequisites"
        shutil.copytree(DEMO / "llava-tiny", here / "llava-v1.5-7b")
        shutil.copytree(DEMO / "qwen-tiny", here / "Qwen2.5-VL-7B-Instruct")
        shutil.copytree(DEMO / "coco", here / "coco")
        for package, folder in DATA["nltk"]["packages"].items():
            (here / "nltk_data" / folder / package).mkdir(parents=True)

    def make_all(self) -> None:
        for family, session in SESSIONS.items():
            self.make_environment(self.root / ".nox" / session, family)
            self.make_fork(family)
        self.make_downloads()


def lines(printed: str, word: str) -> list[str]:
    """The lines about a thing, each with the command that follows it."""
    found = [" ".join(line.split()) for line in [*printed.splitlines(), ""]]
    pairs = [pair for pair in pairwise(found) if pair[0].partition(" ")[2].startswith(word)]
    return [" ".join(pair) for pair in pairs]


def test_on_a_fresh_clone_each_thing_is_missing_and_has_its_command(repository):
    status, printed = repository.doctor()
    assert status == 1 and "  ok " not in printed
    for session in SESSIONS.values():
        assert f"get it: python -m nox -s {session} --install-only" in printed
        download = f"{session}/bin/python prerequisites/download_from_huggingface.py --model"
        assert f".nox/{download} {session}" in printed
    assert "conda env create -f LLaVA1.5/ReVisiT_LLaVA.yaml" in printed
    assert "LLaVA1.5/data/transformers-4.31.0: not made yet" in printed
    assert "get it: bash prerequisites/download_coco.sh" in printed
    assert "get it: python prerequisites/download_nltk.py" in printed
    assert "GB free; what is missing takes about 57 GB" in printed
    assert not (repository.root / "LLaVA1.5" / "data").exists()


def test_when_all_is_there_it_says_so(repository):
    repository.make_all()
    status, printed = repository.doctor()
    assert status == 0 and "MISSING" not in printed, printed
    assert ".nox/llava: Python 3.11" in printed and "torch 2.0.1" in printed
    assert "Test GPU with 24 GB" in printed and "takes about 0 GB" in printed


def test_a_fork_that_pip_installed_in_editable_mode_is_ok(repository):
    """As pip does it: the egg-info that the build leaves in src/ is a second distribution."""
    repository.make_all()
    for family, session in SESSIONS.items():
        prefix = repository.root / ".nox" / session
        (site,) = prefix.glob("lib/python*/site-packages")
        (site / "__editable__.pth").unlink()
        shutil.rmtree(next(site.glob("transformers-*.dist-info")))
        assert "but not installed" in repository.doctor()[1]
        (tree,) = (repository.root / family / "data").glob("transformers-*")
        pip_install_editable(tree, prefix)
        assert (tree / "src" / "transformers.egg-info").is_dir()
    status, printed = repository.doctor()
    assert status == 0 and "MISSING" not in printed, printed


def pip_install_editable(tree: Path, prefix: Path) -> None:
    """`pip install -e` into another environment, without an index: its build tools are ours."""
    ask = "import setuptools.build_meta as backend; backend.get_requires_for_build_editable()"
    subprocess.run([sys.executable, "-c", ask], cwd=tree, check=True)  # pip asks if it isolates
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-build-isolation"]
    where = ["--ignore-installed", "--prefix", prefix, "-e", tree]
    subprocess.run([*pip, *where], check=True, env=os.environ | {"PIP_CONFIG_FILE": os.devnull})


def test_a_conda_environment_is_found_by_its_name(repository):
    repository.make_all()
    shutil.rmtree(repository.root / ".nox" / "llava")
    prefix = repository.root.parent / "envs" / "revisit_llava"
    repository.make_environment(prefix, "LLaVA1.5")
    status, printed = repository.doctor(CONDA_PREFIX=str(prefix))
    assert status == 0 and f"{prefix}: Python" in printed
    (repository.home / ".conda").mkdir()
    (repository.home / ".conda" / "environments.txt").write_text(f"/gone\n{prefix}\n")
    assert repository.doctor()[0] == 0
    shutil.rmtree(repository.root / "LLaVA1.5" / "data")
    (line,) = lines(repository.doctor()[1], "fork LLaVA1.5")
    make = "conda activate revisit_llava && python -m revisit.forks.make LLaVA1.5"
    install = "python -m pip install -e LLaVA1.5/data/transformers-4.31.0 -e LLaVA1.5"
    assert line.endswith(f"{make} && {install}")


def another_version(prefix, site):
    shutil.rmtree(site / "torch-2.0.1.dist-info")
    Repository.install(site, "torch", "9.9")


def broken_python(prefix, site):
    python = prefix / "bin" / "python"
    python.unlink()
    python.write_text("#!/bin/sh\necho 'No such file' >&2\nexit 1\n")
    python.chmod(0o755)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (another_version, "torch is 9.9, not 2.0.1"),
        (broken_python, "No such file"),
        ("nltk-3.10.4", "nltk is missing, not 3.10.4"),
        ("llava_revisit-0.1.0", "llava-revisit is not installed"),
        ("torch", "ImportError: no libcudart"),
    ],
)
def test_an_environment_that_is_not_as_pinned(repository, change, message):
    repository.make_all()
    prefix = repository.root / ".nox" / "llava"
    (site,) = prefix.glob("lib/python*/site-packages")
    if change == "torch":
        (site / "torch.py").write_text("raise ImportError('no libcudart')")
    elif isinstance(change, str):
        shutil.rmtree(site / f"{change}.dist-info")
    else:
        change(prefix, site)
    status, printed = repository.doctor()
    (line,) = [line for line in lines(printed, "environment") if "llava" in line]
    assert status == 1 and "MISSING" in line and message in line
    assert line.endswith("nox -s llava --install-only --reuse-venv=never")


def test_a_fork_that_is_not_installed_or_was_edited(repository):
    repository.make_all()
    (site,) = (repository.root / ".nox" / "qwen").glob("lib/python*/site-packages")
    (site / "transformers").mkdir()
    (site / "transformers" / "__init__.py").write_text("")  # another one, which is found first
    status, printed = repository.doctor()
    (line,) = lines(printed, "fork Qwen2.5-VL")
    assert status == 1
    assert "made, but not installed: the environment's transformers is .nox/qwen/lib" in line
    install = ".nox/qwen/bin/python -m pip install -e Qwen2.5-VL/data/transformers-4.50.0"
    assert line.endswith(f"get it: {install}")
    (repository.root / "LLaVA1.5/data/transformers-4.31.0/setup.py").write_text("edited")
    status, printed = repository.doctor()
    assert status == 1 and "changed: setup.py" in printed


def test_what_downloads_lack_is_named(repository):
    repository.make_all()
    here = repository.root / "prerequisites"
    (here / "llava-v1.5-7b" / "model.safetensors").unlink()
    shutil.rmtree(here / "llava-v1.5-7b" / "clip-vit-tiny-patch14-112")
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    qwen = here / "Qwen2.5-VL-7B-Instruct"
    (qwen / "model.safetensors").rename(qwen / shards[0])
    (qwen / "preprocessor_config.json").unlink()
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    (qwen / "model.safetensors.index.json").write_text(json.dumps(index))
    (here / "coco" / "val2014" / "COCO_val2014_000000000003.jpg").unlink()
    shutil.rmtree(here / "nltk_data" / "taggers")
    status, printed = repository.doctor()
    assert status == 1 and printed.count("MISSING") == 4 and str(repository.root) not in printed
    assert "llava-v1.5-7b lacks weights, its vision tower clip-vit-tiny" in printed
    assert f"Qwen2.5-VL-7B-Instruct lacks preprocessor_config.json, {shards[1]}" in printed
    assert (
        "coco/val2014 lacks 1 of" in printed and "lacks averaged_perceptron_tagger_eng" in printed
    )
    (qwen / "config.json").unlink()
    (here / "coco" / "annotations" / "captions_val2014.json").unlink()
    _, printed = repository.doctor()
    assert "lacks config.json" in printed and "captions_val2014.json is missing" in printed


def test_gpus_that_are_missing_small_or_hidden(repository):
    repository.make_all()
    shutil.rmtree(repository.root / ".nox")
    repository.make_environment(repository.root / ".nox" / "llava", "LLaVA1.5", memory=12e9)
    repository.make_environment(repository.root / ".nox" / "qwen", "Qwen2.5-VL", gpus=0)
    small, none = lines(repository.doctor()[1], "GPU")
    assert "Test GPU with 12 GB; about 16 GB are needed" in small
    assert "no GPU that CUDA can use; about 20 GB are needed" in none
    tools = repository.root / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559'\n")
    (tools / "nvidia-smi").chmod(0o755)
    path = f"{tools}{os.pathsep}/usr/bin:/bin"
    _, hidden = lines(repository.doctor(PATH=path)[1], "GPU")
    assert "nvidia-smi sees NVIDIA H100 80GB HBM3, but this environment's torch does not" in hidden
    shutil.rmtree(repository.root / ".nox")
    assert "NVIDIA H100 80GB HBM3 with 86 GB" in lines(repository.doctor(PATH=path)[1], "GPU")[0]
