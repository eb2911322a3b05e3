"""What ReVisiT costs on a GPU, at the full size of LLaVA-1.5-7B and Qwen2.5-VL-7B, in half an hour.

    python benchmarks/gpu.py --docs

needs a CUDA GPU of 80 GB for all of it; what does not fit says so. Nothing is downloaded: decoders
of the real shapes have random weights, and vision tokens are random embeddings. In this order, each
row printed, and with --docs written into docs/gpu.md, as soon as it is there:

1. the step alone, from replays of a CUDA graph, and each kernel of it;
2. over greedy decoding in a decode step made by torch.compile with a static cache and CUDA graphs;
3. the same in `generate` of Transformers, with launches and waits of the host, beside the published
   way to compute the same ("dense") and a second forward pass in each step;
4. the tests of the kernels on this GPU, published steps among them.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

if "cpu" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import LogitsProcessor, LogitsProcessorList, StaticCache

import published
from cases import CASES, DEPTH, TINY, Case, decoder, drift, lm_head, vision_states
from measuring import by_turns, clock, put, spread
from revisit import LMHead, ReVisiTConfig, ReVisiTLogitsProcessor
from revisit.core.kernels import available

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TESTS = ROOT / "shared/tests/core/kernels/test_steps.py"
TEXT_TOKENS = 40


class Bench:
    """The settings, the time that is left, and the lines that were measured so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.ends = args, time.monotonic() + 60 * args.minutes
        # New tokens of a generation, steps of the step alone, turns, and tokens in V_cons, about.
        sizes = (3, 3, 1, 50) if args.tiny else (32, 40, 5, 1_000)
        self.tokens, self.steps, self.repeats, self.candidates = sizes
        self.lines: list[str] = []
        self.cuda = args.device.startswith("cuda")
        self.dtype = torch.bfloat16 if self.cuda else torch.float32

    def write(self, line: str) -> None:
        print(line, flush=True)
        self.lines.append(line)
        if self.args.docs:
            put(self.args.docs / "gpu.md", "measured", "\n".join(self.lines))

    def table(self, name: str, *head: str) -> Iterator[tuple[Case, int]]:
        """A table: the cases and numbers of rows, as long as there is time."""
        columns = f"| model | rows | {' | '.join(head)} |"
        self.write(f"\n{name}:\n\n{columns}\n|---|---:|{'---:|' * len(head)}")
        for case in TINY if self.args.tiny else CASES:
            for rows in self.args.rows:
                if time.monotonic() > self.ends:
                    self.write(f"| {case} | {rows} | not measured, time was up |")
                else:
                    yield case, rows

    def seconds(self, function: Callable[[], Any]) -> float:
        """Of a call and of all that it leaves to the GPU: between two events of it."""
        if not self.cuda:
            return clock(function)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        begin.record()
        function()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end) / 1e3)

    def captured(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """The same launches from a CUDA graph; on a CPU the function itself."""
        if not self.cuda:
            return run
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    def profiled(self, run: Callable[[], Any]) -> Any:
        """What a run has launched, by name; nothing on a CPU."""
        if not self.cuda:
            return []
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            run()
            torch.cuda.synchronize()
        return seen.key_averages()


def opened(case: Case, rows: int, head: LMHead) -> Any:
    """`Steps` with a prompt of random vision states for each row."""
    from revisit.core.kernels.steps import Steps, buffer_bytes, prompt_bytes

    columns = 128 * 2**20
    sizes: dict[str, Any] = {"slots": rows, "rows": rows, "longest": case.states}
    budget = buffer_bytes(head.size, **sizes) + rows * prompt_bytes(head, case.states, columns)
    steps = Steps(head, budget=budget, columns=columns, **sizes)
    for _ in range(rows):
        steps.open(vision_states(case.states, head), ReVisiTConfig(layers=case.layers))
    steps.batch(range(rows))
    return steps


def measure_steps(bench: Bench) -> None:
    """Part 1."""
    kernels = ("read", "count", "list", "project", "compare", "refine")
    name = "The step alone, from replays of a CUDA graph; microseconds"
    for case, rows in bench.table(name, "V_cons", "step", *kernels):
        head = lm_head(case.vocabulary, case.width, bench.dtype, bench.args.device)
        if not available(head):
            bench.write(f"| {case} | {rows} | the kernels cannot be used here |")
            continue
        steps = opened(case, rows, head)
        drifting = list(drift(case.vocabulary, bench.candidates, bench.steps + rows))
        logits = torch.empty(rows, case.vocabulary, device=bench.args.device)

        def take(number: int) -> None:
            for row in range(rows):  # at different steps of the generation
                logits[row] = drifting[number + row]

        take(0)
        steps.step(logits)  # compiles
        replay = bench.captured(lambda: steps.step(logits))
        took = []
        for number in range(1, bench.steps):
            take(number)
            took.append(1e6 * bench.seconds(replay))
        take(bench.steps)
        # Kernels by the first part of their names.
        each = {e.key.split("_")[0]: e.self_device_time_total for e in bench.profiled(replay)}
        cells = [f"{each.get(kernel, math.nan):.0f}" for kernel in kernels]
        step = spread(took[len(took) // 4 :], 0)  # the first columns are computed by then
        bench.write(f"| {case} | {rows} | {bench.candidates} | {step} | {' | '.join(cells)} |")


@lru_cache(maxsize=1)
def built(name: str, candidates: int, device: str, dtype: torch.dtype) -> Any:
    """The model; its logits are scaled so that V_cons has about so many tokens."""
    model = decoder(name, device, dtype)
    model.generation_config.eos_token_id = None
    vocabulary, width = model.lm_head.weight.shape
    # Logits are about normal: the largest and the last of V_cons lie DEPTH apart.
    normal = statistics.NormalDist()
    apart = normal.inv_cdf(1 - 1 / vocabulary) - normal.inv_cdf(1 - candidates / vocabulary)
    model.lm_head.weight.data.normal_(0, DEPTH / apart / math.sqrt(width))
    return model


def model_and_prompts(bench: Bench, case: Case, rows: int) -> tuple[Any, dict[str, Tensor]]:
    """Prompts are random embeddings: a first token, the vision tokens, a question."""
    model = built(case.model, bench.candidates, bench.args.device, bench.dtype)
    length = 1 + case.vision_tokens + TEXT_TOKENS
    embedding = model.get_input_embeddings().weight
    embeds = torch.randn(rows, length, embedding.shape[1], device=embedding.device)
    embeds = embeds.to(embedding.dtype) * embedding.std()
    mask = torch.ones(rows, length, dtype=torch.int64, device=embedding.device)
    return model, {"inputs_embeds": embeds, "attention_mask": mask}


def measure_compiled(bench: Bench) -> None:
    """Part 2: greedy decoding and ReVisiT in turns, behind the same compiled decode step."""
    name = "A compiled decode step with a static cache; ms a token"
    for case, rows in bench.table(name, "greedy", "ReVisiT", "over greedy"):
        try:
            greedy, revisit = compiled_ms(bench, case, rows)
            over = statistics.median(revisit) / statistics.median(greedy) - 1
            bench.write(f"| {case} | {rows} | {spread(greedy)} | {spread(revisit)} | {over:+.1%} |")
        except torch.cuda.OutOfMemoryError:
            bench.write(f"| {case} | {rows} | out of memory |")


def compiled_ms(bench: Bench, case: Case, rows: int) -> list[list[float]]:
    """Milliseconds a token in each turn, of greedy decoding and of ReVisiT."""
    model, inputs = model_and_prompts(bench, case, rows)
    length = inputs["inputs_embeds"].shape[1]
    past = StaticCache(config=model.config, max_cache_len=length + bench.tokens)
    with torch.no_grad():
        model(**inputs, past_key_values=past, use_cache=True, logits_to_keep=1)
    torch.compiler.reset()
    mode: dict[str, Any] = {"mode": "reduce-overhead"} if bench.cuda else {"backend": "eager"}
    forward: Any = torch.compile(model.forward, dynamic=False, **mode)
    steps = opened(case, rows, LMHead(model.lm_head.weight))
    steps.step(torch.randn(rows, model.lm_head.out_features, device=bench.args.device))
    decide = bench.captured(lambda: steps.decide(rows))

    def refine(logits: Tensor) -> Tensor:
        steps.read(logits)
        decide()
        scores: Tensor = steps.scores[:rows]
        return scores

    @torch.no_grad()
    def decode(refine: Callable[[Tensor], Tensor] | None = None) -> None:
        """So many new tokens, and nothing waited for."""
        token = torch.zeros((rows, 1), dtype=torch.int64, device=bench.args.device)
        for _ in range(bench.tokens):
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            logits = forward(input_ids=token, past_key_values=past, use_cache=True).logits[:, -1]
            token = (refine(logits) if refine else logits).argmax(-1, keepdim=True)
        past.crop(-bench.tokens)

    ways = {"greedy": decode, "ReVisiT": lambda: decode(refine)}
    took = by_turns(ways, bench.repeats, bench.seconds)
    if len(took) < 2:
        raise torch.cuda.OutOfMemoryError
    return [[1e3 * seconds / bench.tokens for seconds in values] for values in took.values()]


class Dense(ReVisiTLogitsProcessor):
    """The published computation on the vision states that ReVisiT records."""

    def __init__(self, model: Any, config: ReVisiTConfig) -> None:
        super().__init__(model, config)
        self.projected: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self.projected:
            states, head = self.vision_states, self.head().weight
            self.projected = [published.prefill(each, head) for each in states]
        rows = zip(scores.float(), self.projected, strict=True)
        return torch.stack([published.step(row, stored, -DEPTH) for row, stored in rows])


class SecondPass(LogitsProcessor):  # type: ignore[misc]
    """Another forward pass a step, over another prompt: what a contrastive decoder adds."""

    def __init__(self, model: Any, prompt: dict[str, Tensor]) -> None:
        self.model, self.prompt, self.past = model, prompt, None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        inputs = self.prompt if self.past is None else {"input_ids": input_ids[:, -1:]}
        output = self.model(**inputs, past_key_values=self.past, use_cache=True)
        self.past = output.past_key_values
        other: Tensor = output.logits[:, -1].float()
        return scores + 0.5 * (scores - other)


DECODERS = ("greedy", "ReVisiT", "dense", "second pass")


@contextmanager
def processors(decoder: str, model: Any, inputs: dict[str, Tensor], case: Case) -> Iterator[Any]:
    """The logits processors of one decoder."""
    if decoder == "greedy":
        yield LogitsProcessorList()
    elif decoder == "second pass":
        yield LogitsProcessorList([SecondPass(model, inputs)])
    else:
        mask = torch.zeros_like(inputs["attention_mask"], dtype=torch.bool)
        mask[:, 1 : 1 + case.vision_tokens] = True
        kind = Dense if decoder == "dense" else ReVisiTLogitsProcessor
        processor = kind(model, ReVisiTConfig(layers=case.layers))
        with processor.generation(inputs, mask):
            yield LogitsProcessorList([processor])


def launches_and_waits(bench: Bench, run: Callable[[int], Any]) -> str:
    """Two cells, of the host in a step: what 16 more of them add. Empty on a CPU."""
    if not bench.cuda:
        return ""
    launches, waits = [], []
    for tokens in (4, 20):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                run(tokens)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchroniz" in str(each.message) for each in caught))
        events = bench.profiled(lambda: run(tokens))
        launches.append(sum(each.count for each in events if "LaunchKernel" in each.key))
    return f"{(launches[1] - launches[0]) / 16:.0f} | {(waits[1] - waits[0]) / 16:.1f}"


def measure_eager(bench: Bench) -> None:
    """Part 3: repeats are interleaved; the first of them is not counted."""
    name = "`generate` of Transformers, with prefill; ms a token, counts a step"
    for case, rows in bench.table(name, "decoder", "ms", "over greedy", "launches", "waits"):
        model, inputs = model_and_prompts(bench, case, rows)

        @torch.inference_mode()
        def generate(decoder: str, tokens: int) -> None:
            with processors(decoder, model, inputs, case) as used:
                model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens,
                               do_sample=False, pad_token_id=0, logits_processor=used)  # fmt: skip

        ways = {name: lambda name=name: generate(name, bench.tokens) for name in DECODERS}
        took = by_turns(ways, bench.repeats, bench.seconds)
        greedy = statistics.median(took.get("greedy", [math.nan]))
        for name in DECODERS:
            if name not in took:
                bench.write(f"| {case} | {rows} | {name} | out of memory | | | |")
                continue
            ms = spread([1e3 * seconds / bench.tokens for seconds in took[name]])
            over = statistics.median(took[name]) / greedy - 1
            host = ""
            if name in ("greedy", "ReVisiT"):
                host = launches_and_waits(bench, lambda tokens: generate(name, tokens))
            bench.write(f"| {case} | {rows} | {name} | {ms} | {over:+.1%} | {host or '|'} |")


def measure_tests(bench: Bench) -> None:
    """Part 4."""
    if bench.cuda:
        command = [sys.executable, "-m", "pytest", "-q", str(TESTS)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        bench.write(f"\nThe kernels' tests on this GPU: {done.stdout.splitlines()[-1]}.")


def options() -> argparse.Namespace:
    """The command line, checked before anything long begins."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ...; cpu with --tiny")
    parser.add_argument("--tiny", action="store_true", help="tiny models: only shows that it runs")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32], help="default: 1 8 32")
    parser.add_argument("--minutes", type=float, default=28, help="then no cell is begun any more")
    parser.add_argument("--docs", nargs="?", type=Path, const=DOCS, metavar="FOLDER",
                        help="write into gpu.md in docs/, or in another folder")  # fmt: skip
    args = parser.parse_args()
    if min(args.rows) < 1:
        parser.error("--rows must be at least 1")
    if not args.device.startswith("cuda") and not args.tiny:
        parser.error("models of seven billion weights need a GPU; on a CPU pass --tiny")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(
            "there is no CUDA GPU here, so there is nothing to measure; "
            "`--tiny --device cpu` shows that the script runs"
        )
    if args.docs and not (args.docs / "gpu.md").is_file():
        parser.error(f"--docs: there is no gpu.md in {args.docs}")
    if args.docs == DOCS and args.tiny:
        parser.error("--tiny measures nothing worth keeping: give --docs another folder")
    return args


def main() -> None:
    """Measure part by part."""
    args = options()
    bench = Bench(args)
    if bench.cuda:
        torch.cuda.set_device(args.device)
    name = torch.cuda.get_device_name(args.device) if bench.cuda else "a CPU"
    import triton

    bench.write(
        f"Measured on {date.today()}: {name}, PyTorch {torch.__version__}, Triton "
        f"{triton.__version__}, {bench.dtype}, by `python benchmarks/gpu.py "
        f"{' '.join(sys.argv[1:])}`. Medians of {bench.repeats} repeats, or of "
        f"{bench.steps} steps for the step alone, and from the least to the greatest.",
    )
    for part in (measure_steps, measure_compiled, measure_eager, measure_tests):
        part(bench)


if __name__ == "__main__":
    main()
