"""One decoding step of ReVisiT, as functions on tensors (paper, section 3).

For one row: logits z (V), vision states H (M, d) with M = vision tokens x layers, LM head W (V, d).

    constrain   V_cons = { w : log p(w) >= max log p + log alpha },  p = softmax(z)
    base        log p_c = log_softmax(z[V_cons])
    project     log q_i = log_softmax((H_i W^T)[V_cons])             for every vision token i
    select      i* = argmin_i D(p_c, q_i)
    refine      log p_c + log q_i*  on V_cons, -inf elsewhere
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from revisit.columns import Columns
from revisit.config import ReVisiTConfig

# Small enough for a CPU's cache, large enough to fill a GPU.
_BLOCK_BYTES = {"cpu": 4 * 2**20}
_GPU_BLOCK_BYTES = 64 * 2**20

# Relative error of a divergence summed in float32.
_ROUNDING = 1e-6


class Step(NamedTuple):
    """What one step decided for one row."""

    scores: Tensor  # (V,) float32: log p_c + log q_i* on V_cons, -inf elsewhere
    vocabulary: Tensor  # (c,) int64: V_cons, ascending
    choice: Tensor  # () int64: i*, an index into the M vision states
    divergence: Tensor  # () float32: D(p_c, q_i*), nats


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
    return (logits >= logits.max() + math.log(alpha)).nonzero().squeeze(1)


def divergence(log_p: Tensor, log_q: Tensor, kind: str) -> Tensor:
    """D(p, q_i) for every column i of `log_q`, in nats, with m = (p + q) / 2.

    `"ag"`, the arithmetic-geometric divergence: (KL(m||p) + KL(m||q)) / 2. Infinite where p has a
    zero, since q never has one.
    `"js"`, the Jensen-Shannon divergence: (KL(p||m) + KL(q||m)) / 2.

    Args:
        log_p: (c,) float32 log-probabilities; -inf allowed.
        log_q: (c, M) float32 log-probabilities, one distribution a column.

    Returns:
        (M,) float32.
    """
    # A finite stand-in for log 0 keeps 0 * log 0 from becoming NaN.
    finite_p = log_p.clamp(min=-1e30).unsqueeze(1)
    log_m = torch.logaddexp(finite_p, log_q) - math.log(2)
    if kind == "ag":
        distances = (log_m.exp() * (log_m - (finite_p + log_q) / 2)).sum(0)
        return distances.masked_fill(log_p.isneginf().any(), math.inf)
    from_p = finite_p.exp() * (finite_p - log_m)
    from_q = log_q.exp() * (log_q - log_m)
    return (from_p + from_q).sum(0) / 2


def select(divergences: Tensor, selection: str, generator: torch.Generator | None = None) -> Tensor:
    """The index () int64 of the chosen vision state; the first one on ties.

    Divergences that differ by less than their float32 rounding are ties: equal vision states must
    not be told apart by where they stand in a vector register.
    """
    if selection in ("min", "max"):
        best = divergences.min() if selection == "min" else divergences.max()
        rounding = _ROUNDING * (1 + best.abs())
        tied = ((divergences - best).abs() <= rounding) | (divergences == best)
        return tied.to(torch.uint8).argmax()
    draw = torch.randint(divergences.shape[0], (), generator=generator)
    return draw.to(divergences.device)


def step(
    logits: Tensor,
    columns: Columns,
    config: ReVisiTConfig,
    generator: torch.Generator | None = None,
) -> Step:
    """Refine one row's next-token scores (all five lines of the table above).

    Args:
        logits: (V,) scores of the model, up to an additive constant; any floating dtype.
        columns: the row's vision states, projected on demand.
        config: alpha, divergence and selection are used here.
        generator: for `selection="random"`, on the CPU.

    Raises:
        ValueError: the logits hold NaN.
    """
    vocabulary = constrain(logits, config.alpha)
    if vocabulary.shape[0] == 0:
        raise ValueError("the model's logits hold NaN: no token can be chosen from them")
    log_p = logits.float()[vocabulary].log_softmax(0)
    slots = columns.keep(vocabulary)
    distances = log_p.new_empty(columns.tokens)
    for tokens in _blocks(columns.tokens, vocabulary.shape[0], logits.device.type):
        log_q = columns(vocabulary, slots, tokens).float().log_softmax(0)
        distances[tokens] = divergence(log_p, log_q, config.divergence)
    choice = select(distances, config.selection, generator)
    log_q = columns(vocabulary, slots, choice.unsqueeze(0)).squeeze(1).float().log_softmax(0)
    scores = torch.full(logits.shape, -math.inf, dtype=torch.float32, device=logits.device)
    scores[vocabulary] = log_p + log_q
    return Step(scores, vocabulary, choice, distances[choice])


def refine(
    scores: Tensor,
    columns: Sequence[Columns | None],
    config: ReVisiTConfig,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, list[Step | None]]:
    """Refine a batch: each row by its own vision states, whatever its neighbours are.

    Args:
        scores: (B, V) scores of the model; any floating dtype.
        columns: B entries, shared by rows of one prompt; rows with None keep their scores.

    Returns:
        (B, V) float32 refined scores, and what was decided for each row.
    """
    refined = scores.to(torch.float32, copy=True)
    steps: list[Step | None] = []
    for row, vision in enumerate(columns):
        decided = None if vision is None else step(scores[row], vision, config, generator)
        if decided is not None:
            refined[row] = decided.scores
        steps.append(decided)
    return refined, steps


def _blocks(tokens: int, candidates: int, device: str) -> list[slice]:
    """Slices over the vision states, so that no temporary outgrows the block size."""
    limit = _BLOCK_BYTES.get(device, _GPU_BLOCK_BYTES)
    size = max(1, limit // (4 * candidates))
    return [slice(start, start + size) for start in range(0, tokens, size)]
