"""One decoding step for the rows of a batch, fast.

What it computes is in `revisit.core.step`, formula by formula. Here the rows share passes over
memory, each row's vision-token logits come from the columns that its session keeps, and all sizes
that depend on the data are read at once: a GPU is waited for once a step.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from revisit.core import onepass
from revisit.core.columns import Columns, Found
from revisit.core.session import Session
from revisit.core.step import LARGEST, Step, check, divergence, select

# A logit whose probability is 0, in place of -inf where 0 * inf would be NaN.
_IMPOSSIBLE = -1e20

# Blocks of fewer vision states cost more than the cache gains.
_NARROWEST = 128


def refine(scores: Tensor, sessions: Sequence[Session | None]) -> tuple[Tensor, list[Step | None]]:
    """Refine a batch: each row by its own session, whatever its neighbours are.

    Args:
        scores: (B, V) scores of the model; any floating dtype.
        sessions: B entries, shared by rows of one prompt; rows with None keep their scores.

    Returns:
        (B, V) float32 refined scores, and what was decided for each row.

    Raises:
        ValueError: the scores of a row with a session hold NaN, or are -inf for every token.
    """
    seen = {row: session for row, session in enumerate(sessions) if session is not None}
    steps: list[Step | None] = [None] * len(sessions)
    if not seen:
        return scores.to(torch.float32, copy=True), steps
    device = next(iter(seen.values())).columns.slots.device
    logits = scores.to(device, torch.float32)
    words, lengths = _look_up(logits, seen)
    refined = torch.full_like(logits, -math.inf)
    if len(seen) < len(sessions):
        for row in range(len(sessions)):
            if row not in seen:
                refined[row] = logits[row]
    for part in _parts(seen, lengths):
        own = [seen[row] for row in range(part.start, part.stop)]
        steps[part] = _refine(refined[part], logits[part], words[part], lengths[part], own)
    return refined.to(scores.device), steps


def _look_up(logits: Tensor, seen: Mapping[int, Session]) -> tuple[Tensor, list[int]]:
    """V_cons of every row; their columns are kept from here on, as many as fit.

    Returns:
        (B, C) token ids, ascending, V where a row has fewer than C, and the number of each row.
    """
    plausible = _plausible(logits, seen)
    ranks = plausible.cumsum(1, dtype=torch.int32)
    prompts = list(dict.fromkeys(session.columns for session in seen.values()))
    wanted = plausible
    if len(prompts) < logits.shape[0]:
        wanted = torch.stack([_union(plausible, seen, columns) for columns in prompts])
    absent = [columns.absent for columns in prompts]
    missing = wanted & (absent[0] if len(prompts) == 1 else torch.stack(absent))
    sizes = [ranks[:, -1], missing.sum(1, dtype=torch.int32)]
    if wanted is not plausible:
        sizes.append(wanted.sum(1, dtype=torch.int32))
    read = torch.cat(sizes).tolist()
    rows = logits.shape[0]
    lengths, coming = read[:rows], read[rows : rows + len(prompts)]
    if not all(lengths[row] for row in seen):
        check(logits[list(seen)])
    for columns in prompts:
        columns.begin()
    if any(coming):
        totals = read[-len(prompts) :] if wanted is not plausible else lengths
        new = _positions(missing.cumsum(1, dtype=torch.int32), max(coming))
        for index, count in enumerate(coming):
            if count:
                in_use = totals[index] - count
                prompts[index].keep(new[index, :count], wanted[index], in_use)
    words = _positions(ranks, max(lengths[row] for row in seen))
    for row, session in seen.items():
        if session.columns.bounded:
            session.columns.mark(words[row, : lengths[row]])
    return words, lengths


def _plausible(logits: Tensor, seen: Mapping[int, Session]) -> Tensor:
    """(B, V) bool, V_cons of every row; nothing where a row holds NaN or no possible token."""
    highest = logits.amax(1, keepdim=True)
    alphas = {session.config.alpha for session in seen.values()}
    # log p(w) - max log p = z(w) - max z: the normalizer cancels.
    logs = {alpha: math.log(alpha) if alpha else -math.inf for alpha in alphas}
    shift: float | Tensor = logs[next(iter(alphas))]
    if len(alphas) > 1:
        each = [logs[seen[row].config.alpha] if row in seen else 0.0 for row in range(len(logits))]
        shift = torch.tensor(each, device=logits.device).unsqueeze(1)
    plausible = logits >= highest.clamp(max=LARGEST) + shift
    # With alpha 0 the bound is -inf, and impossible rows would pass it.
    return plausible & (highest > -math.inf) if 0 in alphas else plausible


def _union(plausible: Tensor, seen: Mapping[int, Session], columns: Columns) -> Tensor:
    """What is plausible in any row that has these columns."""
    rows = [plausible[row] for row, session in seen.items() if session.columns is columns]
    return rows[0] if len(rows) == 1 else torch.stack(rows).any(0)


def _positions(ranks: Tensor, count: int) -> Tensor:
    """Where a mask is true, (B, count), from its running sums (B, V); V where it is no more.

    `nonzero` would do the same for a mask, but a GPU would have to be waited for.
    """
    order = torch.arange(1, count + 1, dtype=ranks.dtype, device=ranks.device)
    return torch.searchsorted(ranks, order.expand(ranks.shape[0], count).contiguous())


def _parts(seen: Mapping[int, Session], lengths: Sequence[int]) -> Iterator[slice]:
    """Rows that one call of `_refine` takes: neighbours, alike, and small enough for one block."""
    rows: list[int] = []
    for row in seen:
        if rows and not _joins(row, rows, seen, lengths):
            yield slice(rows[0], rows[-1] + 1)
            rows = []
        rows.append(row)
    yield slice(rows[0], rows[-1] + 1)


def _joins(
    row: int, rows: Sequence[int], seen: Mapping[int, Session], lengths: Sequence[int]
) -> bool:
    """Whether a row can be taken together with the rows before it."""
    own, last = seen[row].columns, seen[rows[-1]].columns
    size = 4 * own.tokens * max(lengths[rows[0] : row + 1]) * (len(rows) + 1)
    return (
        row == rows[-1] + 1
        and own.tokens == last.tokens
        and own.complete
        and last.complete
        and size <= own.block_bytes
        and _kind(seen[row]) == _kind(seen[rows[-1]])
    )


def _kind(session: Session) -> tuple[str, str]:
    return session.config.divergence, session.config.selection


def _refine(
    refined: Tensor,
    logits: Tensor,
    words: Tensor,
    lengths: Sequence[int],
    sessions: Sequence[Session],
) -> list[Step | None]:
    """Project, select and refine for rows with equally many vision states; writes `refined`."""
    size = max(lengths)
    beyond = None
    if size < words.shape[1]:
        words = words[:, :size]
    if size > min(lengths):
        beyond = words == logits.shape[1]
        words = words.masked_fill(beyond, 0)
    found = Found([session.columns for session in sessions], words)
    log_p = _log_softmax(logits.gather(1, words).clamp_(max=LARGEST), beyond)
    distances = _distances(log_p, found, beyond, sessions)
    choice = _select(distances, sessions)
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


def _distances(
    log_p: Tensor, found: Found, beyond: Tensor | None, sessions: Sequence[Session]
) -> Tensor:
    """The divergence of every vision state, (rows, M), block by block."""
    kind = sessions[0].config.divergence
    if beyond is not None:
        log_p = log_p.masked_fill(beyond, _IMPOSSIBLE)
        beyond = beyond.unsqueeze(2)
    one_pass = onepass.serves(log_p.device)
    lowest = min(session.config.alpha for session in sessions)
    prepared = onepass.prepare(log_p, kind, lowest) if one_pass else None
    widest = max(_NARROWEST, sessions[0].columns.block_bytes // (4 * log_p.numel()))
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


def _select(distances: Tensor, sessions: Sequence[Session]) -> Tensor:
    selection = sessions[0].config.selection
    if selection != "random":
        return select(distances, selection)
    each = zip(distances, sessions, strict=True)
    return torch.stack([select(row, selection, session.generator) for row, session in each])
