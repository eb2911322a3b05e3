"""ReVisiT's own work at the shapes of large models, and how a step of it grows, against the
published way to compute the same and against greedy decoding."""

import math
import statistics
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

import published
from drift import Work, drift
from revisit import LMHead, ReVisiTConfig
from revisit.core.columns import Cache
from revisit.core.rows import refine
from revisit.core.session import Session

CONFIG = ReVisiTConfig()
LOG_ALPHA = math.log(CONFIG.alpha)


class Shape(NamedTuple):
    """The sizes that cost depends on."""

    name: str
    tokens: int  # vision states: vision tokens x layers
    width: int
    vocabulary: int
    decoder: dict[str, int]  # of the model, for greedy decoding
    repeats: int
    prefills: int  # of the dense projection
    dense_steps: int  # timed in each repeat


LLAVA = {"layers": 32, "intermediate_size": 11008, "heads": 32, "key_value_heads": 32}
QWEN = {"layers": 28, "intermediate_size": 18944, "heads": 28, "key_value_heads": 4}
SHAPES = [
    Shape("LLaVA-1.5-7B, last", 576, 4096, 32_000, LLAVA, 5, 5, 6),
    Shape("Qwen2.5-VL-7B, last", 1_200, 3584, 152_064, QWEN, 3, 3, 3),
    Shape("Qwen2.5-VL-7B, all", 15 * 1_200, 3584, 152_064, QWEN, 3, 1, 1),
]
TINY = {"layers": 2, "intermediate_size": 64, "heads": 2, "key_value_heads": 2}
QUICK = [
    Shape("tiny, last", 24, 32, 700, TINY, 2, 1, 1),
    Shape("tiny, all", 96, 32, 900, TINY, 2, 1, 1),
]


def clock(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> float:
    """Seconds that one call takes."""
    started = time.perf_counter()
    function(*arguments, **keywords)
    return time.perf_counter() - started


def generation(states: Tensor, head: Tensor, steps: Sequence[Tensor]) -> list[float]:
    """Seconds of each step of ReVisiT for vision states (M, d); logits (V,) of each step."""
    session = Session(states, Cache(LMHead(head), CONFIG.cache_bytes), CONFIG)
    return [clock(refine, logits.unsqueeze(0), [session]) for logits in steps]


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes that tensors made inside it take at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.now = 0
        self.owners: dict[int, int] = {}  # of each storage: how many tensors
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        given = {_storage(each) for each in torch.utils._pytree.tree_leaves((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            storage = _storage(tensor)
            if storage and (storage in self.owners or storage not in given):
                self._own(tensor, storage)
        return result

    def _own(self, tensor: Tensor, storage: int) -> None:
        if id(tensor) in self.known:
            return
        self.known.add(id(tensor))
        size = tensor.untyped_storage().nbytes()
        if not self.owners.get(storage):
            self.now += size
            self.bytes = max(self.bytes, self.now)
        self.owners[storage] = self.owners.get(storage, 0) + 1
        weakref.finalize(tensor, self._disown, id(tensor), storage, size)

    def _disown(self, key: int, storage: int, size: int) -> None:
        self.known.discard(key)
        self.owners[storage] -= 1
        if not self.owners[storage]:
            del self.owners[storage]
            self.now -= size


def _storage(tensor: Any) -> int:
    return tensor.untyped_storage().data_ptr() if isinstance(tensor, Tensor) else 0


class Cell(NamedTuple):
    """One line of the table; seconds of a generation's own work, and bytes."""

    shape: Shape
    candidates: int
    columns: int  # kept at the end
    fits: bool  # whether V_cons fits the cache
    revisit: float
    dense: float
    greedy: float
    revisit_bytes: int
    dense_bytes: int


def measure(
    shape: Shape,
    work: Work,
    dtype: torch.dtype,
    progress: "tqdm[Any]",
    told: Callable[[Cell], object],
) -> list[Cell]:
    """All cells of one shape; each is told when it is known."""
    torch.manual_seed(0)
    head = torch.empty(shape.vocabulary, shape.width, dtype=dtype).normal_(0, 0.02)
    states = torch.empty(shape.tokens, shape.width, dtype=dtype).normal_(0, 2)
    progress.set_description(f"{shape.name}: greedy")
    greedy = greedy_step(shape, dtype) * work.steps
    progress.update()
    progress.set_description(f"{shape.name}: dense projection")
    prefill = [clock(published.prefill, states, head) for _ in range(shape.prefills - 1)]
    with Peak() as dense_peak:
        started = time.perf_counter()
        projected = published.prefill(states, head)
        prefill.append(time.perf_counter() - started)
    progress.update()
    cells = []
    for candidates in work.candidates:
        progress.set_description(f"{shape.name}: V_cons {candidates:,}")
        steps = list(drift(shape.vocabulary, candidates, work))
        fits = candidates * shape.tokens * states.element_size() <= CONFIG.cache_bytes
        own, dense = [], []
        for repeat in range(shape.repeats if fits else 1):
            own.append(sum(generation(states, head, steps)))
            for number in range(shape.dense_steps + (repeat == 0)):  # the first warms up
                row = steps[(repeat + number) % work.steps]
                dense.append(clock(published.step, row, projected, LOG_ALPHA))
        with Peak() as own_peak:
            session = Session(states, Cache(LMHead(head), CONFIG.cache_bytes), CONFIG)
            for logits in steps:
                refine(logits.unsqueeze(0), [session])
        kept = session.columns  # its table is asked for whole, and taken where it is written
        unwritten = (len(kept.table) - kept.held) * kept.bytes
        with Peak() as step_peak:
            published.step(steps[0], projected, LOG_ALPHA)
        cells.append(
            Cell(
                shape,
                candidates,
                session.columns.held,
                fits,
                statistics.median(own),
                statistics.median(prefill) + work.steps * statistics.median(dense[1:]),
                greedy,
                states.nbytes + own_peak.bytes - unwritten,
                max(states.nbytes, step_peak.bytes) + dense_peak.bytes,
            )
        )
        told(cells[-1])
        progress.update()
    return cells


def greedy_step(shape: Shape, dtype: torch.dtype) -> float:
    """Seconds of one step of the model with a full cache, from one and from two of its layers."""
    ids = torch.randint(0, 100, (1, 600 if shape.width > 100 else 20))
    with torch.inference_mode():
        models = [decoder(shape, layers, dtype) for layers in (1, 2)]
        pasts = [model(input_ids=ids, use_cache=True).past_key_values for model in models]
        turns = [  # by turns: the difference of two figures of different minutes is noise
            [
                clock(model, input_ids=ids[:, :1], past_key_values=past, use_cache=True)
                for model, past in zip(models, pasts, strict=True)
            ]
            for _ in range(15)
        ]
    one = statistics.median(first for first, _ in turns)
    layer = statistics.median(second - first for first, second in turns)
    return one + (shape.decoder["layers"] - 1) * max(0.0, layer)


def decoder(shape: Shape, layers: int, dtype: torch.dtype) -> LlamaForCausalLM:
    """The model's text decoder with fewer layers; its weights have the shape, not the meaning."""
    sizes = shape.decoder
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=sizes["intermediate_size"],
        num_hidden_layers=layers,
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["key_value_heads"],
        tie_word_embeddings=True,  # the embedding is only looked up: half the memory
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(dtype)
    model = model.to_empty(device="cpu").eval()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(1e-3)
    return model


class Point(NamedTuple):
    """Where the cost of a single step is looked at."""

    tokens: int = 576
    vocabulary: int = 32_000
    candidates: int = 1_000
    percent: int = 5  # of V_cons that is new in each step


AXES = {
    "candidates": ("tokens in V_cons", [10, 30, 100, 300, 1_000, 3_000, 5_000]),
    "tokens": ("vision states", [144, 576, 1_200, 4_800, 18_000]),
    "vocabulary": ("tokens in the vocabulary", [8_000, 32_000, 152_064, 262_144]),
    "percent": ("% of V_cons new in a step", [1, 5, 10, 20, 50, 100]),
}
QUICK_AXES = {name: (label, [values[0] // 10 or 1, 2]) for name, (label, values) in AXES.items()}
Growth = dict[str, list[tuple[int, float, float]]]


def step_seconds(point: Point, width: int, dtype: torch.dtype) -> tuple[float, float]:
    """Median seconds of one step of ReVisiT, new columns included, and of the dense one."""
    work = Work([], 12, point.percent / 100)
    torch.manual_seed(0)
    head = torch.empty(point.vocabulary, width, dtype=dtype).normal_(0, 0.02)
    states = torch.empty(point.tokens, width, dtype=dtype).normal_(0, 2)
    steps = list(drift(point.vocabulary, point.candidates, work))
    projected = torch.ones(point.tokens, point.vocabulary, dtype=dtype)
    own, dense = [], []
    for _ in range(3):
        own += generation(states, head, steps)[1:]
        dense += [clock(published.step, logits, projected, LOG_ALPHA) for logits in steps[:3]]
    return statistics.median(own), statistics.median(dense)


def growth(quick: bool, dtype: torch.dtype, progress: "tqdm[Any]") -> Growth:
    """A step's seconds along each axis, the others at LLaVA-1.5's sizes."""
    width, start = (32, Point(24, 900, 20)) if quick else (4096, Point())
    found: Growth = {}
    for axis, (label, values) in (QUICK_AXES if quick else AXES).items():
        for value in values:
            progress.set_description(f"a step with {value:,} {label}")
            point = start._replace(**{axis: value})
            if quick and axis == "vocabulary":
                point = point._replace(candidates=2)
            seconds = step_seconds(point, width, dtype)
            found.setdefault(axis, []).append((value, *seconds))
            progress.update()
    return found


def lengths(quick: bool, dtype: torch.dtype, progress: "tqdm[Any]") -> list[tuple[int, float]]:
    """The median seconds of a step in each stretch of one long generation."""
    progress.set_description("a long generation")
    point, width = (Point(24, 900, 20), 32) if quick else (Point(), 4096)
    total, stretch = (16, 4) if quick else (1024, 64)
    torch.manual_seed(0)
    head = torch.empty(point.vocabulary, width, dtype=dtype).normal_(0, 0.02)
    states = torch.empty(point.tokens, width, dtype=dtype).normal_(0, 2)
    work = Work([], total)
    seconds = generation(states, head, list(drift(point.vocabulary, point.candidates, work)))
    progress.update()
    return [
        (start + stretch, statistics.median(seconds[start : start + stretch]))
        for start in range(0, total, stretch)
    ]
