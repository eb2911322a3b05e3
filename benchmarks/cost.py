"""What ReVisiT costs: time and memory of its own work, at the shapes of LLaVA-1.5-7B and
Qwen2.5-VL-7B, against greedy decoding and against the published way to compute the same.

Runs on the CPU with random weights, in some minutes; `nox -s bench` runs it.
"""

import argparse
import math
import platform
import statistics
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

import published
from revisit import LMHead, ReVisiTConfig
from revisit.core.batch import refine
from revisit.core.columns import Pool
from revisit.core.session import Session

DOCS = Path(__file__).parents[1] / "docs"
CONFIG = ReVisiTConfig()
LOG_ALPHA = math.log(CONFIG.alpha)
ABOUT = """\
Written by `nox -s bench -- --docs` on {day}: {machine}, {threads} threads, PyTorch {torch},
{dtype}.

Own work is all that a decoder does besides the model: for *ReVisiT* the projection of words that
become plausible, and the steps; for *dense* the projection of all vision states onto the whole
vocabulary in prefill, which is stored as the published implementation stores it, and per step a
softmax, a log-softmax and two Kullback-Leibler divergences over V_cons of what is stored. Weights,
vision states and logits are random; both get the same. A generation has {steps} steps. Its V_cons
has a fixed size; in each step {share:.0%} of its words are replaced by words drawn by Zipf's law
(the probability of a word is 1 / its rank), so that frequent words come back. `cache_bytes` is the
default, {cache} MiB.

Times are medians of interleaved repeats in one run. A dense step costs the same all along, so a few
are timed and multiplied; ReVisiT's generations run whole. Extra memory is the peak of the bytes of
all tensors alive, the recorded vision states with it. *Of greedy* is ReVisiT's own work relative to
{steps} greedy steps of the model on this machine: the LM head and one decoder layer of the real
shape are timed, and the layer counted {layers} times.
"""


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


class Work(NamedTuple):
    """How much of it: candidates in V_cons, steps, and the share of new words a step."""

    candidates: Sequence[int]
    steps: int = 64
    share: float = 0.05


def drift(vocabulary: int, candidates: int, work: Work, seed: int = 0) -> Iterator[Tensor]:
    """Logits (V,) float32 of each step of a generation; their V_cons has `candidates` words."""
    generator = torch.Generator().manual_seed(seed)
    # Words of neighbouring ranks do not stand side by side in a vocabulary.
    ranked = torch.randperm(vocabulary, generator=generator)
    log_frequency = -torch.arange(1, vocabulary + 1).log()

    def draw(count: int, without: Tensor) -> Tensor:
        # The largest of log-probability plus Gumbel noise: a sample without replacement.
        noise = torch.rand(vocabulary, generator=generator).log().neg().log().neg()
        return (log_frequency + noise).index_fill(0, without, -math.inf).topk(count).indices

    current = draw(candidates, torch.empty(0, dtype=torch.int64))
    new = max(1, round(work.share * candidates))
    for _ in range(work.steps):
        logits = torch.rand(vocabulary, generator=generator) - 40
        likely = torch.randn(candidates, generator=generator) * 2
        logits[ranked[current]] = likely.clamp(max=5).clamp(min=likely.max().clamp(max=5) - 11)
        yield logits
        stay = torch.randperm(candidates, generator=generator)[new:]
        current = torch.cat([current[stay], draw(new, current)])


def clock(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> float:
    """Seconds that one call takes."""
    started = time.perf_counter()
    function(*arguments, **keywords)
    return time.perf_counter() - started


def generation(states: Sequence[Tensor], head: Tensor, steps: Sequence[Tensor]) -> list[float]:
    """Seconds of each step of ReVisiT; rows (B, V) of logits for B vision states."""
    pool = Pool(LMHead(head), CONFIG.cache_bytes)
    sessions = [Session(each, pool, CONFIG) for each in states]
    return [clock(refine, logits, sessions) for logits in steps]


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


def measure(shape: Shape, work: Work, dtype: torch.dtype, progress: "tqdm[Any]") -> list[Cell]:
    """All cells of one shape."""
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
        steps = [each.unsqueeze(0) for each in drift(shape.vocabulary, candidates, work)]
        columns = Pool(LMHead(head), CONFIG.cache_bytes).open(states)
        fits = candidates <= columns.pool.limit // columns.size
        own, dense = [], []
        for repeat in range(shape.repeats if fits else 1):
            own.append(sum(generation([states], head, steps)))
            for number in range(shape.dense_steps + (repeat == 0)):  # the first warms up
                row = steps[(repeat + number) % work.steps][0]
                dense.append(clock(published.step, row, projected, LOG_ALPHA))
        with Peak() as own_peak:
            session = Session(states, Pool(LMHead(head), CONFIG.cache_bytes), CONFIG)
            for logits in steps:
                refine(logits, [session])
        with Peak() as step_peak:
            published.step(steps[0][0], projected, LOG_ALPHA)
        cells.append(
            Cell(
                shape,
                candidates,
                session.columns.held,
                fits,
                statistics.median(own),
                statistics.median(prefill) + work.steps * statistics.median(dense[1:]),
                greedy,
                states.nbytes + own_peak.bytes,
                max(states.nbytes, step_peak.bytes) + dense_peak.bytes,
            )
        )
        progress.write(line(cells[-1]), file=sys.stdout)
        progress.update()
    return cells


def greedy_step(shape: Shape, dtype: torch.dtype) -> float:
    """Seconds of one step of the model with a full cache, from one and from two of its layers."""
    seconds = []
    for layers in (1, 2):
        model = decoder(shape, layers, dtype)
        ids = torch.randint(0, 100, (1, 600 if shape.width > 100 else 20))
        with torch.inference_mode():
            past = model(input_ids=ids, use_cache=True).past_key_values
            times = [
                clock(model, input_ids=ids[:, :1], past_key_values=past, use_cache=True)
                for _ in range(7)
            ]
        seconds.append(statistics.median(times))
    one, two = seconds
    return one + (shape.decoder["layers"] - 1) * max(0.0, two - one)


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
    batch: int = 1
    percent: int = 5  # of V_cons that is new in each step


AXES = {
    "candidates": ("words in V_cons", [10, 30, 100, 300, 1_000, 3_000, 5_000]),
    "tokens": ("vision states", [144, 576, 1_200, 4_800, 18_000]),
    "batch": ("rows of the batch", [1, 2, 4, 8, 16]),
    "vocabulary": ("words in the vocabulary", [8_000, 32_000, 152_064, 262_144]),
    "percent": ("% of V_cons new in a step", [1, 5, 10, 20, 50, 100]),
}
QUICK_AXES = {name: (label, [values[0] // 10 or 1, 2]) for name, (label, values) in AXES.items()}
Growth = dict[str, list[tuple[int, float, float]]]


def step_seconds(point: Point, width: int, dtype: torch.dtype) -> tuple[float, float]:
    """Median seconds of one step of ReVisiT, new columns included, and of the dense one."""
    work = Work([], 12, point.percent / 100)
    torch.manual_seed(0)
    head = torch.empty(point.vocabulary, width, dtype=dtype).normal_(0, 0.02)
    shape = (point.batch, point.tokens, width)
    states = torch.empty(shape, dtype=dtype).normal_(0, 2).unbind()
    rows = [drift(point.vocabulary, point.candidates, work, seed) for seed in range(point.batch)]
    steps = [torch.stack(logits) for logits in zip(*rows, strict=True)]
    projected = torch.ones(point.tokens, point.vocabulary, dtype=dtype)
    own, dense = [], []
    for _ in range(3):
        own += generation(states, head, steps)[1:]
        dense += [clock(published_batch, logits, projected) for logits in steps[:3]]
    return statistics.median(own), statistics.median(dense)


def published_batch(logits: Tensor, projected: Tensor) -> None:
    """The published step takes one row."""
    for row in logits:
        published.step(row, projected, LOG_ALPHA)


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
    steps = [each.unsqueeze(0) for each in drift(point.vocabulary, point.candidates, work)]
    seconds = generation([states], head, steps)
    progress.update()
    return [
        (start + stretch, statistics.median(seconds[start : start + stretch]))
        for start in range(0, total, stretch)
    ]


HEAD = (
    "| shape | V_cons | words kept | ReVisiT, s | dense, s | time | of greedy "
    "| ReVisiT, MiB | dense, MiB | memory |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def line(cell: Cell) -> str:
    """A cell in Markdown, below HEAD."""
    own, dense = (each / 2**20 for each in (cell.revisit_bytes, cell.dense_bytes))
    return (
        f"| {cell.shape.name} | {cell.candidates:,}{'' if cell.fits else ' *'} "
        f"| {cell.columns:,} | {cell.revisit:.3g} | {cell.dense:.3g} "
        f"| {ratio(cell.revisit, cell.dense)} | {cell.revisit / cell.greedy:.2%} "
        f"| {own:.1f} | {dense:.1f} | {ratio(own, dense)} |"
    )


def ratio(own: float, dense: float) -> str:
    """How ReVisiT compares to the dense one, bold where it is worse."""
    text = f"{own / dense:.3f}"
    return f"**{text}**" if own > dense else text


def growth_table(found: Growth, long: Sequence[tuple[int, float]]) -> str:
    """A step's milliseconds along each axis in Markdown."""
    lines = ["| axis | size | ReVisiT, ms | dense, ms |", "|---|---:|---:|---:|"]
    for axis, points in found.items():
        for value, own, dense in points:
            mine = f"{own * 1e3:.3g}"
            mine = f"**{mine}**" if own > dense else mine
            lines.append(f"| {AXES[axis][0]} | {value:,} | {mine} | {dense * 1e3:.3g} |")
    for step, own in long[:: max(1, len(long) // 4)]:
        lines.append(f"| steps of the generation so far | {step:,} | {own * 1e3:.3g} | |")
    return "\n".join(lines)


def remarks(cells: Sequence[Cell]) -> str:
    """Why the cells that stand out do."""
    texts = []
    if any(not cell.fits for cell in cells):
        texts.append(
            "\\* V_cons does not fit the cache: what does not is projected again in every step."
        )
    if any(cell.revisit > cell.dense or cell.revisit_bytes > cell.dense_bytes for cell in cells):
        texts.append(
            "Bold: worse than dense, whose projection pays where a generation needs most of the "
            "vocabulary, and so many columns are computed in parts, or again."
        )
    return "\n\n".join(texts)


def plot(cells: Sequence[Cell], found: Growth, long: Sequence[tuple[int, float]], to: Path) -> None:
    """The table and the growth in one picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 7.5), layout="constrained")
    axes = iter(figure.subplots(2, 4).flatten())
    whole = next(axes)
    for color, name in enumerate(dict.fromkeys(cell.shape.name for cell in cells)):
        mine = [cell for cell in cells if cell.shape.name == name]
        for style, values, label in (
            ("o-", [cell.revisit for cell in mine], name),
            ("s:", [cell.dense for cell in mine], None),
        ):
            places = [cell.candidates for cell in mine]
            whole.loglog(places, values, style, color=f"C{color}", label=label)
    whole.set(title="a generation's own work (dotted: dense)", xlabel="words in V_cons")
    whole.set_ylabel("seconds")
    whole.legend(fontsize=8, loc="lower right")
    for axis, points in found.items():
        panel = next(axes)
        values = [value for value, _, _ in points]
        panel.loglog(values, [1e3 * own for _, own, _ in points], "o-", label="ReVisiT")
        panel.loglog(values, [1e3 * dense for _, _, dense in points], "s:", label="dense")
        panel.set(title="one step", xlabel=AXES[axis][0], ylabel="milliseconds")
        panel.legend(fontsize=8)
    panel = next(axes)
    panel.plot([step for step, _ in long], [1e3 * seconds for _, seconds in long], "o-")
    panel.set(title="one step of a long generation", xlabel="step", ylabel="milliseconds")
    panel.set_ylim(bottom=0)
    for unused in axes:
        unused.axis("off")
    figure.savefig(to, dpi=110)


def processor() -> str:
    """The name of this machine's CPU."""
    about = Path("/proc/cpuinfo")
    if about.exists():
        for line in about.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def options() -> argparse.Namespace:
    """The command line, checked before anything long begins."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--docs",
        nargs="?",
        type=Path,
        const=DOCS,
        metavar="FOLDER",
        help="write cost.md and cost.png into docs/, or into the folder given",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only shows that it runs")
    parser.add_argument("--threads", type=int, help="of PyTorch (default: one a core)")
    parser.add_argument(
        "--dtype",
        choices=["bfloat16", "float32"],
        default="bfloat16",
        help="of weights and vision states (default: bfloat16, as these models are used)",
    )
    given = parser.parse_args()
    if given.threads is not None and given.threads < 1:
        parser.error("--threads must be at least 1")
    if given.quick and given.docs == DOCS:
        parser.error("--quick measures nothing worth keeping: give --docs another folder")
    if given.docs:
        if not given.docs.is_dir():
            parser.error(f"--docs: there is no folder {given.docs}")
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            parser.error("--docs draws with matplotlib, which is not installed")
    return given


def main() -> None:
    """Measure, print, and write what was asked for."""
    given = options()
    if given.threads:
        torch.set_num_threads(given.threads)
    dtype = getattr(torch, given.dtype)
    work = Work([2, 20], 8) if given.quick else Work([10, 100, 1_000, 5_000])
    shapes, axes = (QUICK, QUICK_AXES) if given.quick else (SHAPES, AXES)
    total = len(shapes) * (2 + len(work.candidates)) + 1
    total += sum(len(values) for _, values in axes.values())
    print(HEAD)
    with torch.inference_mode(), tqdm(total=total, file=sys.stderr) as progress:
        cells = [cell for shape in shapes for cell in measure(shape, work, dtype, progress)]
        found = growth(given.quick, dtype, progress)
        long = lengths(given.quick, dtype, progress)
    print("", remarks(cells), growth_table(found, long), sep="\n\n")
    if given.docs:
        about = ABOUT.format(
            day=date.today(),
            machine=processor(),
            torch=torch.__version__,
            threads=torch.get_num_threads(),
            dtype=given.dtype,
            steps=work.steps,
            share=work.share,
            cache=CONFIG.cache_bytes // 2**20,
            layers=" or ".join(sorted({str(shape.decoder["layers"]) for shape in shapes})),
        )
        table = "\n".join([HEAD, *map(line, cells)])
        given.docs.joinpath("cost.md").write_text(
            f"# What ReVisiT costs\n\n{about}\n{table}\n\n{remarks(cells)}\n\n"
            "## Growth of a step\n\n"
            "![Time against V_cons, vision states, rows, vocabulary, and length](cost.png)\n\n"
            "The sizes that are not named are LLaVA-1.5-7B's, with 1,000 words in V_cons. A step "
            "of ReVisiT includes the projection of its new words; a dense step only reads what its "
            "prefill stored, which is not counted here. Bold: longer than dense, where the fixed "
            "cost of a step's small operators shows (few words) or the projection of many new "
            "words.\n\n"
            f"{growth_table(found, long)}\n\nOn a GPU none of this was measured; `python "
            "benchmarks/gpu.py` does, where there is one.\n",
            encoding="utf-8",
        )
        plot(cells, found, long, given.docs / "cost.png")


if __name__ == "__main__":
    main()
