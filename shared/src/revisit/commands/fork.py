"""`revisit fork`: releases of Transformers with ReVisiT inside (`revisit.forks` makes them)."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from revisit.commands.flags import new_app

fork = new_app(
    "fork",
    "Transformers 4.31.0 and 4.50.0 with ReVisiT inside: `generate` takes the published flags.",
)


@fork.command
def make(
    family: Annotated[Path, Parameter(help="its folder, such as LLaVA1.5")],
    /,
    *,
    check: Annotated[
        bool, Parameter(help="change nothing; exit with 0 if it is up to date")
    ] = False,
) -> int:
    """Make the fork of a family from its release and patch; again is a no-op."""
    from revisit.forks.make import main

    return main([str(family), *["--check"] * check])


@fork.command
def patch() -> int:
    """Patch the Transformers that this Python imports, 4.31.0 or 4.50.0."""
    from revisit.forks.installed import main

    return main([])


@fork.command
def check() -> int:
    """Say whether that is patched: exit with 0 if so, 3 unpatched, 4 half patched (a run was
    killed: patch again), 5 modified, 6 another release or none."""
    from revisit.forks.installed import main

    return main(["--check"])


@fork.command
def revert() -> int:
    """Restore the release, byte for byte."""
    from revisit.forks.installed import main

    return main(["--revert"])
