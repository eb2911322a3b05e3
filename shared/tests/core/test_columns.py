"""What is kept of the columns: each once, within one budget, whoever comes and goes."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revisit.config import ReVisiTConfig
from revisit.core.batch import refine
from revisit.core.columns import CPU, GPU, Columns, Pool
from revisit.core.head import LMHead
from revisit.core.session import Session
from revisit.core.step import step
from test_step import BIG

# Columns lie one behind the other, without a gap: budgets can be told in columns.
TIGHT = CPU._replace(grain=1)


class Counted:
    """An LM head that tells which words it projected, and how many at how many states a time."""

    def __init__(self, weight):
        self.plain = LMHead(weight)
        self.words = []
        self.shapes = []

    def __getattr__(self, name):
        return getattr(self.plain, name)

    def project(self, words, states):
        self.words.extend(words.tolist())
        self.shapes.append((len(words), len(states)))
        return self.plain.project(words, states)

    def told(self):
        words, self.words = self.words, []
        return words


def counted(vocabulary, width=2):
    return Counted(torch.randn(vocabulary, width, generator=torch.Generator().manual_seed(1)))


def session(pool, tokens, **config):
    generator = torch.Generator().manual_seed(tokens)
    states = torch.randn(tokens, pool.head.width, generator=generator)
    return Session(states, pool, ReVisiTConfig(**config))


def likely(*rows, size):
    """Logits whose V_cons are the given words of each row."""
    logits = torch.full((len(rows), size), -100.0)
    for row, words in zip(logits, rows, strict=True):
        row[list(words)] = torch.linspace(0, 1, len(words))
    return logits


def exact(logits, sessions):
    """Refine, compare each row with the plain formulas, and return what was decided."""
    refined, steps = refine(logits, sessions)
    for row, one in enumerate(sessions):
        alone = step(logits[row], one.columns.states, one.columns.pool.head, one.config)
        torch.testing.assert_close(refined[row], alone.scores, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(steps[row].distances, alone.distances, rtol=1e-4, atol=1e-5)
    return steps


def project_only_new(head, logits, sessions):
    """Which words a step projects."""
    head.told()
    refine(logits, sessions)
    return head.told()


def test_no_column_is_computed_twice_below_the_budget():
    generator = torch.Generator().manual_seed(0)
    head = counted(40, 8)
    one = session(Pool(head, BIG), 5, alpha=0.01)
    needed = set()
    for _ in range(20):
        logits = torch.randn(3, 40, generator=generator) * 3
        _, steps = refine(logits, [one, None, one])
        needed |= {word for row in (0, 2) for word in steps[row].vocabulary.tolist()}
    assert sorted(head.told()) == sorted(needed)
    assert one.columns.held == len(needed)


def test_a_full_pool_drops_what_was_not_used_for_longest():
    head = counted(30)
    pool = Pool(head, 10 * 3 * 4, TIGHT)
    one = session(pool, 3)
    computed = [
        project_only_new(head, likely(words, size=30), [one])
        for words in ([0, 1, 2, 3], [4, 5, 6], [0, 1, 7], [0, 1, 8, 9, 10], [0, 1, 7, 9], [4, 5, 6])
    ]
    assert computed == [[0, 1, 2, 3], [4, 5, 6], [7], [8, 9, 10], [], []]
    assert one.columns.held == 10
    assert pool.absent.sum() == 20
    # 2 went, since 3 is the later word of the same step; both are older than 4, 5 and 6.
    assert len(project_only_new(head, likely([2, 3], size=30), [one])) == 1


def test_prompts_that_share_a_pool_drop_their_own():
    head = counted(30)
    pool = Pool(head, 10 * 3 * 4, TIGHT)
    first, second = session(pool, 3), session(pool, 3)
    both = [first, second]
    project_only_new(head, likely(range(5), range(3), size=30), both)
    project_only_new(head, likely([0, 1], [0, 5, 6], size=30), both)
    assert (first.columns.held, second.columns.held) == (5, 5)
    exact(likely([0, 7], [8, 9, 0], size=30), both)
    assert (first.columns.held, second.columns.held) == (5, 5)
    assert project_only_new(head, likely([0, 1, 7], [0, 8, 9], size=30), both) == []


def test_of_a_v_cons_that_does_not_fit_only_the_rest_is_computed_each_step():
    head = counted(30)
    pool = Pool(head, 10 * 3 * 4, TIGHT)
    one = session(pool, 3)
    exact(likely(range(14), size=30), [one])
    exact(likely(range(2, 14), size=30), [one])
    assert one.columns.held == 10 and one.columns.short == 2
    again = project_only_new(head, likely(range(2, 14), size=30), [one])
    assert set(again) == {12, 13}


def test_rows_of_one_prompt_may_lack_different_words():
    head = counted(30)
    one = session(Pool(head, 5 * 3 * 4, TIGHT), 3)
    exact(likely(range(9), range(4, 12), [0, 1], size=30), [one] * 3)
    assert one.columns.held == 5 and one.columns.short == 7


@pytest.mark.parametrize("budget", [0, 7])
def test_a_budget_smaller_than_a_column_keeps_nothing(budget):
    head = counted(30)
    pool = Pool(head, budget, TIGHT)
    one = session(pool, 3)
    for _ in range(2):
        exact(likely(range(4), size=30), [one])
        assert sorted(set(head.told())) == [0, 1, 2, 3]
    assert one.columns.held == 0


def test_a_prompt_that_has_ended_gives_back_what_it_held():
    head = counted(30)
    pool = Pool(head, 10 * 3 * 4, TIGHT)
    first = session(pool, 3)
    refine(likely(range(10), size=30), [first])
    second = session(pool, 3)
    refine(likely(range(4), size=30), [second])
    assert second.columns.short == 4
    first.close()
    first.close()  # nothing more to give back
    exact(likely(range(4), size=30), [second])
    assert second.columns.held == 4 and second.columns.short == 0
    third = session(pool, 6)
    assert third.columns.row == first.columns.row
    exact(likely(range(8), size=30), [third])
    assert third.columns.held == 3  # twice as long as the six that are free


def test_a_row_of_the_pool_that_is_used_again_knows_nothing_of_the_prompt_before():
    head = counted(30)
    pool = Pool(head, BIG)
    refine(likely(range(9), size=30), [first := session(pool, 3)])
    first.close()
    exact(likely(range(9), size=30), [second := session(pool, 4)])
    assert second.columns.held == 9


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), max_size=40),
    st.sampled_from([20, 57, 300]),
)
def test_room_is_given_back_whole_whatever_the_order(actions, limit):
    """Sizes of all kinds are taken and given back; nothing overlaps, and in the end all is free."""
    pool = Pool(LMHead(torch.zeros(9, 1)), limit * 4, TIGHT)
    held = {}
    for name, count in actions:
        if name in held:
            pool.close(held.pop(name))
            continue
        columns = held[name] = pool.open(torch.zeros(name + 1, 1))
        free = sum(map(len, pool.free))
        fresh, _ = columns.take(count, 0)
        assert len(fresh) <= count
        assert free - len(fresh) * (name + 1) == sum(map(len, pool.free))
        largest = max(map(len, pool.free), default=0)
        assert len(fresh) == count or largest <= name  # as much as fits
        taken = [
            grain
            for each in held.values()
            for run in each.runs
            for first in run
            for grain in range(first, first + each.size)
        ]
        taken += [grain for run in pool.free for grain in run]
        assert sorted(taken) == list(range(limit))
        ends = [run[-1] + each.size for each in held.values() for run in each.runs]
        assert pool.table.numel() >= max(ends, default=0)
    for columns in held.values():
        pool.close(columns)
    assert pool.free == [range(limit)]
    assert sorted(pool.vacant) == list(range(pool.slots.shape[0]))


def test_a_cpu_takes_memory_as_columns_come_and_a_gpu_at_once():
    budget = 1000 * 32 * 4
    for sizes, expected in ((CPU, 32), (GPU, 1000 * 32 + 32)):
        pool = Pool(counted(3000), budget, sizes)
        one = session(pool, 20)
        assert pool.table.numel() == expected
    pool = Pool(counted(3000), budget, CPU)
    one = session(pool, 20)
    sizes = []
    for start in range(0, 3000, 10):
        refine(likely(range(start, start + 10), size=3000), [one])
        sizes.append(pool.table.numel())
    assert sizes[0] == 11 * 32
    assert sizes[-1] == 1001 * 32  # the budget, and one window
    assert len(set(sizes)) < 40  # by a quarter each time
    assert all(b - a <= max(320, a * 0.26) for a, b in pairwise(sizes))


def test_what_is_reserved_is_there_at_once_and_nothing_more_is_taken():
    budget = 100 * 32 * 4
    pool = Pool(counted(50), budget)
    pool.reserve(prompts=3, tokens=70)
    memory = [each.data_ptr() for each in (pool.table, pool.slots, pool.absent, pool.used)]
    assert pool.table.numel() == (100 + 3) * 32  # the budget, and one window
    assert pool.slots.shape == (3, 50)
    for _ in range(3):
        several = [session(pool, tokens) for tokens in (70, 20, 33)]
        for start in range(0, 50, 10):
            exact(likely(*[range(start, start + 10)] * 3, size=50), several)
        for one in several:
            one.close()
    assert memory == [each.data_ptr() for each in (pool.table, pool.slots, pool.absent, pool.used)]
    more = [session(pool, 90) for _ in range(5)]  # than were reserved
    exact(likely(*[range(10)] * 5, size=50), more)


def test_columns_of_prompts_of_any_size_are_written_where_they_belong():
    head = counted(60, 4)
    spilled = 13 * 33 * 4  # a part of what a step needs
    pool = Pool(head, BIG, CPU._replace(spilled=spilled))
    several = [session(pool, tokens) for tokens in (33, 5, 33, 64, 5, 33, 1)]
    for start in (0, 20, 10):
        words = [range(start, start + 9 + row) for row in range(len(several))]
        exact(likely(*words, size=60), several)


def test_the_sizes_follow_the_device():
    assert Pool(counted(3), 0).sizes == CPU
    assert Pool(LMHead(torch.zeros(3, 2, device="meta")), 0).sizes == GPU


@pytest.mark.parametrize(
    "states, message",
    [
        (torch.randn(2, 5), r"shape \(M, 2\).*got \(2, 5\)"),
        (torch.randn(2), r"shape \(M, 2\)"),
        (torch.randn(0, 2), "^a prompt without vision states has nothing"),
    ],
)
def test_states_that_cannot_be_projected_are_refused(states, message):
    with pytest.raises(ValueError, match=message):
        Pool(counted(4), BIG).open(states)


def test_words_are_projected_in_blocks_that_memory_allows():
    head = counted(100, 4)

    def words_of_calls(count):
        shapes, head.shapes = head.shapes, []
        return [words for words, _ in shapes[:count]]

    one = session(Pool(head, BIG, TIGHT._replace(gathered=7 * 4 * 4)), 3)
    exact(likely(range(20), size=100), [one])
    assert words_of_calls(3) == [7, 7, 6]
    one = session(Pool(head, BIG, TIGHT._replace(spilled=5 * 3 * 4)), 3)
    exact(likely(range(12), size=100), [one])
    assert words_of_calls(3) == [5, 5, 2]
    one = session(Pool(head, BIG, TIGHT._replace(gathered=1)), 3)
    exact(likely(range(4), size=100), [one])
    assert words_of_calls(4) == [1, 1, 1, 1]


@pytest.mark.parametrize(("product", "calls"), [(0, 6), (2**12, 3), (2**22, 1)])
def test_small_products_of_several_prompts_are_one(product, calls):
    """With as many multiplications as it may have; each prompt still has its own columns."""
    head = counted(100, 4)
    pool = Pool(head, BIG, CPU._replace(product=product))
    sessions = [session(pool, tokens) for tokens in (9, 40, 3, 33, 64, 8)]
    words = [range(row, row + 4) for row in range(6)]
    logits = likely(*words, size=100)
    refine(logits, sessions)
    assert len(head.shapes) == calls
    if calls == 1:
        assert head.shapes == [(32, 256)]  # 24 words at 157 states: a CPU is prepared for few sizes
    exact(logits, sessions)
    for one, own in zip(sessions, words, strict=True):
        own = torch.tensor(own)
        begins = pool.slots[one.columns.row].index_select(0, own).long()
        kept = pool.windows(0, one.columns.tokens).index_select(0, begins)
        expected = head.plain.project(own, one.columns.states)
        torch.testing.assert_close(kept, expected, rtol=1e-5, atol=1e-6)


def test_states_are_projected_in_parts_that_memory_allows_where_nothing_is_kept():
    head = counted(100, 4)
    sizes = CPU._replace(block=1, narrowest=1, spilled=20 * 64 * 4)
    one = session(Pool(head, 0, sizes), 300)
    refine(likely(range(20), size=100), [one])
    assert len(head.shapes) > 4
    assert max(words * states for words, states in head.shapes) <= 20 * 64


def test_a_prompt_is_the_first_where_nobody_counts():
    pool = Pool(counted(4), 0)
    first, told = (Session(torch.ones(1, 2), pool, ReVisiTConfig(), *n) for n in ((), (0,)))
    assert torch.rand(1, generator=first.generator) == torch.rand(1, generator=told.generator)


def test_a_generator_follows_from_the_seed_and_the_number_of_the_prompt():
    pool = Pool(counted(4), 0)
    draws = [
        torch.rand(1, generator=Session(torch.ones(1, 2), pool, ReVisiTConfig(seed=s), n).generator)
        for s, n in ((0, 0), (0, 1), (1, 0), (1, 1), (-3, 2), (2**40, 5), (0, 0))
    ]
    assert draws[0] == draws[-1]
    assert len({float(each) for each in draws}) == 6


def test_the_pool_is_empty_of_prompts_when_all_have_ended():
    pool = Pool(counted(30), BIG)
    several = [session(pool, tokens) for tokens in (3, 8, 5)]
    refine(torch.randn(3, 30), several)
    for one in several:
        one.close()
    assert pool.latest is None
    assert sorted(pool.vacant) == list(range(pool.slots.shape[0]))
    assert len(pool.free) == 1


def test_columns_are_rounded_up_to_whole_grains():
    pool = Pool(counted(4), BIG)
    assert [pool.open(torch.ones(m, 2)).size for m in (1, 32, 33, 64)] == [1, 1, 2, 2]
    assert math.isclose(pool.limit, BIG / 128)
    assert isinstance(pool.open(torch.ones(1, 2)), Columns)
