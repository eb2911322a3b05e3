"""What ReVisiT costs in vLLM: `python benchmarks/vllm_cost.py MODEL`, where vLLM is installed.

As many requests as are asked for, all at a time, greedy and with ReVisiT by turns, in one engine.
With `--published N` instead: N images through vLLM, against one after another in Transformers by
the published way (`published.py`). MODEL is a Qwen2.5-VL.
"""

import argparse
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import published
from measuring import by_turns

IMAGES = Path(__file__).parents[1] / "prerequisites" / "demo" / "coco" / "val2014"
PROMPT = (
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
    "Please describe this image in detail.<|im_end|>\n<|im_start|>assistant\n"
)
ALPHA = 1e-3
REVISIT = {"revisit": {"alpha": ALPHA}}

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
    ways: dict[str, Callable[[], Captions]]
    if args.published:
        ways = {"vLLM": lambda: serve(REVISIT), "published": one_after_another(args, images)}
    else:  # all tokens that are asked for, so that both have the same work
        ways = {
            "greedy": lambda: serve(None, ignore_eos=True),
            "ReVisiT": lambda: serve(REVISIT, ignore_eos=True),
        }
    compare(ways, args.rounds)


def compare(ways: dict[str, Callable[[], Captions]], rounds: int) -> None:
    """Time two ways by turns, and tell how far their captions agree."""
    captions: dict[str, Captions] = {}
    kept = {
        name: lambda name=name, way=way: captions.update({name: way()})
        for name, way in ways.items()
    }
    took = by_turns(kept, rounds)
    for name, times in took.items():
        each = " ".join(f"{one:.3f}" for one in times)
        print(f"{name}: median {statistics.median(times):.3f} s of {each}")
    first, second = ways
    ratios = [b / a for a, b in zip(took[first], took[second], strict=True)]
    same = sum(a == b for a, b in zip(captions[first], captions[second], strict=True))
    print(f"{second} / {first}: median of the turns {statistics.median(ratios):.3f}")
    print(f"captions that are the same: {same} of {len(captions[first])}")


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
    import transformers

    torch.set_num_threads(1)
    model: Any = transformers.AutoModelForImageTextToText.from_pretrained(
        args.model, dtype=torch.float32
    ).eval()
    processor: Any = transformers.AutoProcessor.from_pretrained(args.model)

    def caption(image: Any) -> list[int]:
        inputs = processor(text=[PROMPT], images=[image], return_tensors="pt")
        mask = inputs["input_ids"][0] == model.config.image_token_id
        projected: list[torch.Tensor] = []

        def record(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            if not projected:
                projected.append(published.prefill(output[0, mask], model.lm_head.weight))

        def refine(_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return published.step(scores[0], projected[0], math.log(ALPHA)).unsqueeze(0)

        hook = model.model.language_model.norm.register_forward_hook(record)
        limit = args.max_new_tokens
        output = model.generate(
            **inputs, max_new_tokens=limit, do_sample=False, logits_processor=[refine]
        )
        hook.remove()
        tokens: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
        return tokens

    return lambda: [caption(image) for image in images]


if __name__ == "__main__":
    main()
