"""What ReVisiT costs on a GPU, at the full size of LLaVA-1.5-7B and Qwen2.5-VL-7B.

The text decoders have the real shapes and random weights, the vision tokens are random embeddings,
so nothing is downloaded. Compared are greedy decoding, ReVisiT, the published way to compute the
same ("dense"), and a second forward pass in every step, as contrastive decoders need.

    python benchmarks/gpu.py --docs

needs a CUDA GPU of 24 GB or more; cells that do not fit its memory say so.
"""

import argparse
import gc
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import published
from revisit import ReVisiTConfig, ReVisiTLogitsProcessor
from revisit.config import NamedLayers

DOCS = Path(__file__).parents[1] / "docs"
TEXT_TOKENS = 40


class Case(NamedTuple):
    """A model and the layers that ReVisiT compares."""

    name: str
    model: Callable[[], Any]
    vision_tokens: int
    layers: NamedLayers


def llava() -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32_000,
            hidden_size=4096,
            intermediate_size=11_008,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            max_position_embeddings=4096,
        )
    )


def qwen() -> Any:
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=152_064,
            hidden_size=3584,
            intermediate_size=18_944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            max_position_embeddings=4096,
        )
    )


def tiny() -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=900,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
        )
    )


CASES = [
    Case("LLaVA-1.5-7B", llava, 576, "last"),
    Case("Qwen2.5-VL-7B", qwen, 1_200, "last"),
    Case("Qwen2.5-VL-7B", qwen, 1_200, "all"),
]
TINY = [Case("tiny", tiny, 20, "last"), Case("tiny", tiny, 20, "all")]


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
        self.model = model
        self.prompt = prompt
        self.past: Any = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        inputs = self.prompt if self.past is None else {"input_ids": input_ids[:, -1:]}
        output = self.model(**inputs, past_key_values=self.past, use_cache=True)
        self.past = output.past_key_values
        other: Tensor = output.logits[:, -1].float()
        return scores + 0.5 * (scores - other)


DECODERS = ("greedy", "ReVisiT", "dense", "second pass")


@contextmanager
def processors(
    decoder: str, model: Any, prompt: dict[str, Tensor], case: Case, trace: bool = False
) -> Iterator[tuple[LogitsProcessorList, Any]]:
    """The logits processors of one decoder, and ReVisiT's if it has one."""
    if decoder == "greedy":
        yield LogitsProcessorList(), None
    elif decoder == "second pass":
        yield LogitsProcessorList([SecondPass(model, prompt)]), None
    else:
        embeds = prompt["inputs_embeds"]
        mask = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        mask[:, 1 : 1 + case.vision_tokens] = True
        config = ReVisiTConfig(layers=case.layers, trace=trace)
        kind = Dense if decoder == "dense" else ReVisiTLogitsProcessor
        processor = kind(model, config)
        with processor.generation(prompt, mask):
            yield LogitsProcessorList([processor]), processor


class Run(NamedTuple):
    """One generation."""

    seconds: float
    bytes: int  # the most that was allocated above what the model takes
    candidates: float  # mean |V_cons| where it was traced


def run(
    decoder: str,
    model: Any,
    prompt: dict[str, Tensor],
    case: Case,
    tokens: int,
    trace: bool = False,
) -> Run:
    """Generate `tokens` new tokens for each prompt."""
    cuda = model.device.type == "cuda"
    gc.collect()
    with processors(decoder, model, prompt, case, trace) as (used, attached):
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        started = time.perf_counter()
        model.generate(
            **prompt,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            logits_processor=used,
        )
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        peak = torch.cuda.max_memory_allocated() - before if cuda else 0
        rows = (attached.trace if attached else None) or []
    counts = [step.candidates for row in rows for step in row if step]
    return Run(seconds, peak, statistics.fmean(counts) if counts else math.nan)


def waits(decoder: str, model: Any, prompt: dict[str, Tensor], case: Case) -> float:
    """How often a step waits for the GPU; NaN where there is none."""
    if model.device.type != "cuda":
        return math.nan
    counts = []
    for tokens in (8, 24):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                run(decoder, model, prompt, case, tokens)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchroniz" in str(each.message) for each in caught))
    return (counts[1] - counts[0]) / 16


def build(case: Case, candidates: int, device: str, dtype: torch.dtype) -> Any:
    """The model; its logits are scaled so that V_cons has about so many words."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = case.model().eval()
    finally:
        torch.set_default_dtype(default)
    model.generation_config.eos_token_id = None
    vocabulary, width = model.lm_head.weight.shape
    # Logits are about normal: the largest and the last of V_cons lie -log(alpha) apart.
    normal = statistics.NormalDist()
    apart = normal.inv_cdf(1 - 1 / vocabulary) - normal.inv_cdf(1 - candidates / vocabulary)
    spread = -math.log(ReVisiTConfig().alpha) / apart
    model.lm_head.weight.data.normal_(0, spread / math.sqrt(width))
    return model


def prompts(model: Any, case: Case, batch: int) -> dict[str, Tensor]:
    """Random embeddings: a first token, the vision tokens, a question."""
    length = 1 + case.vision_tokens + TEXT_TOKENS
    embedding = model.get_input_embeddings().weight
    embeds = torch.randn(batch, length, embedding.shape[1], device=embedding.device)
    embeds = embeds.to(embedding.dtype) * embedding.std()
    mask = torch.ones(batch, length, dtype=torch.int64, device=embedding.device)
    return {"inputs_embeds": embeds, "attention_mask": mask}


def measure(case: Case, model: Any, batch: int, given: argparse.Namespace, progress: Any) -> str:
    """Lines of the table for one case and batch size; repeats are interleaved."""
    prompt = prompts(model, case, batch)
    runs: dict[str, list[Run]] = {decoder: [] for decoder in DECODERS}
    waited: dict[str, float] = {}
    failed: set[str] = set()
    candidates = run("ReVisiT", model, prompt, case, min(16, given.new_tokens), True).candidates
    for repeat in range(given.repeats + 1):  # the first takes memory that the others use again
        for decoder in DECODERS:
            progress.set_description(f"{case.name}, {case.layers}, batch {batch}: {decoder}")
            progress.update()
            if decoder in failed:
                continue
            try:
                runs[decoder].append(run(decoder, model, prompt, case, given.new_tokens))
                if not repeat:
                    waited[decoder] = waits(decoder, model, prompt, case)
            except torch.cuda.OutOfMemoryError:
                failed.add(decoder)
                torch.cuda.empty_cache()
    return "\n".join(
        line(case, batch, candidates, decoder, runs, waited, failed, given.new_tokens)
        for decoder in DECODERS
    )


def line(
    case: Case,
    batch: int,
    candidates: float,
    decoder: str,
    runs: dict[str, list[Run]],
    waited: dict[str, float],
    failed: set[str],
    tokens: int,
) -> str:
    """One line of the table."""
    start = f"| {case.name}, {case.layers} | {batch} | {candidates:.0f} | {decoder} |"
    if decoder in failed:
        return f"{start} out of memory | | | |"
    greedy, own = (
        statistics.median(each.seconds for each in runs[name][1:]) for name in ("greedy", decoder)
    )
    extra = max(each.bytes for each in runs[decoder]) - max(each.bytes for each in runs["greedy"])
    on_gpu = "| |"
    if not math.isnan(waited[decoder]):
        on_gpu = f"{extra / 2**20:.0f} | {waited[decoder]:.1f} |"
    return f"{start} {own / tokens * 1e3:.2f} | {own / greedy - 1:+.2%} | {on_gpu}"


HEAD = (
    "| model | batch | V_cons | decoder | ms a token | over greedy | extra MiB | waits a step |\n"
    "|---|---:|---:|---|---:|---:|---:|---:|"
)


def options() -> argparse.Namespace:
    """The command line, checked before anything long begins."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ...; cpu with --tiny")
    parser.add_argument("--tiny", action="store_true", help="tiny models: only shows that it runs")
    parser.add_argument("--new-tokens", type=int, default=512, help="default: 512")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="default: 1 8")
    parser.add_argument("--repeats", type=int, default=3, help="medians of so many (default: 3)")
    parser.add_argument("--candidates", type=int, default=1_000, help="words in V_cons, about")
    parser.add_argument(
        "--docs",
        nargs="?",
        type=Path,
        const=DOCS,
        metavar="FOLDER",
        help="write gpu.md into docs/, or into the folder given",
    )
    given = parser.parse_args()
    if min(given.new_tokens, given.repeats, given.candidates, *given.batch) < 1:
        parser.error("numbers must be at least 1")
    if not given.device.startswith("cuda") and not given.tiny:
        parser.error("models of seven billion weights need a GPU; on a CPU pass --tiny")
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(
            "there is no CUDA GPU here, so there is nothing to measure; "
            "`--tiny --device cpu` shows that the script runs"
        )
    if given.docs and not given.docs.is_dir():
        parser.error(f"--docs: there is no folder {given.docs}")
    if given.docs == DOCS and given.tiny:
        parser.error("--tiny measures nothing worth keeping: give --docs another folder")
    return given


def main() -> None:
    """Measure every case, print the table, and write it where asked."""
    given = options()
    cases, dtype = (TINY, torch.float32) if given.tiny else (CASES, torch.bfloat16)
    candidates = min(given.candidates, 50) if given.tiny else given.candidates
    total = len(cases) * len(given.batch) * (given.repeats + 1) * len(DECODERS)
    lines = [HEAD]
    print(HEAD)
    with torch.inference_mode(), tqdm(total=total, file=sys.stderr) as progress:
        for case in cases:
            model = build(case, candidates, given.device, dtype)
            for batch in given.batch:
                lines.append(measure(case, model, batch, given, progress))
                progress.write(lines[-1], file=sys.stdout)
                if given.docs:  # so far: what stops this run loses only what is being measured
                    write(given, lines, dtype)
            del model


def write(given: argparse.Namespace, lines: list[str], dtype: torch.dtype) -> None:
    """Write gpu.md with the lines of the table that are there."""
    name = "CPU" if given.device == "cpu" else torch.cuda.get_device_name(given.device)
    table = "\n".join(lines)
    given.docs.joinpath("gpu.md").write_text(
        f"# What ReVisiT costs on a GPU\n\nWritten by `python benchmarks/gpu.py --new-tokens "
        f"{given.new_tokens} --repeats {given.repeats} --docs` on {date.today()}: {name}, PyTorch "
        f"{torch.__version__}, {dtype}, {given.new_tokens} new tokens, medians of {given.repeats} "
        "interleaved repeats, prefill included. Random weights of the real shapes, with logits "
        "scaled for the V_cons that the table names (a mean over 16 steps). Waits are times a "
        "step that the host waits for the GPU.\n\n"
        f"{table}\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
