"""Whether the kernels are used is decided before they are, and never silently where they fail."""

import warnings

import pytest
import torch

from pytorch_settings import SETTINGS
from revisit.core.head import LMHead
from revisit.core.kernels import available, check

HEAD = LMHead(torch.randn(300, 24))


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    monkeypatch.setattr(check, "_checked", {})


@pytest.fixture
def interpreted(monkeypatch):
    triton = pytest.importorskip("triton", reason="Triton is not here")
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3) or torch.cuda.is_available():
        pytest.skip("Triton's interpreter cannot run the kernels here, or there is a GPU")
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_that_agree_are_available_and_checked_once(interpreted, monkeypatch, dtype):
    head = LMHead(HEAD.weight.to(dtype), torch.randn(300).to(dtype), 0.5, 4.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.filterwarnings("ignore", module="triton")
        assert available(head)
    monkeypatch.setattr(check, "_differs", None)
    assert available(head)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_pytorch_is_set_to_changes_nothing(interpreted, name):
    with SETTINGS[name]():
        assert available(HEAD)


FAULTS = {
    "scores differ": ("scores", lambda scores: scores[:2].add_(0.1)),
    "V_cons differs": ("scores", lambda scores: scores[:2, ::7].fill_(0)),
    "further than the nearest": ("_decided", lambda decided: decided[:, 3].add_(1)),
    "a plain row was changed": ("scores", lambda scores: scores[2].add_(1)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_kernels_that_differ_are_not_used_and_one_warning_says_so(interpreted, monkeypatch, fault):
    from revisit.core.kernels.steps import Steps

    name, spoil = FAULTS[fault]
    decide = Steps.decide

    def faulty(self, rows):
        decide(self, rows)
        spoil(getattr(self, name))
        return self.scores[:rows]

    monkeypatch.setattr(Steps, "decide", faulty)
    message = rf"not used on cpu, plain PyTorch is: .*{fault}"
    with pytest.warns(RuntimeWarning, match=message) as seen:
        assert not available(HEAD) and not available(HEAD)
    assert sum("not used" in str(each.message) for each in seen) == 1


def test_kernels_that_do_not_compile_are_not_used(interpreted, monkeypatch):
    from revisit.core.kernels.steps import Steps

    def broken(self, rows):
        raise RuntimeError("PassManager::run failed")

    monkeypatch.setattr(Steps, "decide", broken)
    with pytest.warns(RuntimeWarning, match="RuntimeError: PassManager::run failed"):
        assert not available(HEAD)


def test_where_they_cannot_be_they_are_left_out_without_a_word(monkeypatch):
    class Sharded(torch.nn.Parameter):
        pass

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not available(object())  # another head
        assert not available(LMHead(HEAD.weight.double()))
        assert not available(LMHead(HEAD.weight.T.contiguous().T))
        assert not available(LMHead(Sharded(HEAD.weight)))
        monkeypatch.setattr(check, "_OLDEST", (99, 0))
        assert not available(HEAD)  # an older Triton, or none
        monkeypatch.delenv("TRITON_INTERPRET")
        assert not available(HEAD)  # no GPU, no interpreter
        monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: None)
        assert not available(HEAD)
