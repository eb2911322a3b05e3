"""What ReVisiT costs in vLLM: `python benchmarks/vllm_cost.py MODEL`, where vLLM is installed.

As many requests as are asked for, all at a time, greedy and with ReVisiT by turns, in one engine.
MODEL is a Qwen2.5-VL.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from measuring import by_turns

IMAGES = Path(__file__).parents[1] / "prerequisites" / "demo" / "coco" / "val2014"
PROMPT = (
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
    "Please describe this image in detail.<|im_end|>\n<|im_start|>assistant\n"
)


def main() -> None:
    """Print the median seconds of both, their ratio, and how far their captions agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--requests", type=int, default=32, help="at a time")
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    from PIL import Image
    from vllm import LLM, SamplingParams

    paths = sorted(IMAGES.glob("*.jpg"))[: args.requests]
    prompts: list[Any] = [
        {"prompt": PROMPT, "multi_modal_data": {"image": Image.open(path).convert("RGB")}}
        for path in paths
    ]
    llm = LLM(
        str(args.model),
        dtype="float32",
        enforce_eager=True,
        kv_cache_memory_bytes=256 * 2**20,
        max_model_len=512,
        max_num_seqs=args.requests,
        enable_prefix_caching=False,  # every turn has the same prompts, and only one may read it
        skip_mm_profiling=True,
        logits_processors=["revisit.vllm:ReVisiT"],
    )
    captions: dict[str, list[tuple[int, ...]]] = {}

    def serve(name: str, extra_args: dict[str, Any] | None) -> None:
        # All tokens that are asked for, so that both have the same work.
        params = SamplingParams(
            temperature=0, max_tokens=args.max_new_tokens, ignore_eos=True, extra_args=extra_args
        )
        outputs = llm.generate(prompts, params, use_tqdm=False)
        captions[name] = [tuple(output.outputs[0].token_ids) for output in outputs]

    ways = {
        "greedy": lambda: serve("greedy", None),
        "ReVisiT": lambda: serve("ReVisiT", {"revisit": {"alpha": 1e-3}}),
    }
    took = by_turns(ways, args.rounds)
    for name, times in took.items():
        turns = " ".join(f"{seconds:.3f}" for seconds in times)
        print(f"{name}: median {statistics.median(times):.3f} s of {turns}")
    greedy, revisit = took.values()
    ratios = [b / a for a, b in zip(greedy, revisit, strict=True)]
    same = sum(a == b for a, b in zip(*captions.values(), strict=True))
    print(f"ReVisiT / greedy: median of the turns {statistics.median(ratios):.3f}")
    print(f"captions that are the same: {same} of {len(prompts)}")


if __name__ == "__main__":
    main()
