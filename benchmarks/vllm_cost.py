"""What ReVisiT costs in vLLM: `python benchmarks/vllm_cost.py MODEL`, where vLLM is installed.

As many requests as are given, all at a time, greedy and with ReVisiT by turns, in one engine. With
`--published N` instead: N images through vLLM, against one after another in Transformers by the
published way (`published.py`). MODEL is a Qwen2.5-VL.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).parents[1] / "prerequisites" / "demo" / "coco" / "val2014"
PROMPT = (
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
    "Please describe this image in detail.<|im_end|>\n<|im_start|>assistant\n"
)
ALPHA = 1e-3

Captions = list[list[int]]


def main() -> None:
    """Print the median seconds of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--requests", type=int, default=32, help="at a time")
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--published", type=int, metavar="N", help="images, against Transformers")
    args = parser.parse_args()
    from PIL import Image

    paths = sorted(IMAGES.glob("*.jpg"))[: args.published or args.requests]
    images = [Image.open(path).convert("RGB") for path in paths]
    serve = engine(args, images)
    if args.published is None:
        whole = {"ignore_eos": True}  # the same work for both
        ways = {
            "greedy": lambda: serve(None, **whole),
            "ReVisiT": lambda: serve({"revisit": {"alpha": ALPHA}}, **whole),
        }
    else:
        ways = {
            "vLLM": lambda: serve({"revisit": {"alpha": ALPHA}}),
            "published": one_after_another(args, images),
        }
    compare(ways, args.rounds)


def compare(ways: dict[str, Callable[[], Captions]], rounds: int) -> None:
    """Time two ways by turns; the first turn warms up."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    said: dict[str, Captions] = {}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            begin = time.perf_counter()
            said[name] = way()
            if turn:
                took[name].append(time.perf_counter() - begin)
    first, second = ways
    same = sum(a == b for a, b in zip(said[first], said[second], strict=True))
    ratios = [b / a for a, b in zip(took[first], took[second], strict=True)]
    for name, times in took.items():
        each = " ".join(f"{one:.3f}" for one in times)
        print(f"{name}: median {statistics.median(times):.3f} s of {each}")
    print(f"{second} / {first}: median of the turns {statistics.median(ratios):.3f}")
    print(f"captions that are the same: {same} of {len(said[first])}")


def engine(args: Any, images: list[Any]) -> Callable[..., Captions]:
    """What captions all images at a time in vLLM, by `extra_args` and sampling parameters."""
    from vllm import LLM, SamplingParams

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
    prompts: list[Any] = [
        {"prompt": PROMPT, "multi_modal_data": {"image": image}} for image in images
    ]

    def serve(extra: dict[str, Any] | None, **more: Any) -> Captions:
        limit = args.max_new_tokens
        params = SamplingParams(temperature=0, max_tokens=limit, extra_args=extra, **more)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return serve


def one_after_another(args: Any, images: list[Any]) -> Callable[[], Captions]:
    """What captions the images one by one in Transformers, by the published way."""
    import torch
    import transformers

    import published

    torch.set_num_threads(1)
    model: Any = transformers.AutoModelForImageTextToText.from_pretrained(
        args.model, dtype=torch.float32
    ).eval()
    processor: Any = transformers.AutoProcessor.from_pretrained(args.model)
    norm = model.model.language_model.norm

    class Published(transformers.LogitsProcessor):  # type: ignore[misc]
        def __init__(self, kept: list[torch.Tensor]) -> None:
            self.kept = kept
            self.projected: torch.Tensor | None = None

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            if self.projected is None:
                self.projected = published.prefill(self.kept[0], model.lm_head.weight)
            return published.step(scores[0], self.projected, math.log(ALPHA)).unsqueeze(0)

    def caption(image: Any) -> list[int]:
        inputs = processor(text=[PROMPT], images=[image], return_tensors="pt")
        mask = inputs["input_ids"][0] == model.config.image_token_id
        kept: list[torch.Tensor] = []
        hook = norm.register_forward_hook(
            lambda _, __, output: None if kept else kept.append(output[0, mask])
        )
        output = model.generate(
            **inputs,
            max_new_tokens=args.max_new_tokens,
            do_sample=False,
            logits_processor=[Published(kept)],
        )
        hook.remove()
        tokens: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
        return tokens

    return lambda: [caption(image) for image in images]


if __name__ == "__main__":
    main()
