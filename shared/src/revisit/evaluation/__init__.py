"""Evaluation: captions of COCO images scored by CHAIR, answers to the questions of POPE."""

from importlib.util import find_spec

if _missing := [name for name in ("nltk", "numpy", "PIL", "tqdm") if find_spec(name) is None]:
    raise ModuleNotFoundError(
        f"revisit.evaluation needs {', '.join(_missing)}: "
        'pip install "revisit-decoding[evaluation]"'
    )


class EvaluationError(ValueError):
    """Bad input to the evaluation. The message says what is wrong, where, and the remedy."""
