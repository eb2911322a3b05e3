"""The divergence of many distributions in few passes over memory.

`revisit.core.step.divergence` is the same in plain terms, and what this is tested against. With
r = q/p, the mean m = (p + q) / 2 has log m = log p + log(1 + r) - log 2, and so

    "ag"    sum of (p + q) (log(1 + r) - log 2 - log(r) / 2) / 2
    "js"    log 2 - sum of ((p + q) log(1 + r) - q log r) / 2

That is one `exp2` and one `log` an entry, the other operations in place: on a CPU `exp` is several
times slower, and `log1p` ten times in some releases of PyTorch; on a GPU `log_softmax` along the
tokens takes 25 times as long as such an operation.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_LOG2E = 1 / math.log(2)
_LOG2 = math.log(2)

# Log-probabilities below _LEAST count as _LEAST: the inverse of exp(_LEAST) is still a float32.
# V_cons may hold such tokens where alpha is below _FAINT.
_LEAST, _FAINT = -82.0, 1e-30


class Prepared(NamedTuple):
    """The model's distribution p on V_cons, in the forms that `distances` needs."""

    p: Tensor  # (..., c, 1) probabilities, at least exp(_LEAST)
    shift: Tensor  # (..., c, 1) what log2 q loses to become the log2 r of the formulas above
    zero: Tensor | None  # (..., 1) bool, whether a token of V_cons has probability 0


def prepare(log_p: Tensor, kind: str, alpha: float) -> Prepared:
    """Prepare log-probabilities (..., c) float32 for `distances`; V_cons was made with `alpha`."""
    raised = log_p.unsqueeze(-1).clamp(min=_LEAST)
    p = raised.exp()
    zero = None
    if kind == "ag":
        if alpha < _FAINT:
            # "ag" is log m less half of (log p + log q). `raised` stands for log p in both; twice
            # `raised` less the true log p puts the truth back in the second.
            raised = raised * 2 - log_p.unsqueeze(-1).clamp(min=-1e30)
            zero = log_p.isneginf().any(-1, keepdim=True)
        raised = raised - 2 * _LOG2
    return Prepared(p, raised.mul(_LOG2E), zero)


def distances(prepared: Prepared, logits: Tensor, kind: str) -> Tensor:
    """D(p, q_i), (..., b) float32, in nats for every column i, q_i = softmax(logits[..., i]).

    Logits are (..., c, b) of any floating dtype; float32 is overwritten.
    """
    x = logits.float()
    torch.add(x.amax(-2, keepdim=True).mul_(-_LOG2E), x, alpha=_LOG2E, out=x)
    q = x.exp2()
    total = q.sum(-2, keepdim=True)
    x -= total.log2()
    x -= prepared.shift
    if kind == "ag":
        torch.addcdiv(prepared.p, q, total, out=q)
        terms = (q / prepared.p).log_().sub_(x, alpha=_LOG2 / 2).mul_(q)
        result = terms.sum(-2).mul_(0.5)
    else:
        q /= total
        x *= q
        q += prepared.p
        terms = (q / prepared.p).log_().mul_(q).sub_(x, alpha=_LOG2)
        result = terms.sum(-2).mul_(-0.5).add_(_LOG2)
    return result if prepared.zero is None else result.masked_fill_(prepared.zero, math.inf)
