"""Programs that join a model of Transformers and the pictures of what it saw."""


class CommandError(ValueError):
    """Bad input to a program. The message says what is wrong, where, and the remedy."""
