"""An engine in another process; as a program: `vllm_process.py MODEL LAYERS OUT`.

With --v2 by Model Runner V2, its Triton kernels, and ReVisiT's, in Triton's interpreter: so it runs
without a GPU. --plain leaves ReVisiT's kernels out.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def generate_elsewhere(model: Path, layers: str, into: Path, *flags: str) -> Any:
    """What another process generates, and how: the JSON that it writes into a folder."""
    out = into / "answers.json"
    run = subprocess.run(
        [sys.executable, __file__, model, layers, out, *flags],
        env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        capture_output=True,
        text=True,
        timeout=1200,  # under load a step of the interpreter takes many seconds
        cwd=into,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-6000:]
    return json.loads(out.read_text())


def _run_v2_on_a_cpu() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import triton.backends

    class Driver:
        @staticmethod
        def is_active() -> bool:
            return True

    triton.backends.backends["cpu"] = triton.backends.Backend(compiler=None, driver=Driver)


def _watch(serving: Any, spoiled: int | None = None) -> list[int]:
    """How many rows of logits each step has, from now on; one step holds NaN in its last row."""
    widths: list[int] = []
    original = serving.refine

    def refine(logits: Any, context: Any) -> Any:
        widths.append(len(logits))
        if len(widths) == spoiled:
            logits[-1] = float("nan")
        return original(logits, context)

    serving.refine = refine
    return widths


def _break_a_step(worker: Any) -> None:
    """Let the third step of ReVisiT fail, on the last rank alone."""
    if worker.rank == worker.parallel_config.world_size - 1:
        from revisit.vllm.runners import RunnerV1, RunnerV2

        steps = itertools.count(1)
        for reader in (RunnerV1, RunnerV2):

            def requests(self: Any, *args: Any, original: Any = reader.requests) -> Any:
                if next(steps) == 3:
                    raise MemoryError("no room here")
                return original(self, *args)

            reader.requests = requests


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("layers")
    parser.add_argument("out", type=Path)
    parser.add_argument("--v2", action="store_true")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--options", type=json.loads, default={}, help="more of the engine's")
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--spoiled", type=int, help="again, with NaN in a row of this step")
    parser.add_argument("--broken", action="store_true", help="at last, with an error on one rank")
    args = parser.parse_args()
    if args.v2:
        _run_v2_on_a_cpu()
    if args.broken:
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # a function for the workers
    if args.ranks > 1:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    if args.plain:
        from revisit.vllm import serving as module

        module.available = lambda head: False
    import vllm_engines as engines
    from revisit import ReVisiTConfig
    from vllm_models import QUESTIONS, mixed

    llm = engines.start(
        args.model,
        args.layers,
        tensor_parallel_size=args.ranks,
        distributed_executor_backend="mp" if args.ranks > 1 else "uni",
        **args.options,
    )
    serving = engines.serving(llm) if args.v2 else None
    widths = _watch(serving) if serving else []
    asked = mixed(args.layers, QUESTIONS[: args.questions])
    answers = {
        "tokens": engines.generate(llm, asked, args.steps),
        "runner": type(serving.runner).__name__ if serving else None,
        "decoded by": type(serving.steps).__name__ if serving else None,
        "rows": max(widths, default=None),
        "compiled": llm.llm_engine.vllm_config.compilation_config.mode.name,
    }
    config = ReVisiTConfig(layers=args.layers, alpha=1e-3)
    if args.spoiled:
        _watch(serving, args.spoiled)
        asked = [(question, config) for question in QUESTIONS[2:4]]  # one image, and two
        answers["spoiled"] = engines.outcomes(llm, asked, args.steps)
    if args.broken:
        llm.collective_rpc(_break_a_step)
        asked = [(QUESTIONS[0], config), (QUESTIONS[1], None)]
        answers["broken"] = engines.outcomes(llm, asked, args.steps)
    args.out.write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
