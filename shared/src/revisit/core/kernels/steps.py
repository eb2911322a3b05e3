"""The prompts that a GPU decodes, and the launches of a step. `step_kernels.py` has the kernels."""

import math
import struct
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from revisit.config import ReVisiTConfig
from revisit.core.head import LMHead
from revisit.core.kernels import step_kernels as kernels

_NEVER = -(2**30)  # the ticket of a token that has no column
_GRAIN = 64  # elements: where vision states and columns begin, and what columns are rounded up to
_MOST = 2048  # columns that a prompt computes in a step, at most
_PIECE = 2**24  # elements of the pool that are moved at a time


class Sizes(NamedTuple):
    """What a program of a kernel takes: for tuning, and small in tests."""

    block: int = 2048  # tokens of the vocabulary
    tile: int = 16  # vision states that are compared, a power of 2 from 16 to 64
    chunk: int = 256  # tokens of V_cons at a time
    height: int = 32  # vision states of a product, 32 or 64


class Decided(NamedTuple):
    """What a step decided, for the rows (R,); a row that was left as it came has 0 candidates."""

    choices: Tensor  # int32, i*
    candidates: Tensor  # int32, |V_cons|
    divergences: Tensor  # float32, D(p_c, q_i*), nats
    bad: Tensor  # int32: 1 the logits hold NaN, 2 no token is possible, else 0


@dataclass(eq=False)
class _Prompt:
    start: int  # elements of the pool
    elements: int
    count: int  # M, vision states
    ring: int  # columns that it keeps
    generator: torch.Generator | None  # of selection="random"


class Steps:
    """Prompts in slots, rows that point to them, and one step for all rows.

        steps = Steps(head, slots=8, rows=8, longest=576, budget=2**30)
        slot = steps.open(states, config)       # a prompt comes, after its prefill
        steps.batch([slot, -1])                 # which prompt each row is of; -1: a plain row
        scores = steps.step(logits)             # six launches; nothing waits for the GPU
        steps.close(slot)                       # it ends

    All memory is taken here, once; no prompt and no logits can take more. Calls may be captured in
    a CUDA graph: `decide` alone, or `read` and `decide` if the logits stay where they are. A graph
    belongs to a number of rows; `open`, `close`, `batch` and `draw` may come between its replays.

    Args:
        head: the LM head; `available(head)` must be true.
        slots: prompts open at a time, at most.
        rows: of a batch, at most.
        longest: vision states of a prompt, M, at most.
        budget: bytes of all that is taken here. What `buffer_bytes` leaves of it is for vision
            states and columns: a prompt needs room for its M * d states alone.
        columns: bytes of columns that a prompt keeps, and takes when it opens. Where this is enough
            for all V tokens they are all computed then; a token that finds no room is multiplied
            in each step that needs it.
        fill: tokens beyond V_cons get what `core.left_out.fill_left_out` gives them, not -inf.
        sizes: of the programs.

    Raises:
        ValueError: the budget leaves no room for a prompt.
    """

    @torch.inference_mode(False)  # buffers are written in any mode
    def __init__(
        self, head: LMHead, *, slots: int, rows: int, longest: int, budget: int,
        columns: int = 128 * 2**20, fill: bool = False, sizes: Sizes | None = None,
    ) -> None:  # fmt: skip
        self.head, self.slots, self.rows, self.longest = head, slots, rows, longest
        self.column_bytes, self.sizes = columns, sizes or _sizes(longest)
        size, self.device = head.dtype.itemsize, head.device
        self._cuda = self.device.type == "cuda"
        self._programs = 2  # of the grouped product
        if self._cuda:
            self._programs *= torch.cuda.get_device_properties(self.device).multi_processor_count
        shapes = _buffers(head.size, slots, rows, longest, self.sizes)
        left = budget - _bytes(shapes)
        if left < (states := _up(longest * head.width) * size):
            raise ValueError(
                f"a budget of {budget} bytes is too small: buffers take {budget - left} of them, "
                f"the vision states of one prompt {states}"
            )
        self._buffers: dict[str, Tensor] = {
            name: torch.zeros(shape, dtype=dtype, device=self.device)
            for name, (shape, dtype) in shapes.items()
        }
        self.scores, self._decided = self._buffers["scores"], self._buffers["decided"]
        self._pool = torch.zeros(left // size, dtype=head.dtype, device=self.device)
        blocks = triton.cdiv(head.size, self.sizes.block)
        tiles = triton.cdiv(longest, self.sizes.tile)
        self._arguments: dict[str, Any] = {  # of the kernels, by name
            **self._buffers, "pool": self._pool, "weight": head.weight, "bias": head.bias,
            "W_STRIDE": head.weight.stride(0), "SCALE": head.scale, "CAP": head.softcap,
            "V": head.size, "d": head.width, "R": rows, "LONGEST": longest, "MOST": _MOST,
            "NB": blocks, "NT": tiles, "FILL": fill,
            "PB": triton.next_power_of_2(blocks), "PT": triton.next_power_of_2(tiles),
            "PR": max(16, triton.next_power_of_2(rows)),
            "B": self.sizes.block, "BM": self.sizes.tile, "BT": self.sizes.chunk,
            "BS": 64, "BK": 64,
        }  # fmt: skip
        self._prompts: dict[int, _Prompt] = {}
        self._row_prompts: list[_Prompt | None] = []
        self.batch([])

    @torch.inference_mode()
    def open(
        self, states: Tensor, config: ReVisiTConfig, generator: torch.Generator | None = None
    ) -> int:
        """A prompt: its vision states (M, d) are copied; returns its slot.

        Args:
            states: (M, d) in the head's dtype.
            config: alpha, divergence and selection are used here.
            generator: for `selection="random"`, on the CPU.

        Raises:
            ValueError: there is no room, or the states do not fit the head.
        """
        if states.shape[1] != self.head.width:
            raise ValueError(
                f"vision states must be (M, {self.head.width}), got {tuple(states.shape)}"
            )
        slot = self.take(len(states), config, generator)
        self.states(slot).copy_(states)
        self.start(slot)
        return slot

    @torch.inference_mode()
    def take(
        self,
        count: int,
        config: ReVisiTConfig,
        generator: torch.Generator | None = None,
        columns: int | None = None,
    ) -> int:
        """Room for a prompt of `count` vision states, which come later; returns its slot.

        Write them to `states(slot)` (ask each time: it may move), then call `start(slot)`.

        Args:
            columns: bytes of columns that this prompt keeps, in place of what all are allowed.

        Raises:
            ValueError: there is no room.
        """
        if not 0 < count <= self.longest:
            raise ValueError(
                f"a prompt has vision states, 1 to {self.longest} of them, got {count}"
            )
        size, height = _up(count * self.head.width), _up(count)
        allowed = (self.column_bytes if columns is None else columns) // self.head.dtype.itemsize
        ring = min(self.head.size, min(self._pool.numel() - size, allowed) // height)
        elements = size + ring * height
        used = sum(prompt.elements for prompt in self._prompts.values())
        if used + elements > self._pool.numel() or len(self._prompts) == self.slots:
            raise ValueError("no slot, or no memory, is free for another prompt: close one first")
        start = self._place(elements)
        slot = next(slot for slot in range(self.slots) if slot not in self._prompts)
        draws = generator if config.selection == "random" else None
        self._prompts[slot] = _Prompt(start, elements, count, ring, draws)
        shift = math.log(config.alpha) if config.alpha else -math.inf
        new = 0 if ring == self.head.size else min(ring // 2, _MOST)  # columns of a step
        facts = [start, count, start + size, height, ring, new]
        facts += [("ag", "js").index(config.divergence), _bits(shift)]
        facts += [_bits(-1.0 if config.selection == "max" else 1.0)]
        self._send(self._buffers["facts"][slot, : len(facts)], facts)
        self._buffers["issued"][slot].zero_()
        self._buffers["table"][slot].fill_(_NEVER)
        return slot

    def states(self, slot: int) -> Tensor:
        """The vision states (M, d) of the prompt in this slot, where they are kept."""
        prompt = self._prompts[slot]
        return self._pool[prompt.start :][: prompt.count * self.head.width].view(prompt.count, -1)

    @torch.inference_mode()
    def start(self, slot: int) -> None:
        """The vision states of a prompt are written; if all columns fit, they are computed now."""
        V = self.head.size
        if self._prompts[slot].ring < V:
            return
        tokens = torch.arange(V, dtype=torch.int32, device=self.device)
        batch, decided = torch.empty_like(self._buffers["batch"]), torch.zeros_like(self._decided)
        self._send(batch, _grouped([slot], self.rows))
        decided[0, kernels.JOBS.value].fill_(V)
        with self._on_device():
            self._project(batch=batch, decided=decided, job_tokens=tokens, MOST=V)
        self._buffers["table"][slot].copy_(tokens)
        self._buffers["issued"][slot].fill_(V)

    def close(self, slot: int) -> None:
        """The prompt in this slot has ended. If a row was of it, call `batch` before a step."""
        self._closed |= self._prompts.pop(slot) in self._row_prompts

    def batch(self, slots: Sequence[int]) -> None:
        """Which slot each row is of, -1 for a plain row: whenever that changes.

        Rows beyond these are plain. Rows of one slot (beams) share its columns.

        Raises:
            ValueError: there are more rows than were asked for, or a slot is not open.
        """
        if len(slots) > self.rows:
            raise ValueError(f"a batch has {self.rows} rows at most, got {len(slots)}")
        if unknown := sorted({slot for slot in slots if slot >= 0}.difference(self._prompts)):
            raise ValueError(f"no prompt is open in slots {unknown}")
        self._row_prompts = [self._prompts.get(slot) for slot in slots]
        self._closed = False
        self._send(self._buffers["batch"], _grouped(slots, self.rows))
        if not any(prompt and prompt.generator for prompt in self._row_prompts):
            self._decided[:, kernels.DRAWN.value].fill_(-1)

    def step(self, logits: Tensor) -> Tensor:
        """Scores (R, V) float32 of logits (R, V) of any floating dtype: six launches.

        Scores lie in a buffer that the next step writes again. A row that holds NaN, or in which no
        token is possible, stays as it came: `decided().bad`.
        """
        self.draw()
        self.read(logits)
        return self.decide(logits.shape[0])

    def draw(self) -> None:
        """Draw for rows of `selection="random"`, in their order, on the host."""
        if any(prompt and prompt.generator for prompt in self._row_prompts):
            draws = [-1] * self.rows
            for row, prompt in enumerate(self._row_prompts):
                if prompt and (generator := prompt.generator):
                    drawn = torch.randint(prompt.count, (), generator=generator, device="cpu")
                    draws[row] = int(drawn)
            self._send(self._decided[:, kernels.DRAWN.value], draws)

    def read(self, logits: Tensor) -> None:
        """The first kernel: it alone reads the logits, wherever they are."""
        (R, V), logits = logits.shape, logits.detach()
        if self.head.size != V or not len(self._row_prompts) <= R <= self.rows:
            raise ValueError(
                f"logits must be (rows, {self.head.size}), {len(self._row_prompts)} to {self.rows} "
                f"rows of them, got {tuple(logits.shape)}"
            )
        if self._closed:
            raise ValueError("a prompt of this batch was closed: call `batch` again")
        if logits.stride(1) != 1:
            logits = logits.contiguous()
        grid = (R, self._arguments["NB"])
        with self._on_device():
            self._launch(kernels.read_logits, grid, logits=logits, STRIDE_R=logits.stride(0))

    def decide(self, rows: int, longest: int | None = None) -> Tensor:
        """The other five kernels, for so many rows; returns the scores (R, V).

        Args:
            longest: vision states of a prompt of this batch, at most, where that is known: fewer
                programs are launched. A graph that is replayed for other batches leaves it out.
        """
        blocks, tiles = self._arguments["NB"], triton.cdiv(longest or self.longest, self.sizes.tile)
        with self._on_device():
            self._launch(kernels.count_tokens, (rows, blocks))
            self._launch(kernels.list_tokens, (rows, blocks))
            self._project()
            self._launch(kernels.compare_states, (rows, tiles))
            self._launch(kernels.refine_scores, (rows, blocks))
        return self.scores[:rows]

    def decided(self, rows: int) -> Decided:
        """What the latest step decided for so many rows: copies, on the device."""
        decided = self._decided[:rows].clone().unbind(1)
        size, bad, choice = kernels.SIZE.value, kernels.BAD.value, kernels.CHOICE.value
        divergences = self._buffers["divergences"][:rows].clone()
        return Decided(decided[choice], decided[size], divergences, decided[bad])

    def distances(self) -> list[Tensor | None]:
        """D(p_c, q_i) of the latest step, (M,) float32 nats for each row of the batch, where the
        next step writes them; None for a plain row."""
        signed = self._buffers["distances"][:, 0]
        return [
            None if prompt is None else row[: prompt.count].abs()
            for prompt, row in zip(self._row_prompts, signed, strict=False)
        ]

    def _project(self, **changed: Any) -> None:
        grid, height = (self._programs,), self.sizes.height
        self._launch(kernels.project_states, grid, height // 8, BK=128, BM=height, **changed)

    def _launch(
        self, kernel: Any, grid: tuple[int, ...], num_warps: int = 8, **changed: Any
    ) -> None:
        """Launch a kernel with its arguments, some of them changed."""
        arguments = self._arguments | changed if changed else self._arguments
        named = {name: arguments[name] for name in kernel.arg_names}
        kernel[grid](**named, num_warps=num_warps)

    def _on_device(self) -> AbstractContextManager[object]:
        """Triton launches on the current device: enter this once for the launches of a step."""
        return torch.cuda.device(self.device) if self._cuda else nullcontext()

    def _place(self, elements: int) -> int:
        """Where so many elements of the pool are free in one piece; prompts are moved if needed."""
        start = 0
        for prompt in sorted(self._prompts.values(), key=lambda prompt: prompt.start):
            if prompt.start - start >= elements:
                return start
            start = prompt.start + prompt.elements
        return start if self._pool.numel() - start >= elements else self._compact()

    def _compact(self) -> int:
        """Move prompts to the front of the pool; returns where they end."""
        end = 0
        for slot, prompt in sorted(self._prompts.items(), key=lambda item: item[1].start):
            if prompt.start > end:
                for at in range(0, prompt.elements, _PIECE):  # old and new place may overlap
                    piece = slice(at, min(at + _PIECE, prompt.elements))
                    moved = self._pool[prompt.start :][piece].clone()
                    self._pool[end:][piece] = moved
                prompt.start = end
                columns = end + _up(prompt.count * self.head.width)
                self._send(self._buffers["facts"][slot, :3], [end, prompt.count, columns])
            end += prompt.elements
        return end

    def _send(self, buffer: Tensor, values: Sequence[int]) -> None:
        """Numbers to the device, without waiting for it."""
        on_host = torch.tensor(values, dtype=buffer.dtype, device="cpu", pin_memory=self._cuda)
        buffer.copy_(on_host, non_blocking=True)


def buffer_bytes(V: int, *, slots: int, rows: int, longest: int, sizes: Sizes | None = None) -> int:
    """Bytes that `Steps` takes beside vision states and columns: 16 V a row and 4 V a slot are most
    of it. V is the size of the LM head; the other arguments are as for `Steps`.
    """
    return _bytes(_buffers(V, slots, rows, longest, sizes or _sizes(longest)))


def prompt_bytes(head: LMHead, count: int, columns: int) -> int:
    """Bytes of a prompt of so many vision states, and of its columns, `columns` at most."""
    size, height = head.dtype.itemsize, _up(count)
    return size * (_up(count * head.width) + min(head.size, columns // size // height) * height)


def _sizes(longest: int) -> Sizes:
    """With many vision states taller tiles read less of the weight and of lists again."""
    return Sizes() if longest <= 4096 else Sizes(tile=32, chunk=128, height=64)


def _buffers(
    V: int, slots: int, rows: int, longest: int, sizes: Sizes
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of each buffer."""
    NB, NT = triton.cdiv(V, sizes.block), triton.cdiv(longest, sizes.tile)
    real, whole = torch.float32, torch.int32
    return {
        "scores": ((rows, V), real),
        "log_p": ((rows, V), real),
        "tops": ((rows, 4, NB), real),  # of a block: two largest, sum of exp on V_cons, log sum exp
        "distances": ((rows, 3, longest), real),  # signed distance, log sum exp, least score
        "nearest": ((rows, NT), real),
        "divergences": ((rows,), real),
        "lists": ((rows, 2, V), whole),  # V_cons, and the places of its columns
        "counts": ((rows, 3, NB), whole),  # V_cons of a block; new and spare tokens of a prompt
        "job_tokens": ((rows, _MOST), whole),  # tokens whose columns a step computes
        "decided": ((rows, kernels.DECIDED.value), whole),
        "batch": ((3 * rows + 1,), whole),  # as `_grouped` says
        "table": ((slots, V), whole),  # tickets
        "issued": ((slots,), whole),
        "facts": ((slots, kernels.FACTS.value), torch.int64),
    }


def _bytes(shapes: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> int:
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())


def _grouped(slots: Sequence[int], rows: int) -> list[int]:
    """The buffer `batch`: the slot of each row, rows in order of their slots, where each begins."""
    slots = [*slots, *[-1] * (rows - len(slots))]
    order = sorted((row for row in range(rows) if slots[row] >= 0), key=lambda row: slots[row])
    starts = [k for k, r in enumerate(order) if not k or slots[r] != slots[order[k - 1]]]
    starts += [len(order)] * (rows + 1 - len(starts))
    return [*slots, *order, *[0] * (rows - len(order)), *starts]


def _up(elements: int) -> int:
    return -(-elements // _GRAIN) * _GRAIN


def _bits(value: float) -> int:
    """The bits of a float32."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])
