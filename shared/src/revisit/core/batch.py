"""One decoding step for the rows of a batch, fast.

What it computes is in `revisit.core.step`, formula by formula. Here the rows share every pass over
memory, whatever the number of their vision states, of their plausible words, and their settings:
the shorter are filled up to the longest, and what fills them is left out of sums and choices. So a
step takes as many operators for many rows as for one, until a temporary would exceed its budget;
then the rows are taken in parts. Words that are new to a prompt cost a matrix product, and a few
operators more, for each prompt that has some. A row with a single plausible word is done: that
word is certain whatever the vision token. All sizes that depend on the data are read at once: a GPU
is waited for once a step.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from revisit.core import onepass
from revisit.core.columns import Columns, positions, put
from revisit.core.session import Session
from revisit.core.step import LARGEST, Step, check, select

# A logit whose probability is 0, in place of -inf where 0 * inf would be NaN.
_IMPOSSIBLE = -1e20


def refine(scores: Tensor, sessions: Sequence[Session | None]) -> "tuple[Tensor, Decided]":
    """Refine a batch: each row by its own session, whatever its neighbours are.

    Args:
        scores: (B, V) scores of the model; any floating dtype.
        sessions: B entries of one pool, shared by rows of one prompt; rows with None keep their
            scores.

    Returns:
        (B, V) float32 refined scores, and what was decided for each row.

    Raises:
        ValueError: the scores of a row with a session hold NaN, or are -inf for every token; the
            sessions are not of one pool, or one of them is closed.
    """
    first = next((session for session in sessions if session is not None), None)
    if first is None:
        return scores.to(torch.float32, copy=True), Decided(len(sessions))
    pool = first.columns.pool
    if pool.latest is None or pool.latest.sessions != list(sessions):
        pool.latest = Rows(sessions)
    rows: Rows = pool.latest
    logits = scores.detach().to(pool.table.device, torch.float32)
    own = logits if rows.index is None else logits.index_select(0, rows.index)
    refined, steps = _refine(own, rows)
    if rows.index is not None:
        refined = logits.index_copy(0, rows.index, refined)
    return refined.to(scores.device), steps


class Rows:
    """What the sessions of a batch decide alone, made once for all steps that they take together.

    Attributes:
        seeing: the rows that have a session; all that follows is about these R rows alone.
        index: (R,) the same on the device, None where all have one.
        prompts: the P distinct prompts, and `slots` their rows in the tensors of the pool.
        members: (P, most) the rows of each prompt, the first repeated; None where P = R.
        shift: log alpha, or (R, 1) where it differs; `lowest` is the least alpha.
        void: (R, M) bool, what lies behind a row's own vision states; None where M is the same.
        begins: (2, R, 1) where a row begins in flat logits, and its prompt in flat slots.
        ones: (R, V) float32 and `ranks` int32, for each step: memory of this size that is new is
            slower than what is done with it.
    """

    @torch.inference_mode(False)  # its tensors are written in any mode
    def __init__(self, sessions: Sequence[Session | None]) -> None:
        self.sessions = list(sessions)
        self.seeing = [row for row, session in enumerate(sessions) if session is not None]
        self.own = [session for session in sessions if session is not None]
        self.columns = [session.columns for session in self.own]
        self.pool = pool = self.columns[0].pool
        if not all(each.pool is pool and each.open for each in self.columns):
            raise ValueError("the sessions of a batch must be open, and be of one pool")
        device = pool.table.device
        self.index = put(self.seeing, device) if len(self.own) < len(sessions) else None
        self.prompts = list(dict.fromkeys(self.columns))
        places = [each.row for each in self.prompts]
        in_order = places == list(range(places[0], places[0] + len(places)))
        self.slots = slice(places[0], places[-1] + 1) if in_order else put(places, device)
        self.members = None
        if len(self.prompts) < len(self.own):
            each = [[r for r, own in enumerate(self.columns) if own is p] for p in self.prompts]
            most = max(map(len, each))
            self.members = put([r + r[:1] * (most - len(r)) for r in each], device)
        alphas = [session.config.alpha for session in self.own]
        self.lowest = min(alphas)
        logs = [math.log(alpha) if alpha else -math.inf for alpha in alphas]
        self.shift: float | Tensor = logs[0]
        if len(set(logs)) > 1:
            self.shift = torch.tensor(logs, dtype=torch.float32, device=device).unsqueeze(1)
        self.tokens = [each.tokens for each in self.columns]
        self.void = None
        if len(set(self.tokens)) > 1:
            state = torch.arange(max(self.tokens), device=device)
            self.void = state >= put(self.tokens, device).unsqueeze(1)
        first = range(0, len(self.own) * pool.head.size, pool.head.size)
        begins = [list(first), [each.base for each in self.columns]]
        self.begins = put(begins, device).unsqueeze(2)
        self.ones = torch.empty((len(self.own), pool.head.size), device=device)
        self.ranks = torch.empty_like(self.ones, dtype=torch.int32)
        self.kinds = [(each.config.divergence, each.config.selection) for each in self.own]

    def choosing(self, lengths: Sequence[int]) -> list[int]:
        """The rows for which vision states matter: in others the only plausible word is certain."""
        each = enumerate(zip(lengths, self.kinds, strict=True))
        # A random choice is drawn all the same, so that the next ones do not change.
        return [row for row, (size, (_, selection)) in each if size > 1 or selection == "random"]


class Candidates(NamedTuple):
    """The rows of a step in the order in which they are taken, and the words of their V_cons."""

    order: Sequence[int]  # of each, its row
    lengths: Sequence[int]  # |V_cons|
    columns: Sequence[Columns]
    words: Tensor  # (R, C) int64: V_cons, ascending, its last word repeated
    penalty: Tensor | None  # (R, C) float32: what makes a logit there impossible; 0 on V_cons
    places: Tensor  # (R, C) int64: of the words in flat slots
    firsts: Tensor  # (R, C) int32: where their columns begin, in grains
    log_p: Tensor  # (R, C) float32: the model's own distribution; minute beyond V_cons

    def part(self, rows: slice) -> "Candidates":
        """Neighbouring rows alone, with as many words as the longest of them has."""
        if rows == slice(0, len(self.order)):
            return self
        lengths = self.lengths[rows]
        size = max(lengths)
        words, places, firsts, log_p = (
            each[rows, :size] for each in (self.words, self.places, self.firsts, self.log_p)
        )
        penalty = None
        if self.penalty is not None and min(lengths) < size:
            penalty = self.penalty[rows, :size]
        order, columns = self.order[rows], self.columns[rows]
        return Candidates(order, lengths, columns, words, penalty, places, firsts, log_p)


class _Made(NamedTuple):
    """What a step has decided, for the R rows that have a session; S of them have a choice."""

    rows: Rows
    refined: Tensor  # (R, V)
    chosen: tuple[Candidates, Tensor, Tensor] | None  # with distances (S, M), choices (S,)


class Decided:
    """What was decided for each row of a batch, None where a row has no session.

    A row's tensors are views that are made when it is asked for: who reads none pays nothing.
    """

    def __init__(self, count: int, made: _Made | None = None) -> None:
        self._count = count
        self._made = made

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Step | None]:
        return map(self.__getitem__, range(self._count))

    def __getitem__(self, row: int) -> Step | None:
        if not 0 <= row < self._count:
            raise IndexError(f"row {row} of {self._count}")
        if self._made is None or row not in self._made.rows.seeing:
            return None
        rows, refined, chosen = self._made
        own = rows.seeing.index(row)
        scores = refined[own]
        if chosen is None or own not in chosen[0].order:  # the first of states that are all as near
            word = scores.argmax().unsqueeze(0)
            return Step(scores, word, word.new_zeros(()), scores.new_zeros(rows.tokens[own]))
        found, distances, choice = chosen
        place = found.order.index(own)
        return Step(
            scores,
            found.words[place, : found.lengths[place]],
            choice[place],
            distances[place, : found.columns[place].tokens],
        )


def _refine(logits: Tensor, rows: Rows) -> tuple[Tensor, Decided]:
    """Refine rows (R, V) float32 that all have a session."""
    pool = rows.pool
    words, beyond, lengths, choosing, indices = _look_up(logits, rows)
    refined = torch.full(logits.shape, -math.inf, device=logits.device)
    if certain := sorted(set(range(len(lengths))).difference(choosing)):
        those = indices[0, :, 0].take(put(certain, logits.device))
        refined.view(-1).index_fill_(0, those, 0)
    if not choosing:
        return refined, Decided(len(rows.sessions), _Made(rows, refined, None))
    order = _order(rows, lengths, choosing)
    void = rows.void
    if certain or order != choosing:
        index = put(order, logits.device)
        words, indices = words.index_select(0, index), indices.index_select(1, index)
        beyond = None if beyond is None else beyond.index_select(0, index)
        void = None if void is None else void.index_select(0, index)
    at, places = indices
    log_p = logits.take(at).clamp_(max=LARGEST)
    penalty = None
    if beyond is not None:
        log_p.masked_fill_(beyond, _IMPOSSIBLE)
        penalty = beyond * _IMPOSSIBLE
    log_p = log_p.log_softmax(1)
    firsts = pool.slots.take(places)
    sizes, columns = [lengths[row] for row in order], [rows.columns[row] for row in order]
    found = Candidates(order, sizes, columns, words, penalty, places, firsts, log_p)
    distances, choice = _choose(found, rows, void)
    vision = _at(found, choice)
    if beyond is not None:
        vision.masked_fill_(beyond, -math.inf)
    values = log_p + vision.log_softmax(1)
    if beyond is None:
        refined.put_(at, values)
    else:  # what is repeated is less than the word itself
        refined.view(-1).scatter_reduce_(0, at.flatten(), values.flatten(), "amax")
    made = _Made(rows, refined, (found, distances, choice))
    return refined, Decided(len(rows.sessions), made)


def _look_up(
    logits: Tensor, rows: Rows
) -> tuple[Tensor, Tensor | None, list[int], list[int], Tensor]:
    """V_cons of every row; their columns are kept from here on, as many as fit.

    Returns:
        (R, C) token ids, ascending, the last repeated where a row has fewer than C; where that is;
        the number of each row; the rows that have a choice; and (2, R, C) where the words are in
        flat logits and slots.
    """
    pool = rows.pool
    highest = logits.amax(1, keepdim=True)
    # log p(w) - max log p = z(w) - max z: the normalizer cancels.
    bound = highest.clamp(-LARGEST, LARGEST) + rows.shift
    # Ones and zeros in the logits' own dtype: a CPU is several times faster so than with bools.
    ones = torch.ge(logits, bound, out=rows.ones)
    if rows.lowest == 0:  # the bound is -inf, and impossible rows would pass it
        ones *= highest > -math.inf
    ranks = rows.ranks.copy_(ones).cumsum_(1)
    counted = [ranks[:, -1]]
    if rows.members is not None:
        ones = ones[rows.members].amax(1)
        counted.append(ones.sum(1))
    missing = ones.mul_(pool.absent[rows.slots])
    counted.append(missing.sum(1))
    read = [int(count) for count in torch.cat(counted).tolist()]
    count, several = len(rows.own), len(rows.prompts)
    lengths, total, coming = read[:count], read[-2 * several : -several], read[-several:]
    if not all(lengths):
        check(logits)
    pool.step += 1
    for columns in rows.prompts:
        columns.short = 0
    words, beyond = positions(ranks, lengths, pool.numbers)
    indices = words + rows.begins
    pool.used.view(-1).index_fill_(0, indices[1].flatten(), pool.step)
    choosing = rows.choosing(lengths)
    needed = {rows.columns[row] for row in choosing}
    wanted = [new * (each in needed) for new, each in zip(coming, rows.prompts, strict=True)]
    if any(wanted):
        in_use = [every - new for every, new in zip(total, coming, strict=True)]
        pool.keep(rows.prompts, missing, wanted, in_use)
    return words, beyond, lengths, choosing, indices


def _order(rows: Rows, lengths: Sequence[int], choosing: Sequence[int]) -> Sequence[int]:
    """Rows in the order in which they are taken: if not all at once, by kind and size."""
    size = 4 * len(choosing) * max(lengths) * max(rows.tokens)
    short = any(columns.short for columns in rows.prompts)
    if size <= rows.pool.sizes.block and len(set(rows.kinds)) == 1 and not short:
        return choosing
    return sorted(choosing, key=lambda row: (rows.kinds[row], lengths[row] * rows.tokens[row]))


def _choose(found: Candidates, rows: Rows, void: Tensor | None) -> tuple[Tensor, Tensor]:
    """The divergence of every vision state, (R, M), and the state chosen for each row, (R,)."""
    distances = None
    choices = []
    whole = (len(found.order), max(rows.tokens))
    for (kind, selection), group in _groups([rows.kinds[row] for row in found.order]):
        for part in _parts(group, found, rows.pool.sizes.block):
            own = _distances(found.part(part), kind, rows.lowest)
            if own.shape == whole:
                distances = own
            else:
                distances = own.new_empty(whole) if distances is None else distances
                distances[part, : own.shape[1]] = own
        assert distances is not None
        those = distances[group.start : group.stop]
        if void is not None:
            farthest = -math.inf if selection == "max" else math.inf
            those.masked_fill_(void[group.start : group.stop], farthest)
        if selection == "random":
            sessions = [rows.own[found.order[place]] for place in group]
            choices += [
                select(row[: session.columns.tokens], selection, session.generator).unsqueeze(0)
                for row, session in zip(those, sessions, strict=True)
            ]
        else:
            choices.append(select(those, selection))
    assert distances is not None
    return distances, choices[0] if len(choices) == 1 else torch.cat(choices)


def _groups(kinds: Sequence[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], range]]:
    """Runs of rows of one kind."""
    start = 0
    for stop in range(1, len(kinds) + 1):
        if stop == len(kinds) or kinds[stop] != kinds[start]:
            yield kinds[start], range(start, stop)
            start = stop


def _parts(group: range, found: Candidates, limit: int) -> Iterator[slice]:
    """Rows that are taken together: as many as fit, and alone those of which columns are absent."""
    start = group.start
    words = states = 0
    for place in group:
        columns = found.columns[place]
        words, states = max(words, found.lengths[place]), max(states, columns.tokens)
        alone = columns.short or found.columns[place - 1].short
        if place > start and (alone or 4 * (place + 1 - start) * words * states > limit):
            yield slice(start, place)
            start, words, states = place, found.lengths[place], columns.tokens
    yield slice(start, group.stop)


def _distances(found: Candidates, kind: str, lowest: float) -> Tensor:
    """The divergence of every vision state, (R, M), block by block."""
    prepared = onepass.prepare(found.log_p, kind, lowest)
    parts = []
    for block in _blocks(found):
        logits = block.float()
        if found.penalty is not None:
            logits.add_(found.penalty.unsqueeze(2))
        parts.append(onepass.distances(prepared, logits, kind))
    distances = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    return distances[:, : max(columns.tokens for columns in found.columns)]


def _blocks(found: Candidates) -> Iterator[Tensor]:
    """Logits (R, C, b) of some vision states at a time, for the caller to change.

    The last block goes on to a whole grain: vector registers take no remainder then.
    """
    pool = found.columns[0].pool
    grain = pool.sizes.grain
    rows, size = found.words.shape
    grains = max(columns.size for columns in found.columns)
    widest = max(pool.sizes.narrowest, pool.sizes.block // (4 * rows * size))
    width = math.ceil(grains / math.ceil(grains * grain / widest)) * grain
    if found.columns[0].short:
        yield from _partly_kept(found, width)
        return
    firsts = found.firsts.flatten()
    for start in range(0, grains * grain, width):
        window = pool.windows(start, min(width, grains * grain - start))
        yield window.index_select(0, firsts).view(rows, size, -1)


def _partly_kept(found: Candidates, width: int) -> Iterator[Tensor]:
    """The same for one row of which columns are absent: those are projected, and not kept."""
    (columns,), (words,), (firsts,) = found.columns, found.words, found.firsts
    pool = columns.pool
    lacking = _lacking(columns, found.places[0])
    absent = words.take(lacking)
    at_once = pool.sizes.spilled // (absent.numel() * pool.table.element_size())
    wide = width * max(1, at_once // width)
    for start in range(0, columns.tokens, wide):
        projected = columns.project(absent, slice(start, start + wide))
        for offset, some in enumerate(torch.split(projected, width, 1)):
            window = pool.windows(start + offset * width, some.shape[1])
            yield window.index_select(0, firsts).index_copy_(0, lacking, some).unsqueeze(0)


def _lacking(columns: Columns, places: Tensor) -> Tensor:
    """Which words of a row, (c,) their places in flat slots, have no column in the pool.

    Where rows of one prompt lack different words, some that it has are among them.
    """
    absent = columns.pool.absent.take(places)
    return absent.int().topk(min(columns.short, places.shape[0])).indices


def _at(found: Candidates, choice: Tensor) -> Tensor:
    """Logits (R, C) float32 at the vision state chosen for each row."""
    pool = found.columns[0].pool
    places = torch.add(choice.unsqueeze(1), found.firsts, alpha=pool.sizes.grain)
    logits = pool.table.take(places).float()
    for place, columns in enumerate(found.columns):
        if columns.short:
            lacking = _lacking(columns, found.places[place, : found.lengths[place]])
            own = columns.project(found.words[place].take(lacking), choice[place : place + 1])
            logits[place].index_copy_(0, lacking, own[:, 0].float())
    return logits
