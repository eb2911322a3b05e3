"""What ReVisiT costs on a CPU: time and memory of its work, at the sizes of LLaVA-1.5-7B and
Qwen2.5-VL-7B, against greedy decoding and against the published way to compute the same; and a step
for many rows at once.

Random weights, nothing is downloaded, some minutes; `nox -s bench` runs it.
"""

import argparse
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

import page
import published
from cases import CASES, DEPTH, SIZES, TINY, Case, decoder, drift, lm_head, vision_states
from measuring import Operators, by_turns, clock, peak_bytes
from page import Cell, Measured, Point, Row
from revisit import LMHead, ReVisiTConfig
from revisit.core.columns import Cache
from revisit.core.head import native
from revisit.core.rows import refine
from revisit.core.session import Session

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CONFIG = ReVisiTConfig()
Line = TypeVar("Line", Cell, Point, Row)


class Plan(NamedTuple):
    """What is measured of which sizes."""

    cases: Sequence[Case] = CASES
    candidates: Sequence[int] = (10, 100, 1_000, 5_000)
    steps: int = 64
    long: int = 1024  # steps of a long generation
    rows: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)
    row_candidates: int = 300
    axes: dict[str, Sequence[int]] = {  # noqa: RUF012
        "tokens in V_cons": (10, 30, 100, 300, 1_000, 3_000, 5_000),
        "vision states": (144, 576, 1_200, 4_800, 18_000),
        "tokens in the vocabulary": (8_000, 32_000, 152_064, 262_144),
        "% of V_cons new in a step": (1, 5, 10, 20, 50, 100),
    }


QUICK = Plan(TINY, (2, 20), 8, 16, (1, 2), 20, {name: (20, 30) for name in Plan().axes})


def generation(
    head: LMHead, states: Tensor, steps: Sequence[Tensor]
) -> tuple[Session, list[float]]:
    """Seconds of each step of ReVisiT for vision states (M, d); logits (V,) of each step."""
    session = Session(states, Cache(head, CONFIG.cache_bytes), CONFIG)
    return session, [clock(refine, logits.unsqueeze(0), [session]) for logits in steps]


def measure_case(case: Case, plan: Plan, dtype: torch.dtype) -> Iterator[Cell]:
    """A generation of ReVisiT, the same by the published way, and the model's greedy decoding."""
    few = case.states > 10_000  # where a dense step takes seconds
    greedy = greedy_seconds(case, dtype)
    head = lm_head(case.vocabulary, case.width, dtype)
    states = vision_states(case.states, head)
    times = [clock(published.prefill, states, head.weight) for _ in range(1 if few else 3)]
    prefill = median(times)
    projected = published.prefill(states, head.weight)
    for candidates in plan.candidates:
        steps = list(drift(case.vocabulary, candidates, plan.steps))
        fits = candidates * case.states * states.element_size() <= CONFIG.cache_bytes
        revisit, dense = [], []
        for _ in range(3 if fits else 1):
            revisit.append(sum(generation(head, states, steps)[1]))
            for logits in steps[: 2 if few else 4]:
                dense.append(clock(published.step, logits, projected, -DEPTH))
        sessions: list[Session] = []
        peak = peak_bytes(lambda: sessions.append(generation(head, states, steps)[0]))  # noqa: B023
        kept = sessions[0].columns  # its table is asked for whole, and taken where it is written
        peak -= (len(kept.table) - kept.held) * kept.bytes
        dense_peak = peak_bytes(lambda: published.step(steps[0], projected, -DEPTH))  # noqa: B023
        yield Cell(
            case,
            candidates,
            kept.held,
            fits,
            revisit=median(revisit),
            dense=prefill + plan.steps * median(dense[1:]),  # the first warms up
            greedy=plan.steps * greedy,
            revisit_bytes=states.nbytes + peak,
            dense_bytes=max(states.nbytes, dense_peak) + projected.nbytes,
        )


def greedy_seconds(case: Case, dtype: torch.dtype) -> float:
    """Seconds of one step of the model with a full cache, from one and from two of its layers."""
    length = 20 if case in TINY else 600
    ids = torch.randint(0, 100, (1, length))
    ways: dict[str, Callable[[], Any]] = {}
    for layers in (1, 2):
        # The embedding is only looked up: shared with the LM head it takes half the memory.
        sizes = {"num_hidden_layers": layers, "tie_word_embeddings": True}
        model = decoder(case.model, "meta", dtype, **sizes).to_empty(device="cpu")
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.fill_(1e-3)
        past = model(input_ids=ids, use_cache=True).past_key_values
        ways[str(layers)] = partial(model, ids[:, :1], past_key_values=past, use_cache=True)
    one, two = by_turns(ways, 15).values()
    layer = median([second - first for first, second in zip(one, two, strict=True)])
    return median(one) + (SIZES[case.model]["num_hidden_layers"] - 1) * max(0.0, layer)


def measure_growth(plan: Plan, dtype: torch.dtype) -> Iterator[Point]:
    """A step along each axis, the others at the sizes of the first case; then a long generation."""
    case = plan.cases[0]
    usual = min(1_000, case.vocabulary // 30)
    for axis, values in plan.axes.items():
        for value in values:
            sizes = {"tokens in V_cons": usual, "vision states": case.states,
                     "tokens in the vocabulary": case.vocabulary, "% of V_cons new in a step": 5,
                     axis: value}  # fmt: skip
            candidates, count, vocabulary, percent = sizes.values()
            head = lm_head(vocabulary, case.width, dtype)
            states = vision_states(count, head)
            steps = list(drift(vocabulary, min(candidates, vocabulary), 12, percent / 100))
            projected = torch.ones(count, vocabulary, dtype=dtype)
            revisit, dense = [], []
            for _ in range(3):
                revisit += generation(head, states, steps)[1][1:]
                dense += [clock(published.step, each, projected, -DEPTH) for each in steps[:3]]
            yield Point(axis, value, median(revisit), median(dense))
    head = lm_head(case.vocabulary, case.width, dtype)
    steps = list(drift(case.vocabulary, usual, plan.long))
    _, seconds = generation(head, vision_states(case.states, head), steps)
    stretch = plan.long // 16
    for start in range(0, plan.long, plan.long // 4):
        end = start + stretch
        yield Point("steps of the generation so far", end, median(seconds[start:end]), None)


def measure_rows(plan: Plan, dtype: torch.dtype) -> Iterator[Row]:
    """Steps of unlike rows, each with half to one and a half times the sizes of the first case."""
    case = plan.cases[0]
    head = lm_head(case.vocabulary, case.width, dtype)
    for count in plan.rows:
        cache = Cache(head, count * CONFIG.cache_bytes)
        sessions, logits = unlike_rows(case, head, cache, count, plan.row_candidates)
        took = [clock(refine, each, sessions) for each in logits]
        with Operators() as operators:
            refine(logits[-1], sessions)
        seconds = median(took[len(took) // 4 :])  # a first step keeps all of its tokens
        yield Row(str(case), count, seconds, operators.count)


def unlike_rows(
    case: Case, head: LMHead, cache: Cache, count: int, candidates: int
) -> tuple[list[Session], list[Tensor]]:
    """The sessions of so many rows, and the logits (count, V) of 24 steps; always the same."""
    generator = torch.Generator().manual_seed(0)
    sessions, logits = [], []
    for seed in range(count):
        share = (torch.rand(2, generator=generator) + 0.5).tolist()
        states = vision_states(max(1, round(case.states * share[0])), head)
        sessions.append(Session(states, cache, CONFIG))
        some = max(2, round(candidates * share[1]))
        logits.append(torch.stack(list(drift(case.vocabulary, some, 24, seed=seed))))
    return sessions, list(torch.stack(logits, 1))


@torch.inference_mode()
def measured(plan: Plan, dtype: torch.dtype) -> Measured:
    """All that is measured; each line is printed as it comes."""

    def printed(lines: Iterator[Line]) -> Iterator[Line]:
        for line in lines:
            print(line, flush=True)
            yield line

    cells = [cell for case in plan.cases for cell in printed(measure_case(case, plan, dtype))]
    points = list(printed(measure_growth(plan, dtype)))
    return Measured(plan.steps, cells, points, list(printed(measure_rows(plan, dtype))))


def machine(dtype: torch.dtype) -> str:
    """The processor, and how it multiplies numbers of this dtype."""
    name = platform.processor() or platform.machine()
    about = Path("/proc/cpuinfo")
    if about.exists() and (found := re.search(r"model name\s*:\s*(.+)", about.read_text())):
        name = found[1].strip()
    how = "native" if native(dtype, "cpu") else "without its arithmetic: products in float32"
    threads = f"{torch.get_num_threads()} threads"
    return f"{name}, {threads}, PyTorch {torch.__version__}, {dtype} ({how})"


def options() -> argparse.Namespace:
    """The command line, checked before anything long begins."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", nargs="?", type=Path, const=DOCS, metavar="FOLDER",
                        help="write cost.md and cost.png into docs/, and the summary into the "
                        "README; or into another folder, and no README")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only shows that it runs")
    parser.add_argument("--threads", type=int, help="of PyTorch (default: one a core)")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16",
                        help="of weights and vision states (default: bfloat16)")  # fmt: skip
    args = parser.parse_args()
    if args.threads is not None and args.threads < 1:
        parser.error("--threads must be at least 1")
    if args.quick and args.docs == DOCS:
        parser.error("--quick measures nothing worth keeping: give --docs another folder")
    if args.docs and not args.docs.is_dir():
        parser.error(f"--docs: there is no folder {args.docs}")
    if args.docs and not find_spec("matplotlib"):
        parser.error("--docs draws with matplotlib, which is not installed")
    return args


def main() -> None:
    """Measure, print, and write what was asked for."""
    args = options()
    if args.threads:
        torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    print(machine(dtype))
    result = measured(QUICK if args.quick else Plan(), dtype)
    print(f"\n{page.summary(result)}")
    if args.docs:
        page.write(result, machine(dtype), args.docs)
    if args.docs == DOCS:
        page.renew(ROOT / "README.md", result)


if __name__ == "__main__":
    main()
