"""What ReVisiT costs on a GPU, at the full size of LLaVA-1.5-7B and Qwen2.5-VL-7B, in half an hour.

    python benchmarks/gpu.py --docs

needs a CUDA GPU of 80 GB for all of it; what does not fit says so. Nothing is downloaded: decoders
of the real shapes have random weights, and vision tokens are random embeddings. In this order, each
row printed, and with --docs written into docs/gpu.md, as soon as it is there:

1. the step alone, from replays of a CUDA graph, and each kernel of it;
2. over greedy decoding in a decode step made by torch.compile with a static cache and CUDA graphs;
3. the same in `generate` of Transformers, with launches and waits of the host, beside the published
   way to compute the same ("dense") and a second forward pass in each step;
4. the kernels' own tests on this GPU, published steps among them.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

if "cpu" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2Config,
    Qwen2ForCausalLM,
    StaticCache,
)

import published
from drift import Work, drift
from revisit import LMHead, ReVisiTConfig, ReVisiTLogitsProcessor
from revisit.config import NamedLayers
from revisit.core.kernels import available

DOCS = Path(__file__).parents[1] / "docs"
TESTS = Path(__file__).parents[1] / "shared/tests/core/kernels/test_steps.py"
MARKS = ("<!-- measured -->\n", "<!-- /measured -->\n")
TEXT_TOKENS = 40


class Case(NamedTuple):
    """A model and the layers whose hidden states are compared."""

    model: str
    vision_tokens: int
    layers: NamedLayers
    states: int  # vision tokens times layers

    def __str__(self) -> str:
        return f"{self.model}, {self.layers}"


SHAPES: dict[str, dict[str, int]] = {
    "LLaVA-1.5-7B": dict(vocab_size=32_000, hidden_size=4096, intermediate_size=11_008,
        num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32),
    "Qwen2.5-VL-7B": dict(vocab_size=152_064, hidden_size=3584, intermediate_size=18_944,
        num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4),
    "tiny": dict(vocab_size=900, hidden_size=32, intermediate_size=64,
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2),
}  # fmt: skip
CASES = [
    Case("LLaVA-1.5-7B", 576, "last", 576),
    Case("Qwen2.5-VL-7B", 1_200, "last", 1_200),
    Case("Qwen2.5-VL-7B", 1_200, "all", 15 * 1_200),
]
TINY = [Case("tiny", 20, "last", 20), Case("tiny", 20, "all", 60)]


class Bench:
    """What was asked for, how much time is left, and the lines that were measured so far."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.ends = given, time.monotonic() + 60 * given.minutes
        self.lines: list[str] = []
        self.device = torch.device(given.device)
        self.cuda = self.device.type == "cuda"
        self.dtype = torch.bfloat16 if self.cuda else torch.float32

    def write(self, *lines: str) -> None:
        for line in lines:
            print(line, flush=True)
            self.lines.append(line)
        if self.given.docs:
            page = self.given.docs / "gpu.md"
            before, rest = page.read_text(encoding="utf-8").split(MARKS[0])
            after = rest.split(MARKS[1])[1]
            text = before + MARKS[0] + "\n".join(self.lines) + "\n" + MARKS[1] + after
            page.write_text(text, encoding="utf-8")

    def cells(self, name: str, *head: str) -> Iterator[tuple[Case, int]]:
        """A table: the cases and numbers of rows, as long as there is time."""
        self.write("", f"{name}:", "", f"| model | rows | {' | '.join(head)} |",
                   f"|---|---:|{'---:|' * len(head)}")  # fmt: skip
        for case in TINY if self.given.tiny else CASES:
            for rows in self.given.rows:
                if time.monotonic() > self.ends:
                    self.write(f"| {case} | {rows} | not measured, time was up |")
                else:
                    yield case, rows

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, function: Callable[[], Any]) -> float:
        self.wait()
        started = time.perf_counter()
        function()
        self.wait()
        return time.perf_counter() - started


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and from where to where they go."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def opened(bench: Bench, case: Case, rows: int, head: LMHead) -> Any:
    """`Steps` with a prompt of random vision states for each row."""
    from revisit.core.kernels.steps import Steps, buffer_bytes

    size, columns = head.dtype.itemsize, 128 * 2**20
    budget = buffer_bytes(head.size, slots=rows, rows=rows, longest=case.states)
    budget += rows * (columns + (case.states * head.width + 128) * size)
    steps = Steps(head, slots=rows, rows=rows, longest=case.states, budget=budget, columns=columns)
    for _ in range(rows):
        states = torch.randn(case.states, head.width, device=bench.device, dtype=head.dtype)
        steps.open(states, ReVisiTConfig(layers=case.layers))
    steps.batch(range(rows))
    return steps


@cache
def drifting(vocabulary: int, candidates: int, steps: int) -> list[Tensor]:
    """Logits (V,) of a generation: V_cons has so many tokens, 5% of them are new in a step."""
    return list(drift(vocabulary, candidates, Work([], steps=steps)))


def captured(bench: Bench, run: Callable[[], Any]) -> Callable[[], Any]:
    """The same launches from a CUDA graph; on a CPU the function itself."""
    if not bench.cuda:
        return run
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def measure_steps(bench: Bench) -> None:
    """Part 1."""
    names = ("read", "count", "list", "project", "compare", "refine")
    table = bench.cells("The step alone, from replays of a CUDA graph; microseconds",
                        "V_cons", "step", *names)  # fmt: skip
    for case, rows in table:
        shape = SHAPES[case.model]
        V, d = shape["vocab_size"], shape["hidden_size"]
        weight = torch.randn(V, d, device=bench.device, dtype=bench.dtype) / math.sqrt(d)
        head = LMHead(weight)
        if not available(head):
            bench.write(f"| {case} | {rows} | the kernels cannot be used here |")
            continue
        steps = opened(bench, case, rows, head)
        each = drifting(V, bench.given.candidates, bench.given.steps + rows)
        logits = torch.empty(rows, V, device=bench.device)

        def take(number: int) -> None:
            for row in range(rows):  # at different places of the generation
                logits[row] = each[number + row]

        take(0)
        steps.step(logits)  # compiles
        replay = captured(bench, lambda: steps.step(logits))
        took = []
        for number in range(1, bench.given.steps):
            take(number)
            took.append(1e6 * timed(bench, replay))
        take(bench.given.steps)
        kernels = profiled(bench, replay)
        cells = [f"{kernels.get(name, math.nan):.0f}" for name in names]
        took = took[len(took) // 4 :]  # the first columns are computed by then
        bench.write(f"| {case} | {rows} | {bench.given.candidates} | {spread(took, 0)} | "
                    f"{' | '.join(cells)} |")  # fmt: skip


def timed(bench: Bench, function: Callable[[], Any]) -> float:
    """Seconds between two events of the GPU; on a CPU by the clock."""
    if not bench.cuda:
        return bench.seconds(function)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    function()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end) / 1e3)


def profiled(bench: Bench, function: Callable[[], Any]) -> dict[str, float]:
    """Microseconds of each kernel in one run, by the first part of its name."""
    if not bench.cuda:
        return {}
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        function()
        torch.cuda.synchronize()
    return {each.key.split("_")[0]: each.self_device_time_total for each in seen.key_averages()}


@cache
def built(name: str, candidates: int, device: torch.device, dtype: torch.dtype) -> Any:
    """The model; its logits are scaled so that V_cons has about so many tokens."""
    torch.manual_seed(0)
    kind = (Qwen2ForCausalLM, Qwen2Config) if "Qwen" in name else (LlamaForCausalLM, LlamaConfig)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = kind[0](kind[1](**SHAPES[name], max_position_embeddings=4096)).eval()
    finally:
        torch.set_default_dtype(default)
    model.generation_config.eos_token_id = None
    vocabulary, width = model.lm_head.weight.shape
    # Logits are about normal: the largest and the last of V_cons lie -log(alpha) apart.
    normal = statistics.NormalDist()
    apart = normal.inv_cdf(1 - 1 / vocabulary) - normal.inv_cdf(1 - candidates / vocabulary)
    scale = -math.log(ReVisiTConfig().alpha) / apart
    model.lm_head.weight.data.normal_(0, scale / math.sqrt(width))
    return model


def prompts(model: Any, case: Case, rows: int) -> dict[str, Tensor]:
    """Random embeddings: a first token, the vision tokens, a question."""
    length = 1 + case.vision_tokens + TEXT_TOKENS
    embedding = model.get_input_embeddings().weight
    embeds = torch.randn(rows, length, embedding.shape[1], device=embedding.device)
    embeds = embeds.to(embedding.dtype) * embedding.std()
    mask = torch.ones(rows, length, dtype=torch.int64, device=embedding.device)
    return {"inputs_embeds": embeds, "attention_mask": mask}


def measure_compiled(bench: Bench) -> None:
    """Part 2: greedy decoding and ReVisiT in turns, behind the same compiled decode step."""
    tokens = bench.given.new_tokens
    table = bench.cells("A compiled decode step with a static cache; ms a token",
                        "greedy", "ReVisiT", "over greedy")  # fmt: skip
    for case, rows in table:
        try:
            model = built(case.model, bench.given.candidates, bench.device, bench.dtype)
            inputs = prompts(model, case, rows)
            length = inputs["inputs_embeds"].shape[1]
            past = StaticCache(config=model.config, max_cache_len=length + tokens)
            with torch.no_grad():
                model(**inputs, past_key_values=past, use_cache=True, logits_to_keep=1)
            torch.compiler.reset()
            mode: dict[str, Any] = (
                {"mode": "reduce-overhead"} if bench.cuda else {"backend": "eager"}
            )
            forward = torch.compile(model.forward, dynamic=False, **mode)
            steps = opened(bench, case, rows, LMHead(model.lm_head.weight))
            steps.step(torch.randn(rows, model.lm_head.out_features, device=bench.device))
            decide = captured(bench, lambda: steps.decide(rows))

            def refine(logits: Tensor) -> Tensor:
                steps.read(logits)
                decide()
                scores: Tensor = steps.scores[:rows]
                return scores

            ways: list[Callable[[Tensor], Tensor]] = [lambda logits: logits, refine]
            took: list[list[float]] = [[], []]
            for repeat in range(bench.given.repeats + 1):
                for way, values in zip(ways, took, strict=True):
                    seconds = bench.seconds(lambda: decoded(forward, past, rows, tokens, way))
                    past.crop(-tokens)
                    if repeat:  # the first compiles
                        values.append(1e3 * seconds / tokens)
            over = statistics.median(took[1]) / statistics.median(took[0]) - 1
            bench.write(
                f"| {case} | {rows} | {spread(took[0])} | {spread(took[1])} | {over:+.1%} |"
            )
        except torch.cuda.OutOfMemoryError:
            bench.write(f"| {case} | {rows} | out of memory |")


@torch.no_grad()
def decoded(
    forward: Any, past: Any, rows: int, tokens: int, refine: Callable[[Tensor], Tensor]
) -> None:
    """So many new tokens, and nothing waited for."""
    token = torch.zeros((rows, 1), dtype=torch.int64, device=past.layers[0].keys.device)
    for _ in range(tokens):
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        logits = forward(input_ids=token, past_key_values=past, use_cache=True).logits[:, -1]
        token = refine(logits).argmax(-1, keepdim=True)


class Dense(ReVisiTLogitsProcessor):
    """The published computation on the vision states that ReVisiT records."""

    def __init__(self, model: Any, config: ReVisiTConfig) -> None:
        super().__init__(model, config)
        self.projected: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self.projected:
            states, head = self.vision_states, self.head().weight
            self.projected = [published.prefill(each, head) for each in states]
        log_alpha = math.log(self.config.alpha)
        rows = zip(scores.float(), self.projected, strict=True)
        return torch.stack([published.step(row, stored, log_alpha) for row, stored in rows])


class SecondPass(LogitsProcessor):  # type: ignore[misc]
    """Another forward pass a step, over a prompt of its own: what a contrastive decoder adds."""

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


def generated(decoder: str, model: Any, inputs: dict[str, Tensor], case: Case, tokens: int) -> None:
    """So many new tokens by `generate`."""
    with torch.inference_mode(), processors(decoder, model, inputs, case) as used:
        model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
                       pad_token_id=0, logits_processor=used)  # fmt: skip


def counted(bench: Bench, run: Callable[[int], Any]) -> str:
    """Launches and waits of the host in a step: what 16 more of them add."""
    if not bench.cuda:
        return "| |"
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
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            run(tokens)
        events = seen.key_averages()
        launches.append(sum(each.count for each in events if "LaunchKernel" in each.key))
    return f"{(launches[1] - launches[0]) / 16:.0f} | {(waits[1] - waits[0]) / 16:.1f} |"


def measure_eager(bench: Bench) -> None:
    """Part 3: repeats are interleaved; the first of them is not counted."""
    table = bench.cells("`generate` of Transformers, with prefill; ms a token, counts a step",
                        "decoder", "ms", "over greedy", "launches", "waits")  # fmt: skip
    tokens = bench.given.new_tokens
    for case, rows in table:
        model = built(case.model, bench.given.candidates, bench.device, bench.dtype)
        inputs = prompts(model, case, rows)
        took: dict[str, list[float]] = {decoder: [] for decoder in DECODERS}
        for _ in range(bench.given.repeats + 1):
            for decoder in list(took):
                try:
                    run = lambda: generated(decoder, model, inputs, case, tokens)  # noqa: E731
                    took[decoder].append(1e3 * bench.seconds(run) / tokens)
                except torch.cuda.OutOfMemoryError:
                    del took[decoder]
                    torch.cuda.empty_cache()
        greedy = statistics.median(took["greedy"][1:])
        for decoder in DECODERS:
            if decoder not in took:
                bench.write(f"| {case} | {rows} | {decoder} | out of memory | | | |")
                continue
            values = took[decoder][1:]
            over = statistics.median(values) / greedy - 1
            host = "| |"
            if decoder in ("greedy", "ReVisiT"):
                host = counted(bench, lambda n: generated(decoder, model, inputs, case, n))
            bench.write(f"| {case} | {rows} | {decoder} | {spread(values)} | {over:+.1%} | {host}")


def measure_tests(bench: Bench) -> None:
    """Part 4."""
    if bench.cuda:
        command = [sys.executable, "-m", "pytest", "-q", str(TESTS)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        bench.write("", f"The kernels' tests on this GPU: {done.stdout.splitlines()[-1]}.")


def options() -> argparse.Namespace:
    """The command line, checked before anything long begins."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ...; cpu with --tiny")
    parser.add_argument("--tiny", action="store_true", help="tiny models: only shows that it runs")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32], help="default: 1 8 32")
    parser.add_argument("--new-tokens", type=int, default=32, help="of a generation (default: 32)")
    parser.add_argument("--steps", type=int, default=40, help="of the step alone (default: 40)")
    parser.add_argument("--repeats", type=int, default=5, help="medians of so many (default: 5)")
    parser.add_argument("--candidates", type=int, default=1_000, help="tokens in V_cons, about")
    parser.add_argument("--minutes", type=float, default=28, help="then no cell is begun any more")
    parser.add_argument("--docs", nargs="?", type=Path, const=DOCS, metavar="FOLDER",
                        help="write into gpu.md in docs/, or in the folder given")  # fmt: skip
    given = parser.parse_args()
    if min(given.new_tokens, given.steps, given.repeats, given.candidates, *given.rows) < 1:
        parser.error("numbers must be at least 1")
    if not given.device.startswith("cuda") and not given.tiny:
        parser.error("models of seven billion weights need a GPU; on a CPU pass --tiny")
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(
            "there is no CUDA GPU here, so there is nothing to measure; "
            "`--tiny --device cpu` shows that the script runs"
        )
    if given.docs and not (given.docs / "gpu.md").is_file():
        parser.error(f"--docs: there is no gpu.md in {given.docs}")
    if given.docs == DOCS and given.tiny:
        parser.error("--tiny measures nothing worth keeping: give --docs another folder")
    return given


def main() -> None:
    """Measure part by part."""
    given = options()
    given.candidates = min(given.candidates, 50) if given.tiny else given.candidates
    bench = Bench(given)
    name = torch.cuda.get_device_name(bench.device) if bench.cuda else "a CPU"
    import triton

    bench.write(
        f"Measured on {date.today()}: {name}, PyTorch {torch.__version__}, Triton "
        f"{triton.__version__}, {bench.dtype}, by `python benchmarks/gpu.py "
        f"{' '.join(sys.argv[1:])}`. Medians of {given.repeats} repeats, or of "
        f"{given.steps} steps for the step alone, and from the least to the greatest.",
    )
    for part in (measure_steps, measure_compiled, measure_eager, measure_tests):
        part(bench)


if __name__ == "__main__":
    main()
