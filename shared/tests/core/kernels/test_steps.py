"""The kernels against `core.step`, on a GPU, or without one in Triton's interpreter."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="Triton is not here: there are no kernels to test")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
    # Kernels run from 3.2 on, but its interpreter does not agree with NumPy 2.
    pytest.skip("the interpreter of this Triton cannot run here", allow_module_level=True)

from revisit.config import ReVisiTConfig
from revisit.core.head import LMHead
from revisit.core.step import step

with pytest.MonkeyPatch.context() as patch:
    if DEVICE == "cpu":
        patch.setenv("TRITON_INTERPRET", "1")
    from revisit.core.kernels import steps as room
    from revisit.core.kernels.steps import Sizes, Steps, buffer_bytes, prompt_bytes


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":  # what Triton imports later asks again
        monkeypatch.setenv("TRITON_INTERPRET", "1")


V, D = 300, 24
INF = math.inf
SMALL = Sizes(block=128, tile=16, chunk=64, height=32)


def config(**settings: Any) -> ReVisiTConfig:
    return ReVisiTConfig(**{"alpha": 1e-2, **settings})


class Trial:
    """A batch of prompts in `Steps`; each step is compared with `core.step`."""

    def __init__(
        self,
        prompts: Sequence[tuple[int, ReVisiTConfig]],
        rows: Sequence[int] | None = None,
        head: LMHead | None = None,
        columns: int = V,
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        self.head = head or LMHead(torch.randn(V, D, device=DEVICE))
        longest = max(count for count, _ in prompts)
        rows = list(range(len(prompts))) if rows is None else rows
        sizes = {"slots": len(prompts), "rows": len(rows) + 1, "longest": longest, "sizes": SMALL}
        columns *= -(-longest // 64) * 64 * self.head.dtype.itemsize  # in bytes
        pool = len(prompts) * prompt_bytes(self.head, longest, columns)
        budget = buffer_bytes(self.head.size, **sizes) + pool
        self.steps = Steps(self.head, budget=budget, columns=columns, **sizes, **options)
        self.prompts: dict[int, tuple[Tensor, ReVisiTConfig, Any]] = {}
        for count, settings in prompts:
            self.open(torch.randn(count, D), settings)
        self.batch(rows)

    def open(self, states: Tensor, settings: ReVisiTConfig) -> int:
        states = states.to(DEVICE, self.head.dtype)
        slot = self.steps.open(states, settings, torch.Generator().manual_seed(1))
        self.prompts[slot] = states, settings, torch.Generator().manual_seed(1)
        return slot

    def batch(self, rows: Sequence[int]) -> None:
        self.rows = rows
        self.steps.batch(rows)

    def check(self, logits: Tensor, tolerance: float = 2e-5) -> Tensor:
        """One step; what it gives is that of `core.step`."""
        logits = logits.to(DEVICE)
        scores, decided = self.steps.step(logits).clone(), self.steps.decided(len(logits))
        for row, slot in enumerate(self.rows):
            if slot < 0:
                assert torch.equal(scores[row], logits[row].float())
                assert decided.candidates[row] == 0
                continue
            states, settings, generator = self.prompts[slot]
            want = step(logits[row], states, self.head, settings, generator)
            assert decided.candidates[row] == len(want.vocabulary)
            listed = self.steps._buffers["lists"][row, 0, : len(want.vocabulary)]
            assert listed.tolist() == want.vocabulary.tolist()
            choice = int(decided.choices[row])
            close = {"atol": tolerance, "rtol": tolerance}
            torch.testing.assert_close(decided.divergences[row], want.distances[choice], **close)
            # A rounding of half precision decides among vision states that are as near.
            nearly = abs(want.distances[choice] - want.divergence) < tolerance
            assert choice == want.choice or (nearly and tolerance > 1e-4)
            if choice == want.choice:
                torch.testing.assert_close(scores[row], want.scores, **close)
        return scores

    def columns(self) -> list[int]:
        """Columns that each prompt has computed."""
        return self.steps._buffers["issued"].tolist()


def drift(rows: int, steps: int, spread: float = 3.0) -> list[Tensor]:
    """Logits of neighbouring steps: most of V_cons comes back."""
    base = torch.randn(rows, V) * spread
    return [base + 0.1 * spread * torch.randn(rows, V) for _ in range(steps)]


def test_ragged_rows_of_mixed_settings_and_a_plain_row():
    prompts = [
        (40, config()),
        (17, config(alpha=1e-3, divergence="js")),
        (1, config(alpha=0.1)),
        (33, config(divergence="js", selection="max")),
    ]
    trial = Trial(prompts, [2, 0, -1, 3, 1], columns=200)
    for logits in drift(5, 3):
        trial.check(logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "bias, scale, cap", [(True, 1, None), (False, 0.3, None), (False, 1, 5.0), (True, 0.3, 5.0)]
)
def test_bias_scale_and_cap_are_rounded_as_the_lm_head_rounds_them(bias, scale, cap, dtype):
    torch.manual_seed(1)
    weight, biases = (torch.randn(*size, device=DEVICE).to(dtype) for size in ((V, D), (V,)))
    head = LMHead(weight, biases if bias else None, scale, cap)
    for columns in (200, 0):  # with 0 the kernels multiply where they read
        trial = Trial([(20, config(alpha=1e-3))], head=head, columns=columns)
        trial.check(drift(1, 1)[0].to(dtype), 1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_columns_of_half_precision_differ_by_a_rounding_at_most(dtype):
    torch.manual_seed(2)
    head = LMHead(torch.randn(V, D, device=DEVICE).to(dtype), None, 0.7, 4.0)
    trial = Trial([(40, config())], head=head)  # all V columns are computed when it opens
    states = trial.prompts[0][0]
    start = int(trial.steps._buffers["facts"][0, 2])
    columns = trial.steps._pool[start : start + V * 64].view(V, 64)[:, :40].float()
    product = (head.weight.float() @ states.float().T).to(dtype)
    want = head.finish(product, torch.arange(V, device=DEVICE)).float()
    # Sums in another order are now and then rounded to the neighbour.
    assert (columns != want).float().mean() < 0.01
    rounding = 2 ** (-6 if dtype == torch.bfloat16 else -9)
    torch.testing.assert_close(columns, want, rtol=rounding, atol=1e-3)


@pytest.mark.parametrize("selection", ["min", "max"])
def test_the_first_of_equal_vision_states_is_chosen(selection):
    settings = config(selection=selection)
    trial = Trial([(48, settings)])
    states = torch.randn(48, D)
    states[1:24:2] = states[0:24:2]  # each comes again beside itself,
    states[24:] = states[:24]  # and in another tile
    trial.steps.close(0)
    trial.batch([trial.open(states, settings)])
    for logits in drift(1, 3):
        trial.check(logits)
        choice = int(trial.steps.decided(1).choices)
        assert choice < 24 and choice % 2 == 0


def test_a_token_alone_in_v_cons_needs_no_column():
    trial = Trial([(20, config()), (9, config())], columns=200)
    logits = torch.randn(2, V)
    logits[0, 77] = 40.0
    scores = trial.check(logits)
    assert scores[0, 77] == 0
    first, second = trial.columns()
    assert first == 0 and second > 0


@pytest.mark.parametrize("divergence", ["ag", "js"])
@pytest.mark.parametrize("alpha", [1e-5, 0.0])
def test_infinite_logits(divergence, alpha):
    trial = Trial([(20, config(alpha=alpha, divergence=divergence))] * 3)
    logits = torch.randn(3, V)
    logits[0, 5] = INF  # certain
    logits[1, [7, 150]] = INF  # two that are
    logits[2, 100:250] = -INF  # impossible
    trial.check(logits)


@pytest.mark.parametrize("columns", [0, 1, 16, 120])
def test_columns_that_find_no_room_or_push_out_others(columns):
    trial = Trial([(20, config(alpha=1e-3)), (5, config())], columns=columns)
    for logits in drift(2, 4):
        trial.check(logits)
    assert bool(sum(trial.columns())) == (columns > 1)


def test_v_cons_larger_than_what_a_step_may_compute(monkeypatch):
    monkeypatch.setattr(room, "_MOST", 64)
    trial = Trial([(20, config(alpha=0.0)), (30, config())], columns=V - 1)
    logits = torch.randn(2, V)
    for done in (64, 128, 192):  # some more each time, the same scores
        trial.check(logits)
        assert trial.columns()[0] == done


def test_all_columns_are_computed_at_once_where_they_fit():
    trial = Trial([(20, config(alpha=1e-3)), (20, config())], columns=V)
    for logits in drift(2, 2):
        assert trial.columns() == [V, V]
        trial.check(logits)
    assert trial.columns() == [V, V]


def test_a_tile_is_filled_with_likely_tokens_but_never_at_the_price_of_a_column():
    trial = Trial([(20, config(alpha=0.5))], columns=200)
    logits = torch.full((1, V), -50.0)
    logits[0, :10], logits[0, 10:40] = 0.0, -1.5  # in V_cons, and a little below its bound
    trial.check(logits)
    assert trial.columns() == [40]
    logits[0, 10:40] = 0.0
    trial.check(logits)  # they are there already
    assert trial.columns() == [40]
    logits[0, 40:100] = 0.0  # 60 new tokens; 100 are kept of 200, so none may be added
    logits[0, 100:120] = -1.5
    trial.check(logits)
    assert trial.columns() == [100]


def test_rows_of_one_prompt_share_its_columns():
    prompts = [(20, config(alpha=1e-3)), (12, config())]
    trial, alone = Trial(prompts, [0, 1, 0], columns=200), Trial(prompts[:1], columns=200)
    logits = drift(3, 1)[0]
    logits[2] = logits[0]
    trial.check(logits)
    alone.check(logits[:1])
    assert trial.columns()[0] == alone.columns()[0]
    for logits in drift(3, 2):
        trial.check(logits)


def test_bad_rows_are_noted_and_change_no_neighbour():
    trial = Trial([(20, config(alpha=1e-3))] * 3, columns=200)
    logits = torch.randn(3, V)
    good = trial.check(logits)[1]
    logits[0, 200], logits[2] = math.nan, -INF
    trial = Trial([(20, config(alpha=1e-3))] * 3, columns=200)
    scores = trial.steps.step(logits.to(DEVICE))
    assert trial.steps.decided(3).bad.tolist() == [1, 0, 2]
    assert torch.equal(scores[1], good)  # to the last bit
    assert torch.equal(scores[[0, 2]].nan_to_num().cpu(), logits[[0, 2]].nan_to_num())


def test_a_row_has_the_same_bits_alone_and_among_others():
    prompts = [(40, config(alpha=1e-3)), (17, config(divergence="js")), (30, config())]
    together, alone = Trial(prompts, [0, 1, 2], columns=50), Trial(prompts, [1], columns=50)
    for logits in drift(3, 2):
        assert torch.equal(together.check(logits)[1], alone.check(logits[1:2])[0])


def test_a_vision_state_is_drawn_on_the_host():
    random = config(alpha=1e-3, selection="random")
    trial = Trial([(20, random), (30, config()), (25, random)], columns=200)
    for logits in drift(3, 3):
        trial.check(logits)
    trial.batch([1, 1])
    trial.check(logits[:2])


def test_prompts_come_and_go():
    trial = Trial([(20, config()), (36, config(divergence="js")), (10, config())], columns=60)
    for rows in ([0, 1, 2], [1, -1, 1], [2, 0]):
        trial.batch(rows)
        trial.check(drift(len(rows), 1)[0])
    trial.steps.close(1)
    trial.batch([0, trial.open(torch.randn(30, D), config(selection="max")), 2])
    for logits in drift(3, 2):
        trial.check(logits)


def test_prompts_are_moved_where_what_is_free_is_in_pieces():
    trial = Trial([(20, config()), (30, config(divergence="js")), (60, config())], columns=60)
    states = torch.randn(60, D)
    logits = drift(3, 3)
    trial.check(logits[0])
    for slot in (0, 2):
        trial.steps.close(slot)
    # More than what is free at either end, less than both.
    slot = trial.steps.take(60, settings := config(alpha=1e-3), columns=100 * 64 * 4)
    assert trial.steps._prompts[1].start == 0
    trial.steps.states(slot).copy_(states)
    trial.steps.start(slot)
    trial.prompts[slot] = states.to(DEVICE), settings, None
    trial.batch([1, slot])  # prompt 1 has the columns that it had
    for each in logits[1:]:
        trial.check(each[:2])


def test_what_cannot_be_done_is_refused():
    trial = Trial([(20, config()), (36, config())], [0, 1])
    steps, states = trial.steps, torch.randn(20, D, device=DEVICE)
    with pytest.raises(ValueError, match="close one first"):
        steps.open(states, config())
    with pytest.raises(ValueError, match="1 to 36 of them"):
        steps.open(torch.randn(37, D), config())
    with pytest.raises(ValueError, match=r"\(M, 24\)"):
        steps.open(torch.randn(3, D + 1), config())
    with pytest.raises(ValueError, match=r"no prompt is open in slots \[2\]"):
        steps.batch([2])
    with pytest.raises(ValueError, match="3 rows at most"):
        steps.batch([0, 0, 0, 0])
    for shape in [(4, V), (1, V), (2, V + 1)]:
        with pytest.raises(ValueError, match="2 to 3 rows"):
            steps.step(torch.randn(shape, device=DEVICE))
    steps.close(1)
    with pytest.raises(ValueError, match="was closed"):
        steps.step(torch.randn(2, V, device=DEVICE))
    with pytest.raises(ValueError, match="budget of 1000 bytes is too small"):
        Steps(trial.head, slots=1, rows=1, longest=5, budget=1000)


def test_memory_is_what_was_asked_for_and_no_prompt_takes_more():
    sizes = {"slots": 2, "rows": 2, "longest": 30}
    budget = buffer_bytes(V, **sizes) + 20_000
    head = LMHead(torch.randn(V, D, device=DEVICE))
    steps = Steps(head, budget=budget, columns=5000, **sizes)
    tensors = [*steps._buffers.values(), steps._pool]
    assert 0 <= budget - sum(each.nbytes for each in tensors) < 64
    steps.open(torch.randn(30, D, device=DEVICE), config(alpha=0.0))
    steps.open(torch.randn(1, D, device=DEVICE), config())  # though columns could fill everything


def test_logits_of_any_dtype_and_layout():
    trial = Trial([(20, config())], [0, -1])
    wide = torch.randn(2, V + 5)
    trial.check(wide[:, 3:-2])
    trial.check(torch.randn(V, 2).T)
    trial.check(torch.randn(2, V).bfloat16())
    trial.check(torch.randn(3, V))  # one row more than the batch has: it is plain


def test_tokens_beyond_v_cons_are_filled_as_an_engine_fills_them():
    left_out = pytest.importorskip("revisit.core.left_out")
    prompts = [(20, config(alpha=alpha)) for alpha in (1e-2, 1e-1, 1e-3, 0.0, 1e-2)]
    rows = [0, 1, 2, 3, 4, -1, 0]
    filled, plain = Trial(prompts, rows, fill=True), Trial(prompts, rows)
    logits = drift(7, 1)[0]
    logits[1, 7] = 60.0  # alone in V_cons
    logits[2, 3] = INF
    logits[4, 30:50] = -INF
    logits[6] = -INF
    logits[6, 3] = INF  # certain, and alone possible
    want = left_out.fill_left_out(plain.check(logits), logits.to(DEVICE))
    want[5] = logits[5]
    scores = filled.steps.step(logits.to(DEVICE))
    torch.testing.assert_close(scores, want, rtol=1e-5, atol=1e-5)


def test_a_step_is_six_launches(monkeypatch):
    trial = Trial([(20, config()), (30, config(alpha=0.0))], columns=10)
    launches = []
    kernel = type(room.kernels.read_logits)
    launch = kernel.__getitem__

    def counted(self: Any, grid: Any) -> Any:
        launches.append(self)
        return launch(self, grid)

    monkeypatch.setattr(kernel, "__getitem__", counted)
    trial.check(torch.randn(2, V))
    assert len(launches) == len(set(map(id, launches))) == 6


@pytest.mark.parametrize("seed", range(6))
def test_random_batches(seed):
    random = torch.Generator().manual_seed(seed)

    def pick(*choices: Any) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=random))]

    def settings() -> ReVisiTConfig:
        return config(
            alpha=pick(1e-5, 1e-3, 1e-2, 0.3, 1.0, 0.0),
            divergence=pick("ag", "js"),
            selection=pick("min", "max", "random"),
        )

    prompts = [(pick(1, 5, 16, 40, 70), settings()) for _ in range(3)]
    trial = Trial(prompts, [pick(0, 1, 2, -1) for _ in range(4)], columns=pick(0, 20, 90, V))
    for logits in drift(4, 2, pick(1.0, 3.0, 8.0)):
        if pick(True, False):
            logits[pick(0, 1), pick(3, 200)] = pick(INF, -INF, 50.0)
        trial.check(logits, 5e-5)


GOLDEN = json.loads((Path(__file__).parents[1] / "golden/step.json").read_text())


def test_published_steps():
    for case in GOLDEN:
        states, weight = (torch.tensor(case[name]) for name in ("vision_states", "lm_head"))
        sizes = {"slots": 1, "rows": 1, "longest": len(states), "sizes": SMALL}
        budget = buffer_bytes(len(weight), **sizes) + 2**20
        steps = Steps(LMHead(weight.to(DEVICE)), budget=budget, columns=2**18, **sizes)
        steps.batch([steps.open(states.to(DEVICE), ReVisiTConfig(alpha=case["alpha"]))])
        scores = steps.step(torch.tensor([case["logits"]], device=DEVICE))[0]
        kept = scores.isfinite().nonzero().squeeze(1)
        assert kept.tolist() == case["vocabulary"]
        assert scores[kept].tolist() == pytest.approx(case["refined_on_vocabulary_ag"], abs=1e-4)
