"""What is kept of the columns: each once, within one budget, whoever comes and goes."""

import warnings

import pytest
import torch

from private_memory import STATUS, private_bytes
from revisit.config import ReVisiTConfig
from revisit.core import columns as module
from revisit.core.columns import Cache
from revisit.core.head import LMHead
from revisit.core.rows import refine
from revisit.core.session import Session
from revisit.core.step import step

BIG = 2**30
pytestmark = pytest.mark.filterwarnings("ignore:ReVisiT. cache_bytes")


class Counted:
    """An LM head that counts: which tokens it projected, and how many at how many states a time."""

    def __init__(self, vocabulary, width=2):
        generator = torch.Generator().manual_seed(1)
        self.plain = LMHead(torch.randn(vocabulary, width, generator=generator))
        self.tokens, self.shapes = [], []

    def __getattr__(self, name):
        return getattr(self.plain, name)

    def project(self, tokens, states):
        self.tokens.extend(tokens.tolist())
        self.shapes.append((len(tokens), len(states)))
        return self.plain.project(tokens, states)


def session(cache, tokens=3, **config):
    generator = torch.Generator().manual_seed(tokens)
    states = torch.randn(tokens, cache.head.width, generator=generator)
    return Session(states, cache, ReVisiTConfig(**config))


def columns(count, tokens=3):
    """Bytes of so many columns of a prompt with `tokens` vision states, in float32."""
    return count * tokens * 4


def likely(*rows, size=30):
    """Logits whose V_cons has these tokens in each row."""
    logits = torch.full((len(rows), size), -100.0)
    for row, tokens in zip(logits, rows, strict=True):
        row[list(tokens)] = torch.linspace(0, 1, len(tokens))
    return logits


def projected(logits, sessions):
    """Refine, compare each row with the formulas, and return which tokens were projected."""
    head = sessions[0].columns.cache.head
    head.tokens, head.shapes = [], []
    refined, steps = refine(logits, sessions)
    tokens, shapes = head.tokens[:], head.shapes[:]
    for row, one in enumerate(sessions):
        alone = step(logits[row], one.columns.states, head, one.config)
        torch.testing.assert_close(refined[row], alone.scores, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(steps[row].distances, alone.distances, rtol=1e-4, atol=1e-5)
    head.shapes = shapes
    return tokens


def test_no_column_is_computed_twice_below_the_budget():
    generator = torch.Generator().manual_seed(0)
    one = session(Cache(Counted(40, 8), BIG), 5, alpha=0.01)
    got, needed = [], set()
    for _ in range(20):
        logits = torch.randn(2, 40, generator=generator) * 3
        got += projected(logits, [one, one])
        needed |= {
            token for each in refine(logits, [one, one])[1] for token in each.vocabulary.tolist()
        }
    assert sorted(got) == sorted(needed)
    assert one.columns.held == len(needed)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_full_table_drops_what_the_step_does_not_need(on_cpu):
    cache = Cache(Counted(30), columns(10))
    cache.on_cpu = on_cpu
    one = session(cache)
    steps = [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9], [0, 1], [4, 10, 11], [4, 10, 0], [10, 11, 4, 0]]
    computed = [projected(likely(tokens), [one]) for tokens in steps]
    assert computed == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9], [], [10, 11], [0], []]
    assert one.columns.held == 4 and (one.columns.row_of < 0).sum() == 26
    assert one.columns.table.shape == (10, 3)


def test_prompts_that_share_a_budget_drop_columns_of_their_tables_alone():
    cache = Cache(Counted(30), columns(10))
    both = first, second = session(cache), session(cache)
    projected(likely(range(5), range(3)), both)
    projected(likely([0, 1], [0, 5, 6]), both)
    assert (first.columns.held, second.columns.held, cache.left) == (5, 5, 0)
    projected(likely([0, 7], [8, 9, 0]), both)
    assert (first.columns.held, second.columns.held, cache.left) == (2, 3, 0)
    assert projected(likely([0, 1, 7], [0, 8, 9]), both) == [1]


def test_of_tokens_that_do_not_fit_only_the_rest_is_computed_each_step():
    one = session(Cache(Counted(30), columns(10)))
    projected(likely(range(14)), [one])
    projected(likely(range(2, 14)), [one])
    assert one.columns.held == 10
    assert set(projected(likely(range(2, 14)), [one])) == {12, 13}
    assert set(projected(likely([12, 13, 5]), [one])) == {12, 13}
    assert projected(likely([12, 13, 5]), [one]) == []


def test_rows_of_one_prompt_may_lack_different_tokens():
    one = session(Cache(Counted(30), columns(5)))
    for _ in range(2):
        projected(likely([0, 1], range(9), range(4, 12)), [one] * 3)
        assert one.columns.held == 5


@pytest.mark.parametrize("budget", [0, 7])
def test_a_budget_smaller_than_a_column_keeps_nothing(budget):
    one = session(Cache(Counted(30), budget))
    for _ in range(2):
        assert set(projected(likely(range(4)), [one])) == {0, 1, 2, 3}
    assert one.columns.held == 0


def test_a_prompt_that_has_ended_gives_back_what_it_took():
    cache = Cache(Counted(30), columns(10))
    first, second = session(cache), session(cache)
    projected(likely(range(10)), [first])
    projected(likely(range(4)), [second])
    assert second.columns.held == cache.left == 0
    first.close()
    first.close()  # nothing more to give back
    assert cache.left == columns(10) and first.columns.table.untyped_storage().nbytes() == 0
    projected(likely(range(4)), [second])
    assert second.columns.held == 4
    third = session(cache, 6)
    projected(likely(range(8)), [third])
    assert third.columns.held == 3  # twice as long as the six that are free


def test_a_step_that_needs_more_than_fits_says_once_what_to_do():
    module._warn.cache_clear()
    one = session(Cache(Counted(30), columns(5)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        refine(likely(range(5)), [one])
        refine(likely(range(5, 10)), [one])  # these replace the others
        assert not caught
        for _ in range(3):
            refine(likely(range(7)), [one])
    (warning,) = caught
    assert "cache_bytes=60 does not hold" in str(warning.message)
    assert "raise cache_bytes or alpha, or choose fewer layers" in str(warning.message)


def test_the_memory_of_a_cpu_is_taken_where_it_is_written_and_a_gpu_s_grows():
    for on_cpu, expected in ((True, [25] * 4), (False, [3, 6, 12, 24])):
        cache = Cache(Counted(30), columns(25))
        cache.on_cpu = on_cpu
        one, sizes, left = session(cache), [], []
        for start in (0, 3, 6, 12):
            projected(likely(range(start, max(start + 3, 2 * start))), [one])
            sizes.append(len(one.columns.table))
            left.append(cache.left)
        assert sizes == expected
        assert left == [columns(25 - held) for held in (3, 6, 12, 24)]
        assert projected(likely(range(24)), [one]) == []
        one.close()
        assert cache.left == cache.size
    vocabulary = session(Cache(Counted(30), BIG))
    refine(likely(range(3)), [vocabulary])
    assert len(vocabulary.columns.table) == 30  # no more than that can ever be needed


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells")
@pytest.mark.parametrize("deterministic", [False, True])
def test_memory_that_no_column_needs_is_not_taken(deterministic):
    one = session(Cache(Counted(70_000), BIG), 1000)
    torch.use_deterministic_algorithms(deterministic)
    try:
        before = private_bytes()
        refine(likely(range(9), size=70_000), [one])
        assert one.columns.table.untyped_storage().nbytes() > 2**27
        assert private_bytes() - before < 2**25
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_gpu_computes_the_whole_vocabulary_in_the_first_step_where_it_fits():
    cache = Cache(Counted(30), columns(30) + columns(29))
    cache.on_cpu = False
    small, other, certain = (session(cache) for _ in range(3))
    refine(likely([4]), [certain])
    assert projected(likely([4, 9]), [small]) == list(range(30)) and small.columns.dense
    assert cache.left == columns(29)
    assert projected(likely([4, 9]), [other]) == [4, 9] and not other.columns.dense
    assert projected(likely([4, 5]), [other]) == [5]
    small.close()
    assert projected(likely([4, 6]), [other]) == [6]  # what is held is not computed again
    assert projected(likely([4, 6]), [certain]) == list(range(30))
    exact = Cache(Counted(30), columns(30))
    exact.on_cpu = False
    assert projected(likely([4, 6]), [session(exact)]) == list(range(30)) and not exact.left


def test_the_temporaries_follow_the_device():
    on_cpu, elsewhere = (Cache(LMHead(torch.zeros(3, 2, device=d)), 0) for d in ("cpu", "meta"))
    assert (on_cpu.on_cpu, on_cpu.block, on_cpu.gathered) == (True, 5 * 2**18, 2**22)
    assert (elsewhere.on_cpu, elsewhere.block, elsewhere.gathered) == (False, 2**26, 2**26)


@pytest.mark.parametrize(
    "gathered, expected", [(7 * 4 * 4, [7, 7, 6]), (20 * 4 * 4, [20]), (1, [1] * 20)]
)
def test_tokens_are_projected_in_parts_that_memory_allows(gathered, expected):
    cache = Cache(Counted(100, 4), BIG)
    cache.gathered = gathered
    projected(likely(range(20), size=100), [session(cache)])
    assert [tokens for tokens, _ in cache.head.shapes] == expected


@pytest.mark.parametrize(
    "block, states", [(1, [128, 128, 44]), (4 * 20 * 170, [160, 140]), (2**20, [300])]
)
def test_states_are_taken_in_blocks_that_memory_allows(block, states):
    cache = Cache(Counted(100, 4), 0)
    cache.block = block
    projected(likely(range(20), size=100), [session(cache, 300)])
    assert cache.head.shapes == [(20, count) for count in (*states, 1)]  # and the chosen one


@pytest.mark.parametrize(
    "states, message",
    [
        (torch.randn(2, 5), r"shape \(M, 2\).*LM head of 4 tokens, got \(2, 5\)"),
        (torch.randn(2), r"shape \(M, 2\)"),
        (torch.randn(0, 2), r"M at least 1.* got \(0, 2\)"),
    ],
)
def test_states_that_cannot_be_projected_are_refused(states, message):
    with pytest.raises(ValueError, match=message):
        Session(states, Cache(Counted(4), BIG), ReVisiTConfig())
