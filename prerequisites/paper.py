"""Run greedy decoding and ReVisiT on the paper's benchmarks, and compare them with its tables.

It runs in a family's environment (`nox -s paper -- llava|qwen`), by the scripts that a reader of
the paper runs. Answers are kept: the same command continues where it stopped.
"""

import argparse
import runpy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from download_data import folder_of
from download_from_huggingface import CHECKPOINTS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DEMO = HERE / "demo"
ELSEWHERE = {"VQAv2": "vqav2_val", "MMMU": "mmmu_val"}
"""The paper's other benchmarks -> their tasks in lmms-eval."""


@dataclass(frozen=True)
class Family:
    """A family's script, and the layers of its published setting."""

    script: Path
    layers: str


FAMILIES = {
    "llava": Family(ROOT / "LLaVA1.5" / "eval" / "chair_eval_llava.py", "last"),
    "qwen": Family(ROOT / "Qwen2.5-VL" / "eval" / "chair_eval_qwenvl.py", "all"),
}


def checkpoint(name: str, demo: bool) -> Path:
    """The folder of a family's checkpoint, or of the demo's."""
    return DEMO / f"{name}-tiny" if demo else HERE / str(CHECKPOINTS[name]["folder"])


def benchmarks(demo: bool) -> dict[str, list[str]]:
    """The benchmarks that the paper and this repository have -> the flags of their data."""
    data = DEMO / "coco" if demo else folder_of("coco")
    images, annotations = str(data / "val2014"), str(data / "annotations")
    pope = str(data / "pope" if demo else folder_of("pope"))
    lemmatizer = "noun" if demo else "nltk"
    chair = ["--data_path", images, "--anno_path", annotations, "--lemmatizer", lemmatizer]
    found = {"chair": chair, "pope": ["--data_path", images, "--pope_path", pope]}
    if not demo:
        folder = folder_of("hallusionbench")
        questions = ["--questions_path", str(folder / "HallusionBench.json")]
        found["hallusionbench"] = ["--data_path", str(folder / "hallusion_bench"), *questions]
    return found


def missing(family: str, demo: bool) -> Iterator[str]:
    """The checkpoint and the data of a family that are missing."""
    folder = checkpoint(family, demo)
    if not (folder / "config.json").is_file():
        yield f"the checkpoint {folder}"
    for name, flags in benchmarks(demo).items():
        for flag, value in zip(flags[::2], flags[1::2], strict=True):
            if flag.endswith("_path") and not Path(value).exists():
                yield f"of {name}, {flag}: {value}"


def run(name: str, demo: bool, more: Sequence[str], results: Path) -> int:
    """Run a family's benchmarks, and print each result beside the paper's figures.

    Args:
        more: flags of `revisit eval` for every run.
        results: the folder in which each run gets a folder.

    Returns:
        The exit status: the worst of the runs'.
    """
    from revisit.commands.main import main as revisit

    family = FAMILIES[name]
    script: dict[str, Any] = runpy.run_path(str(family.script))
    decoders = {"greedy": [], "revisit": ["--use_revisit", "--layers", family.layers]}
    model = ["--model_path", str(checkpoint(name, demo))]
    worst = 0
    for benchmark, data in benchmarks(demo).items():
        folders = []
        for decoder, flags in decoders.items():
            folder = results / f"{name}-{benchmark}-{decoder}"
            folders.append(folder)
            words = [benchmark, *model, *data, *flags, *more, "--output_path", str(folder)]
            print(f"\n{name}: {benchmark}, {decoder}", flush=True)
            status = script["main"](words, script["FAMILY"], family.script.name)
            if status not in (0, 1):
                return int(status)
            worst = max(worst, status)
        for result in sorted(folders[0].glob(f"**/{benchmark}.json")):
            below = result.relative_to(folders[0])
            print(f"\n{name}: {benchmark} {below.parent if below.parent.name else ''}")
            files = [str(folder / below) for folder in folders]
            worst = max(worst, revisit(["compare", *files, "--paper"]))
    for title, task in ELSEWHERE.items():
        print(f"{title}: not run here; lmms-eval has it as {task}, see docs/lmms-eval.md")
    return worst


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0, 1 where something is missing or not all is done, 2 for wrong use."""
    parser = argparse.ArgumentParser(
        description="Run a family on the paper's benchmarks (CHAIR, POPE, HallusionBench), by "
        "greedy decoding and by ReVisiT in its published setting, and print the results beside the "
        "paper's figures. The same command continues. Other flags are passed to every run."
    )
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--demo", action="store_true", help="on the embedded demo instead")
    parser.add_argument("--results", type=Path, help="default: results/paper, or demo/out/paper")
    args, more = parser.parse_known_args(argv)
    lacking = list(missing(args.family, args.demo))
    if lacking:
        print("Missing:", *(f"  {each}" for each in lacking), sep="\n", file=sys.stderr)
        print(
            "`nox -s doctor` lists what is missing and how to get it; `--demo` runs the same on "
            "the embedded demo, with nothing to download",
            file=sys.stderr,
        )
        return 1
    results = args.results or (DEMO / "out" / "paper" if args.demo else ROOT / "results" / "paper")
    return run(args.family, args.demo, more, results)


if __name__ == "__main__":
    sys.exit(main())
