"""What ReVisiT costs: time and memory of its own work, at the shapes of LLaVA-1.5-7B and
Qwen2.5-VL-7B, against greedy decoding and against the published way to compute the same; and a step
for many rows at once.

Runs on the CPU with random weights, in some minutes; `nox -s bench` runs it.
"""

import argparse
import platform
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import own
import page
import rows
from drift import Work
from revisit.core.head import native

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


class Machine(NamedTuple):
    """What measured."""

    processor: str
    threads: int
    dtype: str
    native: bool  # whether the processor has arithmetic of that dtype

    def __str__(self) -> str:
        how = "native" if self.native else "without arithmetic of that dtype: products in float32"
        return (
            f"{self.processor}, {self.threads} threads, PyTorch {torch.__version__}, "
            f"{self.dtype} ({how})"
        )


def machine(dtype: torch.dtype) -> Machine:
    """This machine."""
    name = str(dtype).removeprefix("torch.")
    return Machine(processor(), torch.get_num_threads(), name, native(dtype, "cpu"))


def processor() -> str:
    """The name of this machine's CPU."""
    about = Path("/proc/cpuinfo")
    if about.exists():
        for line in about.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def options() -> argparse.Namespace:
    """The command line, checked before anything long begins."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--docs",
        nargs="?",
        type=Path,
        const=DOCS,
        metavar="FOLDER",
        help="write cost.md and cost.png into docs/, and the summary into the README; or into the "
        "folder given, and no README",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only shows that it runs")
    parser.add_argument("--threads", type=int, help="of PyTorch (default: one a core)")
    parser.add_argument(
        "--dtype",
        choices=["bfloat16", "float32"],
        default="bfloat16",
        help="of weights and vision states (default: bfloat16, as these models are used)",
    )
    given = parser.parse_args()
    if given.threads is not None and given.threads < 1:
        parser.error("--threads must be at least 1")
    if given.quick and given.docs == DOCS:
        parser.error("--quick measures nothing worth keeping: give --docs another folder")
    if given.docs:
        if not given.docs.is_dir():
            parser.error(f"--docs: there is no folder {given.docs}")
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            parser.error("--docs draws with matplotlib, which is not installed")
    return given


def main() -> None:
    """Measure, print, and write what was asked for."""
    given = options()
    if given.threads:
        torch.set_num_threads(given.threads)
    dtype = getattr(torch, given.dtype)
    print(f"{machine(dtype)}\n\n{page.CELLS}")
    found = measured(given.quick, dtype)
    print("", *page.sections(found), *page.summary(found), sep="\n\n")
    if given.docs:
        page.write(found, str(machine(dtype)), given.docs)
    if given.docs == DOCS:
        page.renew(ROOT / "README.md", found)


def measured(quick: bool, dtype: torch.dtype) -> page.Found:
    """All that is measured; the first table's lines are printed as they come."""
    work = Work([2, 20], 8) if quick else Work([10, 100, 1_000, 5_000])
    shapes, axes = (own.QUICK, own.QUICK_AXES) if quick else (own.SHAPES, own.AXES)
    total = len(shapes) * (2 + len(work.candidates)) + 1 + rows.parts(quick)
    total += sum(len(values) for _, values in axes.values())
    with torch.inference_mode(), tqdm(total=total, file=sys.stderr) as progress:

        def told(cell: own.Cell) -> None:
            progress.write(page.cell_line(cell), file=sys.stdout)

        cells = [c for shape in shapes for c in own.measure(shape, work, dtype, progress, told)]
        growth = own.growth(quick, dtype, progress)
        long = own.lengths(quick, dtype, progress)
        batches, traffic = rows.measured(quick, dtype, progress)
    return page.Found(work, cells, growth, long, batches, traffic)


if __name__ == "__main__":
    main()
