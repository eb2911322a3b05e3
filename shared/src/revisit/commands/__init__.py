"""The command `revisit`, a file for each of its subcommands, and the models they ask."""

from pathlib import Path


class CommandError(ValueError):
    """Bad input to a program. The message says what is wrong, where, and the remedy."""


def check_folder(flag: str, path: Path) -> None:
    """Raises `CommandError` where a file that is written after the work has no folder."""
    if not path.resolve().parent.is_dir():
        raise CommandError(f"{flag} {path}: there is no folder {path.resolve().parent}")
