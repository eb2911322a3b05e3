"""One decoding step for the rows of a batch, in plain PyTorch, on any device: row after row.

What it computes is in `revisit.core.step`, formula by formula. Here the projections that earlier
steps computed are kept (`revisit.core.columns`), the divergence reads memory few times
(`revisit.core.onepass`), and a row with one token in V_cons is done: that token is certain whatever
the vision state.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from revisit.core import onepass
from revisit.core.head import without_autocast
from revisit.core.session import Session
from revisit.core.step import LARGEST, Step, check, constrain, select


@torch.no_grad()
def refine(scores: Tensor, sessions: Sequence[Session | None]) -> tuple[Tensor, list[Step | None]]:
    """Refine a batch: each row by its session, whatever its neighbours are.

    Args:
        scores: (B, V) scores of the model; any floating dtype.
        sessions: B entries, shared by rows of one prompt; rows with None keep their scores.

    Returns:
        (B, V) float32 refined scores, on the device of `scores`, and what was decided for each row:
        a `Step` whose `scores` are a view of the row, None without a session.

    Raises:
        ValueError: the scores of a row with a session hold NaN, or are -inf for every token; a
            session is closed; there are not as many as rows.
    """
    device = next((each.columns.table.device for each in sessions if each), scores.device)
    refined = scores.to(device, torch.float32, copy=True)
    for row, highest, session in zip(refined, refined.amax(1).tolist(), sessions, strict=True):
        if session and not highest > -math.inf:  # NaN where the row holds one
            check(row)
    with without_autocast(device):
        pairs = zip(refined, sessions, strict=True)
        steps = [_refine(row, each) if each else None for row, each in pairs]
    return refined.to(scores.device), steps


def _refine(scores: Tensor, session: Session) -> Step:
    """The step of one row, whose scores (V,) float32 are replaced by the refined ones."""
    config, columns = session.config, session.columns
    tokens = constrain(scores, config.alpha)
    log_p = scores.index_select(0, tokens).clamp_(max=LARGEST).log_softmax(0)
    scores.fill_(-math.inf)
    if len(tokens) == 1:
        # A random choice is drawn all the same, so that the next ones do not change.
        distances = scores.new_zeros(len(columns.states))
        choice = select(distances, config.selection, session.generator)
        return Step(scores.index_copy_(0, tokens, log_p), tokens, choice, distances)
    kept = columns.keep(tokens)
    p = onepass.prepare(log_p, config.divergence, config.alpha)
    parts = [onepass.distances(p, block, config.divergence) for block in columns.blocks(kept)]
    distances = torch.cat(parts)
    choice = select(distances, config.selection, session.generator)  # picks the vision token
    log_q = columns.at(kept, choice).float().log_softmax(0)
    return Step(scores.index_copy_(0, tokens, log_p + log_q), tokens, choice, distances)
