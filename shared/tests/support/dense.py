"""The textbook computation that ReVisiT is tested against: dense, float64, one formula a line."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def log_softmax(x: Array, axis: int = 0) -> Array:
    shifted = x - x.max(axis=axis, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)))


def constrain(logits: Array, alpha: float) -> NDArray[np.intp]:
    log_p = log_softmax(logits)
    bound = log_p.max() + (math.log(alpha) if alpha else -math.inf)
    return np.flatnonzero(log_p >= bound)


def divergences(log_p: Array, log_q: Array, kind: str) -> Array:
    """D(p, q_i) for the columns of log_q (c, M), by the definition of each KL."""
    log_p = np.broadcast_to(log_p[:, None], log_q.shape)
    log_m = np.logaddexp(log_p, log_q) - math.log(2)

    def kl(log_a: Array, log_b: Array) -> Array:
        with np.errstate(invalid="ignore"):
            terms = np.where(np.isneginf(log_a), 0.0, np.exp(log_a) * (log_a - log_b))
        return np.asarray(terms.sum(0))

    if kind == "ag":
        return (kl(log_m, log_p) + kl(log_m, log_q)) / 2
    return (kl(log_p, log_m) + kl(log_q, log_m)) / 2


def step(
    logits: Array, states: Array, head: Array, alpha: float, kind: str
) -> tuple[NDArray[np.intp], Array, Array]:
    """V_cons (c,), the divergence (M,) and the refined scores (c, M) for every choice."""
    vocabulary = constrain(logits, alpha)
    log_p = log_softmax(logits[vocabulary])
    log_q = log_softmax((states @ head.T).T[vocabulary])
    return vocabulary, divergences(log_p, log_q, kind), log_p[:, None] + log_q
