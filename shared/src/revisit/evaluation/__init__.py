"""Benchmarks: what a model is asked, its answers on disk, their scores, and comparisons."""

from importlib.util import find_spec

_NEEDED = ("filelock", "nltk", "numpy", "PIL", "psutil", "tqdm")

if _missing := [name for name in _NEEDED if find_spec(name) is None]:
    raise ModuleNotFoundError(
        f"revisit.evaluation needs {', '.join(_missing)}: "
        'pip install "revisit-decoding[evaluation]"'
    )


class EvaluationError(ValueError):
    """Bad input to the evaluation. The message says what is wrong, where, and the remedy."""
