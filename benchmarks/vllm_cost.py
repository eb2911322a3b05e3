"""What ReVisiT costs in vLLM: `python benchmarks/vllm_cost.py MODEL`, where vLLM is installed.

As many requests as are given, all at a time, greedy and with ReVisiT by turns, in one engine.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).parents[1] / "prerequisites" / "demo" / "coco" / "val2014"
PROMPT = (
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
    "Please describe this image in detail.<|im_end|>\n<|im_start|>assistant\n"
)


def main() -> None:
    """Print the median seconds of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    from PIL import Image
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(args.model),
        dtype="float32",
        enforce_eager=True,
        kv_cache_memory_bytes=256 * 2**20,
        max_model_len=512,
        max_num_seqs=args.requests,
        skip_mm_profiling=True,
        logits_processors=["revisit.vllm:ReVisiT"],
    )
    prompts: list[Any] = [
        {"prompt": PROMPT, "multi_modal_data": {"image": Image.open(path).convert("RGB")}}
        for path in sorted(IMAGES.glob("*.jpg"))[: args.requests]
    ]

    def seconds(extra: dict[str, Any] | None) -> float:
        params = SamplingParams(
            temperature=0, max_tokens=args.max_new_tokens, ignore_eos=True, extra_args=extra
        )
        begin = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - begin

    kinds: dict[str, dict[str, Any] | None] = {
        "greedy": None,
        "revisit": {"revisit": {"alpha": 1e-3}},
    }
    took: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(args.rounds + 1):  # the first warms up
        for name, extra in kinds.items():
            spent = seconds(extra)
            if turn:
                took[name].append(spent)
    medians = {name: statistics.median(each) for name, each in took.items()}
    print({name: [round(each, 2) for each in times] for name, times in took.items()})
    print(f"ReVisiT / greedy: {medians['revisit'] / medians['greedy']:.2f}")


if __name__ == "__main__":
    main()
