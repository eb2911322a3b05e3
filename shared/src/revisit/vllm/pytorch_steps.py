"""The steps of a worker's requests in plain PyTorch, where the kernels do not run."""

import torch
from torch import Tensor

from revisit.config import ReVisiTConfig
from revisit.core.columns import Cache
from revisit.core.head import LMHead
from revisit.core.left_out import fill_left_out
from revisit.core.rows import refine
from revisit.core.session import Session

# Vision states of a rehearsed step: of more, so many are taken at a time.
_STATES = 128


class PyTorchSteps:
    """The prompts that are open, and their steps, row after row.

    Args:
        settings: the engine's; half of `cache_bytes` is for vision states, half for columns.
        prompts: at a time, at most.

    Attributes:
        bytes: the most that it takes: `cache_bytes`, and in the host's memory where columns are.
        reserved: on a GPU `cache_bytes`, so that vLLM leaves them out of its KV cache; freed when
            the first prompt comes, since prompts take this memory in parts.
    """

    def __init__(self, head: LMHead, settings: ReVisiTConfig, prompts: int) -> None:
        self.head, self.settings, self.prompts = head, settings, prompts
        self.cache = Cache(head, settings.cache_bytes // 2)
        self.bytes = settings.cache_bytes + prompts * 8 * head.size
        self.reserved = None
        if head.device.type != "cpu":
            self.reserved = torch.empty(settings.cache_bytes, dtype=torch.uint8, device=head.device)

    def __str__(self) -> str:
        return "plain PyTorch"

    @torch.inference_mode()
    def rehearse(self) -> None:
        """A step as large as one may be, for vLLM to profile: every token is plausible.

        Rows are taken one after another, so that one of them stands for all.
        """
        head = self.head
        cache = Cache(head, head.size * _STATES * head.dtype.itemsize)
        states = torch.zeros((_STATES, head.width), dtype=head.dtype, device=head.device)
        logits = torch.zeros((self.prompts, head.size), device=head.device)
        refine(logits, [Session(states, cache, self.settings)] + [None] * (self.prompts - 1))

    def open(self, count: int, config: ReVisiTConfig, generator: torch.Generator) -> Session:
        """A prompt of `count` vision states, to be written to `states`."""
        self.reserved = None
        size = (count, self.head.width)
        states = torch.empty(size, dtype=self.head.dtype, device=self.head.device)
        session = Session(states, self.cache, config)
        session.generator = generator
        return session

    def states(self, session: Session) -> Tensor:
        """The vision states (M, d) of a prompt."""
        return session.columns.states

    def start(self, session: Session) -> None:
        """Its vision states are written."""

    def close(self, session: Session) -> None:
        """It has ended."""
        session.close()

    def refine(self, logits: Tensor, rows: list[Session | None]) -> tuple[Tensor, Tensor]:
        """Refined logits (rows, V) float32, finite beyond V_cons, and the fault of each row.

        A row of which no token is possible stays as it came; faults are as in `KernelSteps`.
        """
        faults = [0] * len(rows)
        try:
            refined, _ = refine(logits, rows)
        except ValueError:
            each = zip(logits, rows, strict=True)
            faults = [_fault(row) if session else 0 for row, session in each]
            if not any(faults):
                raise
            rows = [None if fault else row for fault, row in zip(faults, rows, strict=True)]
            refined, _ = refine(logits, rows)
        # Row by row: temporaries of all rows at once would take more memory than all else does.
        for row, session in enumerate(rows):
            if session:
                one = slice(row, row + 1)
                refined[one] = fill_left_out(refined[one], logits[one])
        return refined, torch.tensor(faults, dtype=torch.int32)


def _fault(logits: Tensor) -> int:
    """The key in `core.step.FAULTS` of why no token can be chosen from logits (V,), or 0."""
    if logits.isnan().any():
        return 1
    return 2 if logits.isneginf().all() else 0
