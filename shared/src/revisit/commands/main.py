"""The command `revisit`. Here: its subcommands, and how each of them ends.

Nothing heavy is imported before a subcommand runs: `revisit --help` needs no PyTorch, and Ctrl-C is
answered while modules are being imported too.
"""

import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from revisit import __version__
from revisit.commands import CommandError

if TYPE_CHECKING:
    from cyclopts import App

INTERRUPTED = 130
RESUME = "; finished answers are kept, and the same command continues"
"""What an evaluation says besides when Ctrl-C ends it."""
COMMANDS = {
    "caption": "Describe images, and say which patch each word came from.",
    "web": "Greedy decoding and ReVisiT side by side in the browser.",
    "eval": "Ask a model what a benchmark asks, and score the answers.",
    "score": "Score a file of answers.",
    "compare": "One table of several results.",
    "check": "Whether ReVisiT decodes a model exactly.",
    "fork": "Transformers 4.31.0 and 4.50.0 with ReVisiT inside.",
}


def start() -> NoReturn:
    """The console script."""
    argv = sys.argv[1:]
    leave_at_ctrl_c(_advice(argv))
    status = main(argv)
    leave_at_ctrl_c(_advice(argv))  # while threads and modules are taken down
    sys.exit(status)


def main(argv: Sequence[str]) -> int:
    """Run one subcommand.

    Returns:
        The exit status: 0 done, 1 not all done, 2 wrong use, 130 on Ctrl-C. `fork check` has more,
        which its help explains.
    """
    try:
        from revisit.commands.flags import new_app
    except ModuleNotFoundError as error:
        print(f"revisit: {error}: pip install revisit-decoding brings it", file=sys.stderr)
        return 2
    app = new_app("revisit", "Decoding that makes vision-language models say what they see.")
    app.version = __version__
    app.help_epilogue = (
        "Each command explains its flags with --help, and takes them from a file too: --config "
        "FILE.yaml. --install-completion sets up the completion of your shell."
    )
    app.register_install_completion_command()
    for name, summary in COMMANDS.items():
        app.command(f"revisit.commands.{name}:{name}", name=name, help=summary)
    return run(app, argv, _advice(argv))


def _advice(argv: Sequence[str]) -> str:
    """What Ctrl-C says besides."""
    return RESUME if argv and argv[0] == "eval" else ""


def run(app: "App", argv: Sequence[str], advice: str = "") -> int:
    """Parse a command line and run what it asks for; what a user did wrong is one line.

    `advice` is what Ctrl-C says besides.
    """
    from cyclopts import CycloptsError

    from revisit.commands.flags import explain, prepare

    program = app.name[0]
    try:
        program = " ".join((*app.name, *app.parse_commands(list(argv))[0]))
        words = prepare(app, argv)
        command, bound, _ = app.parse_args(words, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        return _refuse(program, explain(error))
    except (ValueError, ImportError) as error:  # ValueError: of a setting's check
        return _refuse(program, error)
    try:
        _raise_at_ctrl_c()
        status = command(*bound.args, **bound.kwargs)
        sys.stdout.flush()
        return int(status or 0)
    except BrokenPipeError:  # its reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BaseException as error:
        if _interrupted(error):
            print(f"{program}: interrupted{advice}", file=sys.stderr)
            exec("")  # Python forgets an exec that Ctrl-C cut short; else it ends by the signal
            return INTERRUPTED
        if isinstance(error, _refusals()):
            return _refuse(program, error)
        raise


def _refuse(program: str, error: BaseException | str) -> int:
    message = str(error)
    if isinstance(error, ImportError):
        # cyclopts wraps the error of a command that cannot be imported.
        message = (
            f"{error.__cause__ or error}; pip install 'revisit-decoding[EXTRA]' brings what a "
            "command needs, with EXTRA one of evaluation, pictures, web, vllm; Transformers is "
            "yours to install"
        )
    print(f"{program}: error: {message}", file=sys.stderr)
    return 2


def _refusals() -> tuple[type[Exception], ...]:
    """The errors whose message is for the user."""
    evaluation: Any = sys.modules.get("revisit.evaluation")
    loaded = () if evaluation is None else (evaluation.EvaluationError,)
    return (CommandError, ModuleNotFoundError, *loaded)


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind it: an import that it cut short may raise ImportError."""
    if isinstance(signal.getsignal(signal.SIGINT), partial):
        return True  # see `_raise_at_ctrl_c`
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def leave_at_ctrl_c(advice: str = "") -> None:
    """Have Ctrl-C end the process with one line, until a command runs that tidies up itself."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as in a shell's background
        signal.signal(signal.SIGINT, partial(_leave, f"revisit: interrupted{advice}\n"))


def _raise_at_ctrl_c() -> None:
    """Have the first Ctrl-C raise KeyboardInterrupt, and the next one end the process again."""
    leave = signal.getsignal(signal.SIGINT)
    if isinstance(leave, partial):

        def interrupt(*_: object) -> NoReturn:
            signal.signal(signal.SIGINT, leave)
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, interrupt)


def _leave(message: str, *_: object) -> NoReturn:
    os.write(2, message.encode())
    os._exit(INTERRUPTED)
