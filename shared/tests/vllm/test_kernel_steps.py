"""The kernels decode a worker's requests as plain PyTorch does; in Triton's interpreter."""

import pytest
import torch

from revisit.config import ReVisiTConfig
from revisit.core.head import LMHead
from revisit.vllm.pytorch_steps import PyTorchSteps

with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRITON_INTERPRET", "1")  # kernels ask when they are decorated
    from revisit.vllm import kernel_steps
    from revisit.vllm.kernel_steps import KernelSteps


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # what Triton imports later asks again


V, D = 150, 64
SETTINGS = ReVisiTConfig(cache_bytes=64 * 4 * 2 * D * 4)  # four prompts of 64 vision states
CONFIGS = [
    ReVisiTConfig(alpha=1e-2),
    ReVisiTConfig(alpha=1e-1, divergence="js", selection="max"),
    ReVisiTConfig(alpha=1e-3, selection="random"),
]


class Both:
    """The same prompts in plain PyTorch and in the kernels."""

    def __init__(self, rows=4):
        torch.manual_seed(0)
        head = LMHead(torch.randn(V, D))
        self.ways = PyTorchSteps(head, SETTINGS, 4), KernelSteps(head, SETTINGS, 4, rows, 256)
        self.opened = []

    def open(self, count, config):
        states, both = torch.randn(count, D), []
        for way in self.ways:
            prompt = way.open(count, config, torch.Generator().manual_seed(5))
            way.states(prompt).copy_(states)
            way.start(prompt)
            both.append(prompt)
        self.opened.append(both)

    def close(self, place):
        for way, prompt in zip(self.ways, self.opened.pop(place), strict=True):
            way.close(prompt)

    def refine(self, rows, logits=None):
        """One step by both; `rows` are indices of `opened`, None a plain row."""
        logits = torch.randn(len(rows), V) * 3 if logits is None else logits
        results = []
        for number, way in enumerate(self.ways):
            of_rows = [None if row is None else self.opened[row][number] for row in rows]
            results.append(way.refine(logits.clone(), of_rows))
        (want, _), (got, faults) = results
        good = faults == 0
        assert torch.equal(got.argmax(1)[good], want.argmax(1)[good])
        torch.testing.assert_close(got[good], want[good], rtol=1e-4, atol=1e-3, equal_nan=True)
        assert torch.equal(faults, results[0][1])
        return got, faults


def test_prompts_come_and_go_with_plain_rows_among_them():
    both = Both()
    for count, config in zip((64, 20, 33), CONFIGS, strict=True):
        both.open(count, config)
    both.refine([2, None, 0, 1])
    both.close(1)
    both.open(100, CONFIGS[1])  # longer than any gap: others are moved
    both.refine([0, 2, 1])
    both.refine([1, None])


def test_rows_beyond_those_of_a_launch_are_taken_in_parts(monkeypatch):
    monkeypatch.setattr(kernel_steps, "_ROWS", 2)
    both = Both(rows=7)
    assert both.ways[1].rows == 2
    for count, config in zip((10, 20, 33), CONFIGS, strict=True):
        both.open(count, config)
    both.refine([0, 1, None, None, 0, 0, 2])  # several rows of one: its drafts


def test_a_row_that_holds_nan_has_a_fault_and_changes_no_other():
    both = Both()
    both.open(20, CONFIGS[0])
    logits = torch.randn(4, V)
    logits[0, 3], logits[1], logits[2, 7] = torch.nan, -torch.inf, torch.nan
    refined, faults = both.refine([0, 0, None, 0], logits)
    assert faults.tolist() == [1, 2, 0, 0]
    assert not refined[:2].any()


def test_memory_is_taken_once_and_is_as_large_as_it_says():
    way: KernelSteps = Both().ways[1]
    tensors = [*way.steps._buffers.values(), way.steps._pool]
    assert 0 <= way.bytes - sum(each.nbytes for each in tensors) < 64
    before = [each.data_ptr() for each in tensors]
    way.rehearse()
    assert [each.data_ptr() for each in tensors] == before
    assert str(way) == f"kernels, whose tables take {way.table_bytes >> 20} MiB besides"
    for _ in range(4):
        way.open(64, CONFIGS[0], torch.Generator())
    with pytest.raises(ValueError, match="close one first"):
        way.open(1, CONFIGS[0], torch.Generator())
