"""Peak memory of a generation with ReVisiT on the vocabulary of Qwen2.5-VL.

The package must be installed, so run it with `.nox/qwen/bin/python` or a like environment.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

import revisit
from revisit import ReVisiTConfig
from revisit.step import divergence, select

VOCABULARY, VISION_TOKENS, WIDTH, LAYERS = 152_064, 1_200, 64, 6
IMAGE = 5
COMMAND = "python benchmarks/memory.py"
ABOUT = f"""\
Each decoder runs in a process of its own on the CPU, in bfloat16, on one model with random weights:
a Llama of {LAYERS} layers and width {WIDTH}, but the vocabulary of Qwen2.5-VL ({VOCABULARY:,}) and
{VISION_TOKENS:,} vision tokens; layers "all", logits scaled for a V_cons of about 1,000 tokens.
`dense` stores the projection of every vision token of every layer onto the whole vocabulary during
prefill, as the published implementation does. The extra memory is the peak resident size above
greedy decoding's. Random weights make V_cons drift more from step to step than a real model's."""
DECODERS = {
    "greedy": None,
    "dense": ReVisiTConfig(layers="all", alpha=1e-3),
    "ReVisiT": ReVisiTConfig(layers="all", alpha=1e-3, trace=True),
    "ReVisiT, alpha 0": ReVisiTConfig(layers="all", alpha=0, trace=True),
}


def build() -> LlamaForCausalLM:
    """A decoder whose vision tokens are ordinary tokens: only their number matters here."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=0.05,
        max_position_embeddings=4096,
    )
    config.image_token_id = IMAGE
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    # At this scale about 1,000 tokens are within 1e-3 of the likeliest.
    model.lm_head.weight.data.normal_(0, 0.4)
    return model


class Dense(LogitsProcessor):  # type: ignore[misc]
    """What the published implementation keeps and does, with the same recorded states."""

    def __init__(self, processor: revisit.ReVisiTLogitsProcessor) -> None:
        self.recorder = processor.recorder
        self.head = processor.head
        self.config = processor.config
        self.projected: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.projected is None:
            (states,) = self.recorder.states
            self.projected = states @ self.head.weight.T
        log_p = scores[0].float().log_softmax(0)
        kept = log_p >= log_p.max() + torch.tensor(self.config.alpha).log()
        log_q = self.projected[:, kept].float().log_softmax(1).T
        log_p = log_p[kept].log_softmax(0)
        choice = select(divergence(log_p, log_q, self.config.divergence), self.config.selection)
        refined = torch.full_like(scores, -torch.inf, dtype=torch.float32)
        refined[0, kept] = log_p + log_q[:, choice]
        return refined


def run(name: str, steps: int) -> dict[str, float]:
    """One generation in this process: peak resident size in MiB, seconds, mean |V_cons|."""
    model = build()
    ids = torch.tensor([[1, *[IMAGE] * VISION_TOKENS, *range(10, 30)]])
    config = DECODERS[name]
    with ExitStack() as stack:
        processors = LogitsProcessorList()
        attached = None
        if config is not None:
            attached = stack.enter_context(revisit.attach(model, config))
            processors.append(Dense(attached) if name == "dense" else attached)
        started = time.perf_counter()
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=steps,
            do_sample=False,
            logits_processor=processors,
        )
        seconds = time.perf_counter() - started
    trace = attached.trace if attached else None
    candidates = [step.candidates for row in trace or [] for step in row if step]
    return {
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "seconds": seconds,
        "candidates": sum(candidates) / max(1, len(candidates)),
    }


def main() -> None:
    """Run every decoder and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=16, help="tokens to generate (default: 16)")
    parser.add_argument("--docs", action="store_true", help="renew docs/memory.md")
    parser.add_argument("--decoder", choices=DECODERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.decoder:
        print(json.dumps(run(arguments.decoder, arguments.steps)))
        return
    results = {}
    for name in DECODERS:
        # The whole vocabulary at every step is slow by design: a few steps show its memory.
        steps = 2 if name.endswith("alpha 0") else arguments.steps
        command = [sys.executable, __file__, "--decoder", name, "--steps", str(steps)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        results[name] = json.loads(output) | {"steps": steps}
    text = table(results)
    print(text)
    if arguments.docs:
        page = f"# Peak memory\n\nWritten by `{COMMAND} --docs`.\n\n{ABOUT}\n\n{text}\n"
        (Path(__file__).parents[1] / "docs" / "memory.md").write_text(page, encoding="utf-8")


def table(results: dict[str, dict[str, float]]) -> str:
    """The results in Markdown; extra memory is what lies above greedy decoding's peak."""
    lines = [
        "| decoder | peak, MiB | extra, MiB | of dense | mean V_cons | seconds (steps) |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    base = results["greedy"]["peak"]
    dense = results["dense"]["peak"] - base
    for name, row in results.items():
        extra = row["peak"] - base
        candidates = f"{row['candidates']:.0f}" if row["candidates"] else ""
        lines.append(
            f"| {name} | {row['peak']:.0f} | {extra:.0f} | {extra / dense:.1%} | {candidates} | "
            f"{row['seconds']:.1f} ({row['steps']}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
