"""The six kernels of a step, in Triton; `steps.py` launches them and says what the buffers hold.

    read_logits     (rows, blocks)     logits in float32; of each block of them the two largest
    count_tokens    (prompts, blocks)  V_cons of a block, and how much of it has no column yet
    list_tokens     (prompts, blocks)  V_cons as a list, ascending, with log p; tickets
    project_states  (programs)         columns of the new tokens of all prompts: a grouped product
    compare_states  (rows, tiles)      D(p, q_i) of each vision state, in two passes over V_cons
    refine_scores   (rows, blocks)     the choice, and the scores

Grids and buffers follow from the numbers of rows, tokens and vision states; what depends on data is
a count on the device that a loop or a branch reads. Places in lists come from sums over the blocks
before and a running sum within one, never from atomics: the same input gives the same bits.

A column is the logits of one token at all vision states of a prompt. It lies where its *ticket*
says: ticket t in place t modulo RING. A step issues at most ROOM tickets, so it can overwrite
none of the last RING - ROOM: a token with one of these is *held*, another gets a new ticket.
"""

import math

import torch
import triton
import triton.language as tl

LARGEST = tl.constexpr(torch.finfo(torch.float32).max)
INF = tl.constexpr(math.inf)
ROUNDING = tl.constexpr(1e-6)  # divergences that differ by less are ties, as in core/step.py
BELOW = tl.constexpr(math.log(10))  # nats below the bound in which tokens may fill a tile
TILE = tl.constexpr(64)  # tokens of a product

# What a prompt is: a row of `facts` (slots, 16) int64. SHIFT (log alpha) and SIGN (-1 for "max")
# are the bits of a float32.
STATES_AT, COUNT, COLUMNS_AT, STRIDE, RING, ROOM, KIND, SHIFT, SIGN = (
    tl.constexpr(place) for place in range(9)
)
FACTS = tl.constexpr(16)
# What a step decides of a row: a row of `decided` (rows, 8) int32. JOBS belongs to a prompt.
SIZE, STREAMS, BAD, CHOICE, JOBS, DRAWN = (tl.constexpr(place) for place in range(6))
DECIDED = tl.constexpr(8)


@triton.jit
def _real(fact):
    """The float32 whose bits a prompt's facts hold."""
    return tl.load(fact).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _rounded(x, dtype: tl.constexpr):
    """float32 rounded to the nearest of a dtype, ties to even, as float32."""
    if INTERPRETED and dtype == tl.bfloat16:  # the interpreter rounds towards 0
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = bits.to(tl.float32, bitcast=True)
    else:
        x = x.to(dtype).to(tl.float32)
    return x


# The interpreter is chosen when a kernel is decorated; every release of Triton shows it so.
INTERPRETED = tl.constexpr(not isinstance(_real, triton.JITFunction))


@triton.jit
def _tanh(x):
    """tanh of float32 to some 3e-7 of itself: Triton has none in every release."""
    size, square = tl.abs(x), x * x
    small = x * (1 - square * (1 / 3 - square * (2 / 15 - square * (17 / 315))))
    power = tl.exp(-2 * size)
    large = (1 - power) / (1 + power)
    return tl.where(size < 0.1, small, tl.where(x < 0, -large, large))


@triton.jit
def _product(
    weight, bias, pool, token, state_at, d, W_STRIDE, SCALE: tl.constexpr, CAP: tl.constexpr,
    BK: tl.constexpr, BT: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Logits (BT, BM) of tokens at vision states, summed in float32, rounded as `LMHead.finish`."""
    dtype: tl.constexpr = weight.dtype.element_ty
    total = tl.zeros((BT, BM), tl.float32)
    rows = token.to(tl.int64) * W_STRIDE
    for start in range(0, d, BK):
        k = start + tl.arange(0, BK)
        w = tl.load(weight + rows[:, None] + k[None, :], mask=(k < d)[None, :], other=0.0)
        h = tl.load(pool + state_at[None, :] + k[:, None], mask=(k < d)[:, None], other=0.0)
        if INTERPRETED:  # it would multiply the bits of bfloat16
            w, h = w.to(tl.float32), h.to(tl.float32)
        total = tl.dot(w, h, total, input_precision="ieee")
    x = _rounded(total, dtype)
    if bias is not None:
        x = _rounded(x + tl.load(bias + token).to(tl.float32)[:, None], dtype)
    if SCALE != 1:
        x = _rounded(x * SCALE, dtype)
    if CAP is not None:
        x = _rounded(_tanh(_rounded(x / CAP, dtype)), dtype)
        x = _rounded(x * CAP, dtype)
    return x


@triton.jit
def _bounds(tops, r, shift, NB, PB: tl.constexpr):
    """Of row r: its peak, made finite; the least logit of V_cons; the least logit that needs a
    column; 1 if it holds NaN, 2 if no token is possible. A bound of NaN is above every logit.
    """
    b = tl.arange(0, PB)
    first = tl.load(tops + 4 * r * NB + b, mask=b < NB, other=-INF)
    second = tl.load(tops + (4 * r + 1) * NB + b, mask=b < NB, other=-INF)
    highest = tl.max(first, 0)
    peak = tl.minimum(tl.maximum(highest, -LARGEST), LARGEST)
    bound = peak + shift
    nan = tl.sum((second != second).to(tl.int32), 0) > 0
    bad = tl.where(nan, 1, tl.where(highest == -INF, 2, 0))
    above = (first >= bound).to(tl.int32) + (second >= bound).to(tl.int32)
    nothing = float("nan")
    bound = tl.where(bad == 0, bound, nothing)
    # A token that is alone in V_cons is certain: it needs no column.
    need = tl.where(tl.sum(above, 0) == 1, nothing, bound)
    return peak, bound, need, bad


@triton.jit
def _log_sum_exp(x):
    """Of a vector, as a finite number."""
    top = tl.maximum(tl.max(x, 0), -LARGEST)
    return tl.maximum(top + tl.log(tl.sum(tl.exp(x - top), 0)), -LARGEST)


@triton.jit
def read_logits(logits, STRIDE_R, scores, tops, V, NB, B: tl.constexpr):
    """Logits of any dtype, wherever they are, to float32 in `scores`, where the others read."""
    r, b = tl.program_id(0).to(tl.int64), tl.program_id(1)
    w = b * B + tl.arange(0, B)
    z = tl.load(logits + r * STRIDE_R + w, mask=w < V, other=-INF).to(tl.float32)
    tl.store(scores + r * V + w, z, mask=w < V)
    nan = tl.sum((z != z).to(tl.int32), 0) > 0
    z = tl.where(z != z, -INF, z)
    second = tl.max(tl.where(tl.arange(0, B) == tl.argmax(z, 0), -INF, z), 0)
    tl.store(tops + 4 * r * NB + b, tl.max(z, 0))
    tl.store(tops + (4 * r + 1) * NB + b, tl.where(nan, float("nan"), second))
    z = tl.where(z == INF, -INF, z)
    tl.store(tops + (4 * r + 3) * NB + b, _log_sum_exp(z))


@triton.jit
def _blocks(values, NB, PB: tl.constexpr):
    """A number of each block of the vocabulary, (PB,)."""
    b = tl.arange(0, PB)
    return tl.load(values + b, mask=b < NB, other=0)


@triton.jit
def _ranks(flags, every, b, PB: tl.constexpr):
    """Place of each flag (B,) of block b among those of all blocks, `every` (PB,) of them each."""
    before = tl.sum(tl.where(tl.arange(0, PB) < b, every, 0), 0)
    return before + tl.cumsum(flags.to(tl.int32), 0) - 1


@triton.jit
def _lacking(
    scores, batch, fact, table, latest, tops, counts, start, end, b, V, R, NB,
    COUNT_ROWS: tl.constexpr, PB: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Of a block: tickets; tokens that need a column and have none; others that may get one.

    A tile of TILE tokens costs what one token costs, since reading the vision states is most of it.
    So tokens a little below the bound may fill it: they are likely to be needed soon.
    COUNT_ROWS also writes the size of V_cons of each row, and its sum of exp.
    """
    w = b * B + tl.arange(0, B)
    needed, likely = w < 0, w < 0
    for i in range(start, end):
        r = tl.load(batch + R + i).to(tl.int64)
        z = tl.load(scores + r * V + w, mask=w < V, other=-INF)
        peak, bound, need, bad = _bounds(tops, r, _real(fact + SHIFT), NB, PB)
        needed = needed | ((z >= need) & (w < V))
        likely = likely | ((z >= need - BELOW) & (w < V))
        if COUNT_ROWS:
            inside = (z >= bound) & (w < V)
            power = tl.where(inside, tl.exp(tl.minimum(z, LARGEST) - peak), 0.0)
            tl.store(tops + (4 * r + 2) * NB + b, tl.sum(power, 0))
            tl.store(counts + 3 * r * NB + b, tl.sum(inside.to(tl.int32), 0))
    ticket = tl.load(table + w, mask=likely, other=2**30)
    lacks = ticket < latest - (tl.load(fact + RING) - tl.load(fact + ROOM)).to(tl.int32)
    return ticket, lacks & needed, lacks & (needed == 0)


@triton.jit
def count_tokens(
    scores, batch, facts, table, issued, tops, counts, V, R, NB,
    PB: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Counts of a block: V_cons and its sum of exp for each row, new tokens for each prompt."""
    g, b = tl.program_id(0), tl.program_id(1)
    start, end = tl.load(batch + 2 * R + g), tl.load(batch + 2 * R + g + 1)
    if start < end:
        s = tl.load(batch + tl.load(batch + R + start)).to(tl.int64)
        ticket, new, spare = _lacking(
            scores, batch, facts + s * FACTS, table + s * V, tl.load(issued + s), tops, counts,
            start, end, b, V, R, NB, True, PB, B,
        )  # fmt: skip
        tl.store(counts + (3 * g + 1) * NB + b, tl.sum(new.to(tl.int32), 0))
        tl.store(counts + (3 * g + 2) * NB + b, tl.sum(spare.to(tl.int32), 0))


@triton.jit
def list_tokens(
    scores, batch, facts, table, issued, tops, counts, lists, log_p, decided, job_tokens, MOST,
    V, R, NB, PB: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """V_cons of each row as a list of tokens and their places, -1 where one has no column."""
    g, b = tl.program_id(0), tl.program_id(1)
    start, end = tl.load(batch + 2 * R + g), tl.load(batch + 2 * R + g + 1)
    jobs = 0
    if start < end:
        s = tl.load(batch + tl.load(batch + R + start)).to(tl.int64)
        fact, latest, w = facts + s * FACTS, tl.load(issued + s), b * B + tl.arange(0, B)
        ring, room = tl.load(fact + RING).to(tl.int32), tl.load(fact + ROOM).to(tl.int32)
        ticket, new, spare = _lacking(
            scores, batch, fact, table + s * V, latest, tops, counts,
            start, end, b, V, R, NB, False, PB, B,
        )  # fmt: skip
        news = _blocks(counts + (3 * g + 1) * NB, NB, PB)
        spares = _blocks(counts + (3 * g + 2) * NB, NB, PB)
        granted = tl.minimum(tl.sum(news, 0), room)
        # The last tile is filled, but never at the price of a column that is held.
        extra = tl.minimum(tl.cdiv(granted, TILE) * TILE, room)
        extra = tl.maximum(tl.minimum(extra, ring - room - latest) - granted, 0)
        jobs = granted + tl.minimum(tl.sum(spares, 0), extra)
        rank, more = _ranks(new, news, b, PB), _ranks(spare, spares, b, PB)
        taken = (new & (rank < room)) | (spare & (more < extra))
        rank = tl.where(new, rank, granted + more)
        ticket = tl.where(taken, latest + rank, ticket)
        tl.store(table + s * V + w, ticket, mask=taken)
        tl.store(job_tokens + g.to(tl.int64) * MOST + rank, w, mask=taken)
        place = tl.where(new & (taken == 0), -1, ticket % tl.maximum(ring, 1))
        for i in range(start, end):
            r = tl.load(batch + R + i).to(tl.int64)
            z = tl.load(scores + r * V + w, mask=w < V, other=-INF)
            peak, bound, need, bad = _bounds(tops, r, _real(fact + SHIFT), NB, PB)
            inside = (z >= bound) & (w < V)
            every = _blocks(counts + 3 * r * NB, NB, PB)
            total = tl.sum(_blocks(tops + (4 * r + 2) * NB, NB, PB), 0)
            k = _ranks(inside, every, b, PB)
            tl.store(lists + 2 * r * V + k, w, mask=inside)
            tl.store(lists + (2 * r + 1) * V + k, place, mask=inside)
            tl.store(log_p + r * V + k, tl.minimum(z, LARGEST) - peak - tl.log(total), mask=inside)
            if b == 0:
                tl.store(decided + r * DECIDED + SIZE, tl.sum(every, 0))
                tl.store(decided + r * DECIDED + STREAMS, (tl.sum(news, 0) > room).to(tl.int32))
                tl.store(decided + r * DECIDED + BAD, bad)
    if b == 0:
        tl.store(decided + g * DECIDED + JOBS, jobs)


@triton.jit
def project_states(
    weight, bias, pool, batch, facts, issued, decided, job_tokens, MOST, R, d, W_STRIDE,
    PR: tl.constexpr, SCALE: tl.constexpr, CAP: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Columns of new tokens: each program takes tiles of what all prompts have to do."""
    every = tl.arange(0, PR)
    start = tl.load(batch + 2 * R + every, mask=every < R, other=0)
    end = tl.load(batch + 2 * R + every + 1, mask=every < R, other=0)
    used = start < end
    slot = tl.load(batch + tl.load(batch + R + start, mask=used, other=0), mask=used, other=0)
    height = tl.load(facts + slot * FACTS + COUNT, mask=used, other=0).to(tl.int32)
    jobs = tl.load(decided + every * DECIDED + JOBS, mask=used, other=0)
    tiles = tl.cdiv(jobs, TILE) * tl.cdiv(height, BM)
    ends = tl.cumsum(tiles, 0)
    for tile in range(tl.program_id(0), tl.sum(tiles, 0), tl.num_programs(0)):
        g = tl.sum((ends <= tile).to(tl.int32), 0)
        within = tile - tl.sum(tl.where(every < g, tiles, 0), 0)
        s = tl.load(batch + tl.load(batch + R + tl.load(batch + 2 * R + g))).to(tl.int64)
        fact, coming = facts + s * FACTS, tl.load(decided + g * DECIDED + JOBS)
        M = tl.load(fact + COUNT).to(tl.int32)
        wide = tl.cdiv(coming, TILE)  # neighbouring tiles read the same vision states
        j = within % wide * TILE + tl.arange(0, TILE)
        i = within // wide * BM + tl.arange(0, BM)
        token = tl.load(job_tokens + g.to(tl.int64) * MOST + j, mask=j < coming, other=0)
        states = tl.multiple_of(tl.load(fact + STATES_AT), 64)
        out = _product(weight, bias, pool, token, states + tl.minimum(i, M - 1).to(tl.int64) * d,
                       d, W_STRIDE, SCALE, CAP, BK, TILE, BM)  # fmt: skip
        place = (tl.load(issued + s) + j) % tl.load(fact + RING)
        at = tl.multiple_of(tl.load(fact + COLUMNS_AT) + place * tl.load(fact + STRIDE), 64)
        mask = (j < coming)[:, None] & (i < M)[None, :]
        tl.store(pool + at[:, None] + i[None, :], out.to(pool.dtype.element_ty), mask=mask)


@triton.jit
def _logits(
    weight, bias, pool, lists, fact, k, n, i, V, d, W_STRIDE, STREAM: tl.constexpr,
    SCALE: tl.constexpr, CAP: tl.constexpr, BK: tl.constexpr, BT: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Logits (BT, BM) float32 of the tokens k of a row's list, n long, at its vision states i."""
    place = tl.load(lists + V + k, mask=k < n, other=0)
    stride = tl.load(fact + STRIDE)
    at = tl.load(fact + COLUMNS_AT) + tl.maximum(place, 0).to(tl.int64) * stride
    at = tl.multiple_of(at, 64)
    held = (k < n) & (place >= 0)
    x = tl.load(pool + at[:, None] + i[None, :], mask=held[:, None], other=0.0).to(tl.float32)
    if STREAM:
        if tl.min(place, 0) < 0:  # tokens that have no column: multiplied where they are read
            token = tl.load(lists + k, mask=k < n, other=0)
            last = tl.load(fact + COUNT).to(tl.int32) - 1
            states = tl.multiple_of(tl.load(fact + STATES_AT), 64)
            y = _product(weight, bias, pool, token, states + tl.minimum(i, last).to(tl.int64) * d,
                         d, W_STRIDE, SCALE, CAP, BK, BT, BM)  # fmt: skip
            x = tl.where((place < 0)[:, None], y, x)
    return tl.where((k < n)[:, None], x, -INF)


@triton.jit
def _distances(
    weight, bias, pool, lists, log_p, fact, n, i, V, d, W_STRIDE, STREAM: tl.constexpr,
    SCALE: tl.constexpr, CAP: tl.constexpr, BK: tl.constexpr, BT: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """For vision states i (BM,): D(p, q_i), log sum exp, and the least score of V_cons."""
    peak, total = tl.full((BM,), -LARGEST, tl.float32), tl.zeros((BM,), tl.float32)
    for start in range(0, n, BT):
        k = start + tl.arange(0, BT)
        x = _logits(weight, bias, pool, lists, fact, k, n, i, V, d, W_STRIDE, STREAM, SCALE, CAP,
                    BK, BT, BM)  # fmt: skip
        top = tl.maximum(peak, tl.max(x, 0))
        total = total * tl.exp(peak - top) + tl.sum(tl.exp(x - top[None, :]), 0)
        peak = top
    lse = peak + tl.log(total)
    result, least = tl.zeros((BM,), tl.float32), tl.full((BM,), INF, tl.float32)
    kind = tl.load(fact + KIND)
    for start in range(0, n, BT):
        k = start + tl.arange(0, BT)
        x = _logits(weight, bias, pool, lists, fact, k, n, i, V, d, W_STRIDE, STREAM, SCALE, CAP,
                    BK, BT, BM)  # fmt: skip
        plain = tl.load(log_p + k, mask=k < n, other=0.0)
        a, c = tl.maximum(plain, -1e30)[:, None], x - lse[None, :]  # 0 * log 0 is 0
        p, q = tl.exp(a), tl.exp(c)
        mean = (p + q) * 0.5
        log_m = tl.log(tl.maximum(mean, 1.2e-38))
        if kind == 0:
            term = mean * (log_m - (a + c) * 0.5)
            term = tl.where((plain == -INF)[:, None], INF, term)  # where p has a zero, q has none
        else:
            term = (p * (a - log_m) + q * (c - log_m)) * 0.5
        result += tl.sum(tl.where((k < n)[:, None], term, 0.0), 0)
        score = plain[:, None] + x  # -inf where it is impossible, and beyond the list
        least = tl.minimum(least, tl.min(tl.where(score == -INF, INF, score), 0))
    return result, lse, least - lse


@triton.jit
def compare_states(
    weight, bias, pool, batch, facts, lists, log_p, decided, distances, nearest,
    V, d, W_STRIDE, LONGEST, NT, SCALE: tl.constexpr, CAP: tl.constexpr,
    BK: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Distances of a tile of vision states, so signed that the least is chosen; the tile's least.

    BT tokens are taken at a time, BS where some have no column.
    """
    r, t = tl.program_id(0).to(tl.int64), tl.program_id(1)
    s, n = tl.load(batch + r).to(tl.int64), tl.load(decided + r * DECIDED + SIZE)
    fact = facts + tl.maximum(s, 0) * FACTS
    M = tl.load(fact + COUNT).to(tl.int32)
    if (s >= 0) & (n > 0) & (t * BM < M):
        i = t * BM + tl.arange(0, BM)
        result, lse = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
        least = tl.zeros((BM,), tl.float32)
        lists, log_p = lists + 2 * r * V, log_p + r * V
        if n > 1:
            if tl.load(decided + r * DECIDED + STREAMS) > 0:
                result, lse, least = _distances(weight, bias, pool, lists, log_p, fact, n, i, V, d,
                    W_STRIDE, True, SCALE, CAP, BK, BS, BM)  # fmt: skip
            else:
                result, lse, least = _distances(weight, bias, pool, lists, log_p, fact, n, i, V, d,
                    W_STRIDE, False, SCALE, CAP, BK, BT, BM)  # fmt: skip
        result = tl.where(i < M, result * _real(fact + SIGN), INF)
        nan = tl.sum((result != result).to(tl.int32), 0) > 0
        tl.store(nearest + r * NT + t, tl.where(nan, float("nan"), tl.min(result, 0)))
        at = distances + 3 * r * LONGEST + i
        tl.store(at, result, mask=i < M)
        tl.store(at + LONGEST, lse, mask=i < M)
        tl.store(at + 2 * LONGEST, least, mask=i < M)


@triton.jit
def _choose(distances, nearest, drawn, M, sign, NT, PT: tl.constexpr, BM: tl.constexpr):
    """The first of the nearest vision states, as `core.step.select`; or the one that was drawn."""
    t = tl.arange(0, PT)
    best = tl.load(nearest + t, mask=t < tl.cdiv(M, BM), other=INF)
    nan = tl.sum((best != best).to(tl.int32), 0) > 0
    limit = tl.min(best, 0)
    limit = limit * tl.where(sign < 0, 1 - ROUNDING, 1 + ROUNDING) + ROUNDING
    i = tl.min(tl.where(best <= limit, t, PT - 1), 0) * BM + tl.arange(0, BM)
    value = tl.load(distances + i, mask=i < M, other=INF)
    choice = tl.min(tl.where((value <= limit) & (i < M), i, M), 0)
    choice = tl.where(nan | (choice >= M), 0, choice)
    return tl.where(drawn >= 0, drawn, choice)


@triton.jit
def refine_scores(
    scores, weight, bias, pool, batch, facts, issued, tops, counts, lists, log_p, decided,
    distances, nearest, divergences, V, R, d, W_STRIDE, LONGEST, NB, NT,
    PB: tl.constexpr, PT: tl.constexpr, SCALE: tl.constexpr, CAP: tl.constexpr,
    FILL: tl.constexpr, B: tl.constexpr, BK: tl.constexpr, BS: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Scores of a block, in place of its logits: each address has one writer."""
    r, b = tl.program_id(0).to(tl.int64), tl.program_id(1)
    s, n = tl.load(batch + r).to(tl.int64), tl.load(decided + r * DECIDED + SIZE)
    fact, sign = facts + tl.maximum(s, 0) * FACTS, _real(facts + tl.maximum(s, 0) * FACTS + SIGN)
    if (s >= 0) & (n > 0):  # else a plain row, or a bad one: it stays as it came
        peak, bound, need, bad = _bounds(tops, r, _real(fact + SHIFT), NB, PB)
        M, here = tl.load(fact + COUNT).to(tl.int32), distances + 3 * r * LONGEST
        drawn = tl.load(decided + r * DECIDED + DRAWN)
        choice = _choose(here, nearest + r * NT, drawn, M, sign, NT, PT, BM)
        lse = tl.load(here + LONGEST + choice)
        w = b * B + tl.arange(0, B)
        z = tl.load(scores + r * V + w, mask=w < V, other=-INF)
        beyond = tl.full((B,), -INF, tl.float32)
        block = tl.arange(0, PB)
        if FILL:  # as `core.left_out.fill_left_out`
            every = tl.load(tops + (4 * r + 3) * NB + block, mask=block < NB, other=-INF)
            least = tl.abs(tl.load(here + 2 * LONGEST + choice))
            beyond = (z - _log_sum_exp(every) - 1) * (32 * tl.maximum(least, 512))
        tl.store(scores + r * V + w, beyond, mask=(w < V) & (z < bound))
        every = _blocks(counts + 3 * r * NB, NB, PB)
        begin = tl.sum(tl.where(block < b, every, 0), 0)
        end = begin + tl.sum(tl.where(block == b, every, 0), 0)
        same = choice + tl.zeros((16,), tl.int32)  # a product takes 16 vision states at least
        for start in range(begin, end, BS):
            k = start + tl.arange(0, BS)
            x = tl.zeros((BS,), tl.float32)
            if n > 1:
                x = tl.max(_logits(weight, bias, pool, lists + 2 * r * V, fact, k, end, same, V, d,
                                   W_STRIDE, True, SCALE, CAP, BK, BS, 16), 1)  # fmt: skip
            plain = tl.load(log_p + r * V + k, mask=k < end, other=0.0)
            token = tl.load(lists + 2 * r * V + k, mask=k < end, other=0)
            tl.store(scores + r * V + token, plain + x - lse, mask=k < end)
        if b == 0:
            tl.store(decided + r * DECIDED + CHOICE, choice)
            tl.store(divergences + r, tl.load(here + choice) * sign)
    if (s < 0) & (b == 0):
        tl.store(decided + r * DECIDED + SIZE, 0)
        tl.store(decided + r * DECIDED + BAD, 0)
    if b == 0:  # prompt r of the batch: nothing reads its tickets any more
        first = tl.load(batch + 2 * R + r)
        if first < tl.load(batch + 2 * R + r + 1):
            slot = tl.load(batch + tl.load(batch + R + first))
            jobs = tl.load(decided + r * DECIDED + JOBS)
            tl.store(issued + slot, tl.load(issued + slot) + jobs)
