"""The package as it is published: what the wheel holds, asks for, and needs to be imported."""

import email
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[1]

if not importlib.util.find_spec("setuptools"):
    pytest.skip("needs its build backend", allow_module_level=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built of a copy, without an index."""
    folder = tmp_path_factory.mktemp("built")
    skip = shutil.ignore_patterns("build", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(SHARED, folder / "shared", ignore=skip)
    flags = ["--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder]
    subprocess.run(
        [sys.executable, "-m", "pip", "-q", "wheel", *flags, folder / "shared"], check=True
    )
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_all_of_the_package_and_nothing_else(wheel):
    sources = (SHARED / "src" / "revisit").rglob("*")
    files = [path for path in sources if path.is_file() and path.suffix != ".pyc"]
    files = [path for path in files if path.name != "README.md"]  # of who changes the patches
    expected = {str(path.relative_to(SHARED / "src")) for path in files}
    assert "revisit/py.typed" in expected
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected


def test_it_asks_for_torch_and_what_makes_flags(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata["Name"] == "revisit-decoding"
    needed = [each for each in metadata.get_all("Requires-Dist") if "extra ==" not in each]
    assert [each.partition(">")[0] for each in needed] == ["torch", "cyclopts[yaml]", "rich"]
    assert metadata.get_payload().strip() == (SHARED / "README.md").read_text("utf-8").strip()


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
sys.modules.update(dict.fromkeys(("transformers", "numpy", "nltk", "PIL", "tqdm")))
import torch, revisit
from revisit.core.step import step
assert revisit.__file__.startswith(sys.argv[1])
states, head = torch.eye(3), revisit.LMHead(torch.eye(3))
print(int(step(torch.tensor([0.0, 2.0, 0.0]), states, head, revisit.ReVisiTConfig()).choice))
"""


def test_the_method_runs_without_transformers(wheel):
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, wheel], capture_output=True, text=True, cwd=wheel.parent
    )
    assert run.stdout.split() == ["1"], run.stderr
