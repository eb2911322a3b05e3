"""One decoding step of ReVisiT, as functions on tensors (paper, section 3).

For one row: logits z (V), vision states H (M, d) with M = vision tokens x layers, LM head W (V, d).

    constrain   V_cons = { w : log p(w) >= max log p + log alpha },  p = softmax(z)
    base        log p_c = log_softmax(z[V_cons])
    project     log q_i = log_softmax((H_i W^T)[V_cons])             for every vision token i
    select      i* = argmin_i D(p_c, q_i)
    refine      log p_c + log q_i*  on V_cons, -inf elsewhere
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from revisit import onepass
from revisit.columns import Columns, Found, block_bytes
from revisit.config import ReVisiTConfig

# Relative error of a divergence summed in float32.
_ROUNDING = 1e-6

# A logit whose probability is 0, in place of -inf where 0 * inf would be NaN.
_IMPOSSIBLE = -1e20

# Where passes over memory and logarithms count; on a GPU the number of kernels does.
_ONE_PASS = {"cpu"}

# Below this alpha, words of V_cons may be too improbable for a float32.
_FAINT = 1e-30

# Blocks of fewer vision states cost more than the cache gains.
_NARROWEST = 128

_NAN = "the model's logits hold NaN: no token can be chosen from them"


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


def select(divergences: Tensor, selection: str, generator: torch.Generator | None = None) -> Tensor:
    """The index (...) int64 of the chosen vision state among (..., M); the first one on ties.

    Divergences that differ by less than their float32 rounding are ties: equal vision states must
    not be told apart by where they stand in a vector register.
    """
    if selection == "random":
        shape = divergences.shape
        draws = [
            torch.randint(shape[-1], (), generator=generator) for _ in range(shape[:-1].numel())
        ]
        return torch.stack(draws).reshape(shape[:-1]).to(divergences.device)
    far = selection == "max"
    values = divergences.neg() if far else divergences
    best = values.amin(-1, keepdim=True)
    tied = values <= best.mul(1 - _ROUNDING if far else 1 + _ROUNDING).add_(_ROUNDING)
    return tied.view(torch.uint8).argmax(-1)


def step(
    logits: Tensor,
    columns: Columns,
    config: ReVisiTConfig,
    generator: torch.Generator | None = None,
) -> Step:
    """Refine one row's next-token scores (all five lines of the table above), formula by formula.

    `refine` gives the same for a batch, faster: this is what it is tested against.

    Args:
        logits: (V,) scores of the model, up to an additive constant; any floating dtype.
        columns: the row's vision states; nothing is kept of their projection.
        config: alpha, divergence and selection are used here.
        generator: for `selection="random"`, on the CPU.

    Raises:
        ValueError: the logits hold NaN.
    """
    if logits.isnan().any():
        raise ValueError(_NAN)
    vocabulary = constrain(logits, config.alpha)
    log_p = logits.float()[vocabulary].log_softmax(0)
    log_q = columns.project(vocabulary).float().log_softmax(0)
    distances = divergence(log_p, log_q, config.divergence)
    choice = select(distances, config.selection, generator)
    scores = torch.full(logits.shape, -math.inf, dtype=torch.float32, device=logits.device)
    scores[vocabulary] = log_p + log_q[:, choice]
    return Step(scores, vocabulary, choice, distances)


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
        config: alpha, divergence and selection are used here.
        generator: for `selection="random"`, on the CPU.

    Returns:
        (B, V) float32 refined scores, and what was decided for each row.

    Raises:
        ValueError: the scores of a row with vision states hold NaN.
    """
    seen = {row: vision for row, vision in enumerate(columns) if vision is not None}
    steps: list[Step | None] = [None] * len(columns)
    if not seen:
        return scores.to(torch.float32, copy=True), steps
    device = next(iter(seen.values())).slots.device
    logits = scores.to(device, torch.float32)
    words, lengths = _look_up(logits, seen, config.alpha)
    refined = torch.full_like(logits, -math.inf)
    if len(seen) < len(columns):
        for row in range(len(columns)):
            if row not in seen:
                refined[row] = logits[row]
    for part in _together(seen, lengths):
        visions = [seen[row] for row in range(part.start, part.stop)]
        steps[part] = _refine(
            refined[part], logits[part], words[part], lengths[part], visions, config, generator
        )
    return refined.to(scores.device), steps


def _look_up(logits: Tensor, seen: Mapping[int, Columns], alpha: float) -> tuple[Tensor, list[int]]:
    """V_cons of every row; their columns are kept from here on, as many as fit.

    All sizes that depend on the data are read at once: a GPU is waited for once a step.

    Returns:
        (B, C) token ids, ascending, V where a row has fewer than C, and the number of each row.
    """
    # log p(w) - max log p = z(w) - max z: the normalizer cancels.
    bound = logits.amax(1, keepdim=True) + (math.log(alpha) if alpha else -math.inf)
    plausible = logits >= bound
    ranks = plausible.cumsum(1, dtype=torch.int32)
    prompts = list(dict.fromkeys(seen.values()))
    wanted = plausible
    if len(prompts) < logits.shape[0]:
        wanted = torch.stack([_union(plausible, seen, vision) for vision in prompts])
    absent = [vision.absent for vision in prompts]
    missing = wanted & (absent[0] if len(prompts) == 1 else torch.stack(absent))
    sizes = [ranks[:, -1], missing.sum(1, dtype=torch.int32)]
    if wanted is not plausible:
        sizes.append(wanted.sum(1, dtype=torch.int32))
    read = torch.cat(sizes).tolist()
    rows = logits.shape[0]
    lengths, coming = read[:rows], read[rows : rows + len(prompts)]
    if not all(lengths[row] for row in seen):
        raise ValueError(_NAN)
    for vision in prompts:
        vision.begin()
    if any(coming):
        totals = read[-len(prompts) :] if wanted is not plausible else lengths
        new = _places(missing.cumsum(1, dtype=torch.int32), max(coming))
        for index, count in enumerate(coming):
            if count:
                in_use = totals[index] - count
                prompts[index].keep(new[index, :count], wanted[index], in_use)
    words = _places(ranks, max(lengths[row] for row in seen))
    for row, vision in seen.items():
        if vision.bounded:
            vision.mark(words[row, : lengths[row]])
    return words, lengths


def _union(plausible: Tensor, seen: Mapping[int, Columns], vision: Columns) -> Tensor:
    """What is plausible in any row that has these columns."""
    rows = [plausible[row] for row, own in seen.items() if own is vision]
    return rows[0] if len(rows) == 1 else torch.stack(rows).any(0)


def _places(ranks: Tensor, count: int) -> Tensor:
    """Where a mask is true, (B, count), from its running sums (B, V); V where it is no more.

    `nonzero` would do the same for a mask, but a GPU would have to be waited for.
    """
    order = torch.arange(1, count + 1, dtype=ranks.dtype, device=ranks.device)
    return torch.searchsorted(ranks, order.expand(ranks.shape[0], count).contiguous())


def _together(seen: Mapping[int, Columns], lengths: Sequence[int]) -> Iterator[slice]:
    """Rows that one call of `_refine` takes: neighbours, alike, and small enough for one block."""
    rows: list[int] = []
    for row, vision in seen.items():
        if rows:
            start, last = rows[0], seen[rows[-1]]
            size = 4 * vision.tokens * max(lengths[start : row + 1]) * (len(rows) + 1)
            fits = vision.complete and last.complete and size <= block_bytes(vision.slots.device)
            if not (fits and row == rows[-1] + 1 and vision.tokens == last.tokens):
                yield slice(start, rows[-1] + 1)
                rows = []
        rows.append(row)
    yield slice(rows[0], rows[-1] + 1)


def _refine(
    refined: Tensor,
    logits: Tensor,
    words: Tensor,
    lengths: Sequence[int],
    visions: Sequence[Columns],
    config: ReVisiTConfig,
    generator: torch.Generator | None,
) -> list[Step]:
    """Project, select and refine for rows with equally many vision states; writes `refined`."""
    size = max(lengths)
    beyond = None
    if size < words.shape[1]:
        words = words[:, :size]
    if size > min(lengths):
        beyond = words == logits.shape[1]
        words = words.masked_fill(beyond, 0)
    found = Found(visions, words)
    log_p = _log_softmax(logits.gather(1, words), beyond)
    distances = _distances(log_p, found, beyond, config)
    choice = select(distances, config.selection, generator)
    values = log_p + _log_softmax(found.at(choice).float(), beyond)
    if beyond is None:
        refined.scatter_(1, words, values)
    else:
        refined.scatter_reduce_(1, words, values, "amax")
    return [
        Step(refined[row], words[row, :length], choice[row], distances[row])
        for row, length in enumerate(lengths)
    ]


def _log_softmax(logits: Tensor, beyond: Tensor | None) -> Tensor:
    """Over the entries that are not `beyond` V_cons, which get -inf."""
    return (logits if beyond is None else logits.masked_fill(beyond, -math.inf)).log_softmax(1)


def _distances(log_p: Tensor, found: Found, beyond: Tensor | None, config: ReVisiTConfig) -> Tensor:
    """The divergence of every vision state, (rows, M), block by block."""
    kind = config.divergence
    if beyond is not None:
        log_p = log_p.masked_fill(beyond, _IMPOSSIBLE)
        beyond = beyond.unsqueeze(2)
    one_pass = log_p.device.type in _ONE_PASS
    prepared = onepass.base(log_p, kind, config.alpha < _FAINT) if one_pass else None
    widest = max(_NARROWEST, block_bytes(log_p.device) // (4 * log_p.numel()))
    count = math.ceil(found.tokens / widest)
    parts = []
    for block in found.blocks(math.ceil(found.tokens / count)):
        logits = block.float()
        if beyond is not None:
            logits.masked_fill_(beyond, _IMPOSSIBLE)
        if prepared is None:
            parts.append(divergence(log_p, logits.log_softmax(1), kind))
        else:
            parts.append(onepass.distances(prepared, logits, kind))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
