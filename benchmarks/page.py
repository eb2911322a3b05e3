"""The page of costs: tables, what they come to, and plots."""

import itertools
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from cases import Case
from measuring import put
from revisit import ReVisiTConfig


class Cell(NamedTuple):
    """A generation: seconds of the work beside the model's, and bytes."""

    case: Case
    candidates: int
    columns: int  # kept at the end
    fits: bool  # whether V_cons fits the cache
    revisit: float
    dense: float
    greedy: float
    revisit_bytes: int
    dense_bytes: int

    def __str__(self) -> str:
        mine, dense = (each / 2**20 for each in (self.revisit_bytes, self.dense_bytes))
        return (
            f"| {self.case} | {self.candidates:,}{'' if self.fits else ' *'} | {self.columns:,} "
            f"| {self.revisit:.3g} | {self.dense:.3g} | {ratio(self.revisit, self.dense)} "
            f"| {self.revisit / self.greedy:.2%} "
            f"| {mine:.1f} | {dense:.1f} | {ratio(mine, dense)} |"
        )


class Point(NamedTuple):
    """Seconds of a step where one size differs."""

    axis: str
    value: int
    revisit: float
    dense: float | None

    def __str__(self) -> str:
        mine = f"{self.revisit * 1e3:.3g}"
        if self.dense is None:
            return f"| {self.axis} | {self.value:,} | {mine} | |"
        mine = f"**{mine}**" if self.revisit > self.dense else mine
        return f"| {self.axis} | {self.value:,} | {mine} | {self.dense * 1e3:.3g} |"


class Row(NamedTuple):
    """Seconds of a step of some rows, and PyTorch's operators in one in which no token is new."""

    case: str
    rows: int
    seconds: float
    operators: int

    def __str__(self) -> str:
        each = 1e3 * self.seconds / self.rows
        return (
            f"| {self.case} | {self.rows} | {1e3 * self.seconds:.3g} | {each:.3g} "
            f"| {self.operators} |"
        )


class Measured(NamedTuple):
    """All that was measured."""

    steps: int  # of a generation
    cells: Sequence[Cell]
    points: Sequence[Point]
    rows: Sequence[Row]


CELLS = """\
Times and memory are of the work beside the model's: for *ReVisiT* the projection of tokens that
become plausible, and the steps; for *dense* the projection of all vision states onto the whole
vocabulary in prefill, which is stored as the published implementation stores it, and per step a
softmax, a log-softmax and two Kullback-Leibler divergences over V_cons of what is stored. Weights,
vision states and logits are random; both get the same. A generation has {steps} steps. Its V_cons
has a fixed size; in each step 5% of its tokens are replaced by tokens drawn by Zipf's law (the
probability of a token is 1 / its rank), so that frequent tokens come back. `cache_bytes` is the
default, {cache} MiB.

Times are medians of interleaved repeats in one run. A dense step costs the same all along, so a few
are timed and multiplied; ReVisiT's generations run whole. Extra memory is the peak of the bytes of
all tensors alive, the recorded vision states with it. *Of greedy* is relative to {steps} greedy
steps of the model on this machine: the LM head and one decoder layer of the real size are timed,
and the layer counted as often as the model has it.

| model, layers | V_cons | tokens kept | ReVisiT, s | dense, s | time | of greedy | ReVisiT, MiB \
| dense, MiB | memory |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"""

NOTES = """\
\\* V_cons does not fit the cache: what does not is projected again in every step. Bold: worse than
dense, whose projection pays where a generation needs most of the vocabulary."""

GROWTH = """\
## Growth of a step

![Time against V_cons, vision states, rows, vocabulary, and length](cost.png)

The sizes that are not named are LLaVA-1.5-7B's, with 1,000 tokens in V_cons. A step of ReVisiT
includes the projection of its new tokens; a dense step only reads what its prefill stored, which is
not counted here. Bold: longer than dense, where the fixed cost of a step's small operators shows
(few tokens) or the projection of many new tokens.

| axis | size | ReVisiT, ms | dense, ms |
|---|---:|---:|---:|"""

ROWS = """\
## Many rows

Rows of one batch, each with its number of vision states and of plausible tokens, drawn between half
and one and a half times 576 and 300. Operators are what PyTorch is asked to do in a step without
new tokens, views apart: on a GPU without the kernels about one launch each.

| model, layers | rows | ms | ms a row | operators |
|---|---:|---:|---:|---:|"""

ON_A_GPU = (
    "- On an H100: 9% to 29% more time than greedy decoding with *last*; with *all* 25% for one "
    "row, 115% for eight, by an older step. Not measured since the step changed: "
    "[docs/gpu.md](docs/gpu.md)."
)  # until benchmarks/gpu.py has measured it


def ratio(mine: float, other: float) -> str:
    """How one compares to the other, bold where it is worse."""
    text = f"{mine / other:.3f}"
    return f"**{text}**" if mine > other else text


def summary(result: Measured) -> list[str]:
    """What it comes to on a CPU, in three lines."""
    size = sorted({cell.candidates for cell in result.cells})[-2]  # the largest is rare
    cells = [cell for cell in result.cells if cell.candidates == size]
    cells.sort(key=lambda cell: cell.revisit / cell.greedy)
    least, most = cells[0], cells[-1]
    memory = [cell.revisit_bytes / 2**20 for cell in cells]
    times = [cell.dense / cell.revisit for cell in cells]
    spaces = [cell.dense_bytes / cell.revisit_bytes for cell in cells]
    several = min(result.rows, key=lambda row: abs(row.rows - 32))
    return [
        f"- On a CPU: {least.revisit / least.greedy:.1%} ({least.case}) to "
        f"{most.revisit / most.greedy:.1%} ({most.case}) more time, with {size:,} tokens in "
        "V_cons, 5% new in a step (an assumption).",
        f"- Memory: {min(memory):.0f} to {max(memory):.0f} MiB; it grows with the tokens "
        "that were ever plausible, not with the vocabulary, and has a budget. The published way to "
        f"compute the same takes {min(times):.0f} to {max(times):.0f} times as long, and "
        f"{min(spaces):.0f} to {max(spaces):.0f} times the memory.",
        f"- Rows are taken one after another: {several.rows} unlike ones ({several.case}) "
        f"take {1e3 * several.seconds:.3g} ms.",
    ]


def write(result: Measured, machine: str, folder: Path) -> None:
    """`cost.md` and `cost.png` in the folder."""

    def table(head: str, lines: Sequence[object]) -> str:
        return "\n".join([head, *map(str, lines)])

    cache = ReVisiTConfig().cache_bytes // 2**20
    parts = [
        "# What ReVisiT costs",
        "\n".join(summary(result)),
        f"Measured by `nox -s bench -- --docs` on {date.today()}: {machine}.",
        table(CELLS.format(steps=result.steps, cache=cache), result.cells),
        NOTES,
        table(GROWTH, result.points),
        table(ROWS, result.rows),
        "On a GPU: [gpu.md](gpu.md), by `python benchmarks/gpu.py --docs`.",
    ]
    folder.joinpath("cost.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    plot(result, folder / "cost.png")


def renew(readme: Path, result: Measured) -> None:
    """Put the summary between the marks of the README."""
    put(readme, "cost", "\n".join([ON_A_GPU, *summary(result)]))


def plot(result: Measured, to: Path) -> None:
    """The tables in one picture; ReVisiT's points are round, the published way's are squares."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 8), layout="constrained")
    panels = iter(figure.subplots(2, 4).flatten())
    panel = next(panels)
    for number, (case, cells) in enumerate(itertools.groupby(result.cells, lambda c: c.case)):
        mine, color = list(cells), f"C{number + 2}"
        sizes = [cell.candidates for cell in mine]
        panel.loglog(sizes, [cell.revisit for cell in mine], "o-", color=color, label=str(case))
        panel.loglog(sizes, [cell.dense for cell in mine], "s:", color=color)
        label(panel, "a generation, without the model", "tokens in V_cons", "seconds", sizes)
    panel.legend(fontsize=8, loc="upper left")
    for axis, points in itertools.groupby(result.points, lambda point: point.axis):
        panel, some = next(panels), list(points)
        sizes = [point.value for point in some]
        panel.loglog(sizes, [1e3 * point.revisit for point in some], "o-", color="C0")
        if some[0].dense is not None:
            panel.loglog(sizes, [1e3 * (point.dense or 0) for point in some], "s:", color="C1")
        label(panel, "one step", axis, "milliseconds", sizes)
    panel = next(panels)
    sizes = [row.rows for row in result.rows]
    panel.loglog(sizes, [1e3 * row.seconds for row in result.rows], "o-", color="C0")
    label(panel, "one step of unlike rows", "rows", "milliseconds", sizes)
    for unused in panels:
        unused.axis("off")
    lines = [panel.plot([], [], s, color=c)[0] for s, c in (("o-", "C0"), ("s:", "C1"))]
    figure.legend(lines, ["ReVisiT", "dense"], loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(to, dpi=110)


def label(panel: Any, title: str, x: str, y: str, ticks: Sequence[int]) -> None:
    """Titles, and ticks at the sizes that were measured, as plain numbers."""
    panel.set(title=title, xlabel=x, ylabel=y)
    panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=45, fontsize=8)
    panel.minorticks_off()
