"""The command `revisit`: what is the same in all of its subcommands."""

import subprocess
import sys
from pathlib import Path

import pytest

import revisit
from revisit.commands.main import COMMANDS, main

IMAGE = Path(__file__).parents[3] / "prerequisites" / "demo" / "coco" / "val2014"
IMAGE /= "COCO_val2014_000000000001.jpg"
RESUME = "; finished answers are kept, and the same command continues"
EVAL = "eval chair --model there --data_path there --device cpu"
HEAVY = ("torch", "transformers", "numpy", "PIL", "jinja2", "matplotlib", "nltk")


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("command", ["", *COMMANDS, "eval chair"])
def test_help_is_quick_and_imports_nothing_heavy(command):
    code = (
        "import sys, time; before = time.process_time()\n"
        "from revisit.commands.main import main\n"
        "status = main(sys.argv[1:])\n"
        f"heavy = [each for each in {HEAVY} if each in sys.modules]\n"
        "print(time.process_time() - before, status, heavy, file=sys.stderr)"
    )
    done = python(code, *command.split(), "--help")
    seconds, status, heavy = done.stderr.split(maxsplit=2)
    assert (status, heavy.strip()) == ("0", "[]"), done.stderr
    assert float(seconds) < 2.5  # of a processor that others use; a half or less of one alone
    assert f"Usage: revisit {command}".strip() in done.stdout and "%%" not in done.stdout


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_says_its_version(command, capsys):
    assert main([*command.split(), "--version"]) == 0
    assert capsys.readouterr().out.strip() == revisit.__version__


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["captoin"], 'revisit: error: Unknown command "captoin". Did you mean "caption"?'),
        (["caption", "x.jpg", "--alhpa", "1"], "caption: error: Unknown option: --alhpa. Did you"),
        (["check"], "revisit check: error: MODEL is missing: a checkpoint's folder"),
        (["check", "/missing"], "no checkpoint at /missing: the folder does not exist"),
        (["check", "one", "two"], "no flag takes two. --help explains the flags."),
        (["fork", "make", "--config"], "--config: name a YAML file of flags"),
        (EVAL.split()[:2], "eval chair: error: --data_path is missing. --help explains"),
        (["check", "there", "--random=maybe"], 'unable to convert "maybe" into bool'),
        (["caption", "x.jpg", "--alpha", "2"], "error: alpha (relative_top) must be in"),
        (
            ["fork", "make", "--config", "none.yaml"],
            "--config none.yaml: name a YAML file of flags",
        ),
    ],
    ids=str,
)
def test_wrong_use_is_one_line_and_exit_status_2(argv, message, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "module", "advice"),
    [
        (f"caption {IMAGE}", "cyclopts", ""),
        (f"caption {IMAGE}", "numpy", ""),
        (f"caption {IMAGE}", "transformers.generation", ""),
        (EVAL, "revisit.evaluation.run", RESUME),
        (EVAL, "torch", RESUME),
    ],
    ids=str,
)
def test_ctrl_c_while_a_module_is_imported_is_one_line(command, module, advice):
    code = (
        "import os, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {module!r}:\n"
        "            try:\n"
        "                exec('os.kill(os.getpid(), signal.SIGINT)')\n"
        "            except KeyboardInterrupt:\n"
        "                raise ImportError(name) from None\n"  # as a lazy module may
        "sys.meta_path.insert(0, Interrupting())\n"
        "from revisit.commands.main import start\n"
        "start()\n"
    )
    done = python(code, *command.split())
    assert done.returncode == 130, done.stderr
    assert done.stderr.endswith(f": interrupted{advice}\n") and done.stderr.count("\n") == 1


def test_a_reader_that_stops_reading_is_no_error():
    code = (
        "import os, sys\n"
        "reading, writing = os.pipe()\n"
        "os.close(reading)\n"
        "os.dup2(writing, 1)\n"
        "from revisit.commands.main import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = python(code, "fork", "--help")
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("command", ["score chair --cap_file x", "caption x.jpg", "scroe"])
def test_a_package_that_is_not_installed_is_named(command):
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        "from revisit.commands.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = python(code, *command.split())
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "numpy" in done.stderr or "Did you mean" in done.stderr
