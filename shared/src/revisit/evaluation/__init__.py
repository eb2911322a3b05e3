"""Evaluation: captioning a sample of COCO images, and scoring captions by CHAIR."""


class EvaluationError(ValueError):
    """Bad input to the evaluation. The message says what is wrong, where, and the remedy."""
