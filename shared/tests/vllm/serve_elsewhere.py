"""Serve a tiny model in this process and its children: `serve_elsewhere.py MODEL LAYERS OUT`.

With --v2 by Model Runner V2, its Triton kernels run by Triton's interpreter: the way without a GPU.
"""

import argparse
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any


def on_a_cpu() -> None:
    """Let vLLM's second model runner start without a GPU."""
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    import triton.backends

    class Driver:
        @staticmethod
        def is_active() -> bool:
            return True

    triton.backends.backends["cpu"] = triton.backends.Backend(compiler=None, driver=Driver)


def watch(serving: Any) -> list[int]:
    """How many rows of logits each step has, from now on."""
    widths: list[int] = []
    original = serving.refine

    def refine(logits: Any, context: Any) -> Any:
        widths.append(len(logits))
        return original(logits, context)

    serving.refine = refine
    return widths


def break_a_step(worker: Any) -> None:
    """Let the third step of ReVisiT fail, on the last rank alone."""
    if worker.rank == worker.parallel_config.world_size - 1:
        from revisit.vllm import serving

        original, steps = serving.refine, itertools.count(1)

        def refine(*given: Any) -> Any:
            if next(steps) == 3:
                raise MemoryError("no room here")
            return original(*given)

        serving.refine = refine


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("layers")
    parser.add_argument("out", type=Path)
    parser.add_argument("--v2", action="store_true")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--options", type=json.loads, default={}, help="more of the engine's")
    parser.add_argument(
        "--broken", action="store_true", help="at last, let a step fail on one rank"
    )
    parser.add_argument("--trained", type=Path, help="JSON of what is asked of a trained model")
    args = parser.parse_args()
    if args.v2:
        on_a_cpu()
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if args.broken:
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # a function for the workers
    if args.ranks > 1:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    sys.path.insert(0, str(Path(__file__).parent))
    import engines
    from revisit import ReVisiTConfig
    from tiny_models import QUESTIONS, mixed
    from trained_models import STEPS, Shown

    backend = "mp" if args.ranks > 1 else "uni"
    llm = engines.start(
        args.model,
        args.layers,
        tensor_parallel_size=args.ranks,
        distributed_executor_backend=backend,
        **args.options,
    )
    widths = watch(engines.serving(llm)) if args.v2 else []
    if args.trained:
        told = json.loads(args.trained.read_text())
        asked = [(Shown(*shown), config and ReVisiTConfig(**config)) for shown, config in told]
        tokens = engines.generate(llm, asked, STEPS, ignore_eos=False)
    else:
        tokens = engines.generate(llm, mixed(args.layers, QUESTIONS[:4]))
    answers = {
        "tokens": tokens,
        "runner": type(engines.serving(llm).runner).__name__ if args.v2 else None,
        "steps": type(engines.serving(llm).steps).__name__ if args.v2 else None,
        "rows": max(widths, default=None),
        "compiled": llm.llm_engine.vllm_config.compilation_config.mode.name,
    }
    if args.broken:
        llm.collective_rpc(break_a_step)
        config = ReVisiTConfig(layers=args.layers, alpha=1e-3)
        answers["broken"] = engines.outcomes(llm, [(QUESTIONS[0], config), (QUESTIONS[1], None)])
    args.out.write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
