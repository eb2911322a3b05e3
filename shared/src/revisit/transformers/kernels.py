"""A generation's rows in the kernels of a GPU: each step is launched, and none is waited for."""

from typing import Any

import torch
from torch import Tensor

from revisit.config import ReVisiTConfig
from revisit.core.head import LMHead
from revisit.core.kernels import available
from revisit.core.session import seeded
from revisit.core.step import FAULTS
from revisit.core.trace import Choice


def kernels_run(head: LMHead) -> bool:
    """Whether a generation with this LM head is decoded by the kernels: on a GPU that runs them."""
    return head.device.type == "cuda" and available(head)


class Kernels:
    """All prompts of a generation, opened together; `refine` is a step of their rows.

    Args:
        head: the LM head; `kernels_run(head)` must be true.
        config: how the prompts are decoded; they share its `cache_bytes` evenly.
        states: for each prompt its vision states (M, d), none in a plain one. They are replaced by
            the copies that the kernels read.
        rows: of each prompt.
        number: of the first prompt, as for `Session`.

    Raises torch.cuda.OutOfMemoryError where the GPU has no memory left for them.
    """

    def __init__(
        self, head: LMHead, config: ReVisiTConfig, states: list[Tensor], rows: int, number: int
    ) -> None:
        from revisit.core.kernels.steps import Steps, buffer_bytes, prompt_bytes

        counts = [len(each) for each in states if len(each)]
        columns = config.cache_bytes // len(counts)
        sizes: dict[str, Any] = {
            "slots": len(counts),
            "rows": rows * len(states),
            "longest": max(counts),
        }
        budget = buffer_bytes(head.size, **sizes)
        budget += sum(prompt_bytes(head, count, columns) for count in counts)
        self._steps = steps = Steps(head, budget=budget, columns=columns, fill=True, **sizes)
        slots = [
            steps.open(each, config, seeded(config, number)) if len(each) else -1
            for number, each in enumerate(states, number)
        ]
        states[:] = [
            each if slot < 0 else steps.states(slot)
            for slot, each in zip(slots, states, strict=True)
        ]
        self._slots = [slot for slot in slots for _ in range(rows)]
        steps.batch(self._slots)
        with torch.inference_mode(False):  # written in any mode
            # The fault of each row so far, and its latest copy on the host.
            faults = torch.zeros(sizes["rows"], dtype=torch.int32, device="cpu")
            self._faults = faults.to(head.device)
            self._arrived = faults.pin_memory() if head.device.type == "cuda" else faults

    def refine(self, scores: Tensor) -> Tensor:
        """Refined scores (rows, V) float32 of `scores` (rows, V), on their device, none left out.

        Rows from which no token can be chosen become 0, so that any sampling can go on.

        Raises:
            ValueError: there was such a row in an earlier step; `end` raises for the last ones.
        """
        _raise(self._arrived)
        steps = self._steps
        refined = steps.step(scores.to(steps.device))
        self._decided = steps.decided(len(scores))
        bad = self._decided.bad
        torch.maximum(self._faults, bad, out=self._faults)
        self._arrived.copy_(self._faults, non_blocking=True)
        # A copy: the next step overwrites the scores.
        return torch.where(bad.unsqueeze(1) > 0, 0.0, refined).to(scores.device)

    def choices(self, scores: Tensor, refined: Tensor) -> list[Choice | None]:
        """The latest step's choice for each row; its tensors stay on their devices."""
        decided = self._decided
        each = zip(
            self._slots,
            decided.choices,
            decided.candidates,
            decided.divergences,
            scores.argmax(1),
            refined.argmax(1),
            strict=True,
        )
        return [None if slot < 0 else Choice(*of_row) for slot, *of_row in each]

    def distances(self) -> list[Tensor | None]:
        """D(p_c, q_i) of each row's vision states (M,), which the next step overwrites."""
        return self._steps.distances()

    def end(self) -> None:
        """Wait for the last step; raises ValueError if a row had no token to choose."""
        _raise(self._faults)


def _raise(faults: Tensor) -> None:
    for fault in filter(None, faults.tolist()):
        raise ValueError(FAULTS[fault])
