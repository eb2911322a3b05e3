"""One decoding step of ReVisiT, formula by formula (paper, section 3): the file to read first.

For one row: logits z (V), vision states H (M, d) with M = vision tokens x layers, LM head W (V, d).

    constrain   V_cons = { w : log p(w) >= max log p + log alpha },  p = softmax(z)
    base        log p_c = log_softmax(z[V_cons])
    project     log q_i = log_softmax((H_i W^T)[V_cons])             for every vision state i
    select      i* = argmin_i D(p_c, q_i)
    refine      log p_c + log q_i*  on V_cons, -inf elsewhere

`revisit.core.rows` gives the same for the rows of a batch, faster, and is tested against it.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from revisit.config import ReVisiTConfig
from revisit.core.head import Head, without_autocast

# Relative error of a divergence summed in float32.
_ROUNDING = 1e-6

# The largest float32. Beyond it +inf - inf would be NaN; a finite stand-in of -inf is its negative.
LARGEST = torch.finfo(torch.float32).max

# Why no token can be chosen from a row, by the number that the kernels give it.
FAULTS = {
    1: "the model's logits hold NaN: no token can be chosen from them",
    2: "the model's logits are -inf for every token: none can be chosen",
}


class Step(NamedTuple):
    """What one step decided for one row."""

    scores: Tensor  # (V,) float32: log p_c + log q_i* on V_cons, -inf elsewhere
    vocabulary: Tensor  # (c,) int64: V_cons, ascending
    choice: Tensor  # () int64: i*, an index into the M vision states
    distances: Tensor  # (M,) float32: D(p_c, q_i), nats

    @property
    def divergence(self) -> Tensor:
        """D(p_c, q_i*), () float32, nats."""
        return self.distances.take(self.choice)


@torch.no_grad()
def step(
    logits: Tensor,
    states: Tensor,
    head: Head,
    config: ReVisiTConfig,
    generator: torch.Generator | None = None,
) -> Step:
    """Refine one row's next-token scores: the five lines of the table above.

    Args:
        logits: (V,) scores of the model, up to an additive constant; any floating dtype. A token
            with +inf is certain.
        states: (M, d) vision states, in the LM head's dtype.
        head: the LM head.
        config: alpha, divergence and selection are used here.
        generator: for `selection="random"`, on the CPU.

    Raises:
        ValueError: the logits hold NaN, or no token is possible (all are -inf).
    """
    logits = logits.float()
    check(logits)
    vocabulary = constrain(logits, config.alpha)
    log_p = logits[vocabulary].clamp(max=LARGEST).log_softmax(0)
    with without_autocast(head.device):
        log_q = head.project(vocabulary, states).float().log_softmax(0)
    distances = divergence(log_p, log_q, config.divergence)
    choice = select(distances, config.selection, generator)  # picks the vision token
    scores = torch.full_like(logits, -math.inf)
    scores[vocabulary] = log_p + log_q[:, choice]
    return Step(scores, vocabulary, choice, distances)


def constrain(logits: Tensor, alpha: float) -> Tensor:
    """V_cons (paper, eq. 3): the tokens at least `alpha` times as probable as the likeliest.

    Args:
        logits: (V,), any floating dtype.
        alpha: in [0, 1]; 0 keeps the whole vocabulary.

    Returns:
        (c,) int64 token ids, ascending, c >= 1.
    """
    if alpha == 0:
        return torch.arange(logits.shape[0], device=logits.device)
    logits = logits.float()
    # log p(w) - max log p = z(w) - max z: the normalizer cancels, one pass over V suffices.
    bound = logits.max().clamp(max=LARGEST) + math.log(alpha)
    return (logits >= bound).nonzero().squeeze(1)


def divergence(log_p: Tensor, log_q: Tensor, kind: str) -> Tensor:
    """D(p, q_i) for every column i of `log_q`, in nats, with m = (p + q) / 2.

    `"ag"`, the arithmetic-geometric divergence: (KL(m||p) + KL(m||q)) / 2. Infinite where p has a
    zero, since q never has one.
    `"js"`, the Jensen-Shannon divergence: (KL(p||m) + KL(q||m)) / 2.

    Args:
        log_p: (..., c) float32 log-probabilities; -inf allowed.
        log_q: (..., c, M) float32 log-probabilities, one distribution a column.

    Returns:
        (..., M) float32.
    """
    # A finite stand-in for log 0 keeps 0 * log 0 from becoming NaN.
    finite_p = log_p.clamp(min=-1e30).unsqueeze(-1)
    log_m = torch.logaddexp(finite_p, log_q) - math.log(2)
    if kind == "ag":
        distances = (log_m.exp() * (log_m - (finite_p + log_q) / 2)).sum(-2)
        return distances.masked_fill(log_p.isneginf().any(-1, keepdim=True), math.inf)
    from_p = finite_p.exp() * (finite_p - log_m)
    from_q = log_q.exp() * (log_q - log_m)
    return (from_p + from_q).sum(-2) / 2


def select(distances: Tensor, selection: str, generator: torch.Generator | None = None) -> Tensor:
    """The index (...) int64 of the chosen vision state among (..., M); the first one on ties.

    Divergences that differ by less than their float32 rounding are ties: the choice among equal
    vision states must not depend on where they lie in a vector register.
    """
    if selection == "random":
        size, count = distances.shape[:-1], distances.shape[-1]
        draws = torch.randint(count, size, generator=generator, device="cpu")
        return draws.to(distances.device)
    far = selection == "max"
    values = distances.neg() if far else distances
    best = values.amin(-1, keepdim=True)
    tied = values <= best.mul(1 - _ROUNDING if far else 1 + _ROUNDING).add_(_ROUNDING)
    return tied.view(torch.uint8).argmax(-1)


def check(logits: Tensor) -> None:
    """Raise ValueError where logits (..., V) hold NaN, or a row in which no token is possible."""
    if logits.isnan().any():
        raise ValueError(FAULTS[1])
    if logits.isneginf().all(-1).any():
        raise ValueError(FAULTS[2])
