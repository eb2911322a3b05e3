"""The steps of a worker's requests in the kernels of a GPU: launched, and never waited for."""

from typing import Any

import torch
from torch import Tensor

from revisit.config import ReVisiTConfig
from revisit.core.head import LMHead
from revisit.core.kernels.steps import Steps, buffer_bytes

# The most rows of a launch, since each has buffers of 16 bytes a token: more are taken in parts.
_ROWS = 64


class KernelSteps:
    """The prompts that are open, in slots, and the steps of rows that point to them.

    All memory is taken here: `cache_bytes` for vision states and columns, and tables besides, of
    4 V bytes a prompt and 16 V a row, for 64 rows at most.

    Args:
        head: the LM head; `available(head)` must be true.
        settings: the engine's.
        prompts: at a time, at most.
        rows: of logits, at most.
        longest: vision states of a prompt, at most.

    Attributes:
        bytes: that it has taken.
    """

    def __init__(
        self, head: LMHead, settings: ReVisiTConfig, prompts: int, rows: int, longest: int
    ) -> None:
        self.rows = min(rows, _ROWS)
        sizes: dict[str, Any] = {"slots": prompts, "rows": self.rows, "longest": longest}
        self.table_bytes = buffer_bytes(head.size, **sizes)
        self.bytes = self.table_bytes + settings.cache_bytes
        self.steps = Steps(head, budget=self.bytes, fill=True, **sizes)
        self.zero = torch.zeros((), device=head.device)
        self.counts: dict[int, int] = {}  # vision states by slot
        self.batch: list[int] | None = None  # the slot of each row, as the kernels have it

    def __str__(self) -> str:
        return f"kernels, whose tables take {self.table_bytes >> 20} MiB besides"

    @torch.inference_mode()
    def rehearse(self) -> None:
        """A step, so that the kernels are compiled before a request comes."""
        head, config = self.steps.head, ReVisiTConfig(alpha=0.0)
        slot = self.open(1, config, torch.Generator("cpu"))
        self.states(slot).zero_()
        self.start(slot)
        self.refine(torch.zeros((1, head.size), device=head.device), [slot])
        self.close(slot)

    def open(self, count: int, config: ReVisiTConfig, generator: torch.Generator) -> int:
        """A slot for a prompt of `count` vision states, to be written to `states`.

        Raises:
            ValueError: there is no room, which the scheduler should have known.
        """
        size = count + -count % 64  # as columns are rounded up, so that both take as much
        columns = size * self.steps.head.width * self.steps.head.dtype.itemsize
        slot = self.steps.take(count, config, generator, columns)
        self.counts[slot] = count
        return slot

    def states(self, slot: int) -> Tensor:
        """The vision states (M, d) of a prompt, where they lie now."""
        return self.steps.states(slot)

    def start(self, slot: int) -> None:
        """Its vision states are written."""
        self.steps.start(slot)

    def close(self, slot: int) -> None:
        """It has ended."""
        self.steps.close(slot)
        self.batch = None

    def refine(self, logits: Tensor, rows: list[int | None]) -> tuple[Tensor, Tensor]:
        """Refined logits (rows, V) float32, in place where they are float32, and faults.

        Faults (rows,) int32 are keys of `core.step.FAULTS`, or 0. They are on their way to the
        host: to be read once the host has waited for what follows this step. A row with a fault
        becomes 0, with which any sampling can go on.
        """
        logits = logits.float()
        faults = torch.zeros(len(rows), dtype=torch.int32, device=logits.device)
        for begin in range(0, len(rows), self.rows):
            slots = [-1 if slot is None else slot for slot in rows[begin : begin + self.rows]]
            if max(slots) >= 0:
                some = slice(begin, begin + len(slots))
                faults[some] = self._refine(logits[some], slots)
        on_host = torch.empty(len(rows), dtype=torch.int32, pin_memory=faults.is_cuda)
        return logits, on_host.copy_(faults, non_blocking=True)

    def _refine(self, logits: Tensor, slots: list[int]) -> Tensor:
        """Replace logits (rows, V) by refined ones; returns the fault of each row."""
        if slots != self.batch:
            self.steps.batch(slots)
            self.batch = slots
        self.steps.draw()
        self.steps.read(logits)
        longest = max(self.counts[slot] for slot in slots if slot >= 0)
        refined = self.steps.decide(len(slots), longest)
        faults = self.steps.decided(len(slots)).bad
        torch.where(faults.unsqueeze(1) > 0, self.zero, refined, out=logits)
        return faults
