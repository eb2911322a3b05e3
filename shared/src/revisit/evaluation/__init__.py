"""Benchmarks: what a model is asked, its answers on disk, their scores, and comparisons.

The way of a caption, module by module: `run` says what is evaluated and how; `evaluate` goes from
the data to the score; `answering` asks a `captioner` in batches; `store` (`shards`, where several
processes write) appends the answers to the file that `answer_files` reads, and `record` says what
made them; a file of `benchmarks/` scores them; `results/` compares what was saved.
"""

from importlib.util import find_spec

_PACKAGES = ("filelock", "nltk", "numpy", "PIL", "psutil", "tqdm")

if _missing := [name for name in _PACKAGES if find_spec(name) is None]:
    raise ModuleNotFoundError(
        f"revisit.evaluation needs {', '.join(_missing)}: "
        'pip install "revisit-decoding[evaluation]"'
    )


class EvaluationError(ValueError):
    """Bad input to the evaluation. The message says what is wrong, where, and the remedy."""
