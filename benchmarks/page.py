"""The page of costs: tables, a summary, and plots."""

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
    candidates: int  # tokens in V_cons
    columns: int  # kept at the end
    fits: bool  # whether V_cons fits the cache
    revisit: float
    dense: float
    greedy: float
    revisit_bytes: int
    dense_bytes: int

    def __str__(self) -> str:
        memory, dense_memory = self.revisit_bytes / 2**20, self.dense_bytes / 2**20
        return (
            f"| {self.case} | {self.candidates:,}{'' if self.fits else ' *'} | {self.columns:,} "
            f"| {self.revisit:.3g} | {self.dense:.3g} | {ratio(self.revisit, self.dense)} "
            f"| {self.revisit / self.greedy:.2%} "
            f"| {memory:.1f} | {dense_memory:.1f} | {ratio(memory, dense_memory)} |"
        )


class Point(NamedTuple):
    """Seconds of a step where one size differs."""

    axis: str
    value: int
    revisit: float
    dense: float | None

    def __str__(self) -> str:
        revisit = f"{self.revisit * 1e3:.3g}"
        if self.dense is None:
            return f"| {self.axis} | {self.value:,} | {revisit} | |"
        if self.revisit > self.dense:
            revisit = f"**{revisit}**"
        return f"| {self.axis} | {self.value:,} | {revisit} | {self.dense * 1e3:.3g} |"


class Row(NamedTuple):
    """Seconds of a step of some rows, and PyTorch's operators in one in which no token is new."""

    case: str
    rows: int
    seconds: float
    operators: int

    def __str__(self) -> str:
        ms = 1e3 * self.seconds
        return f"| {self.case} | {self.rows} | {ms:.3g} | {ms / self.rows:.3g} | {self.operators} |"


class Measured(NamedTuple):
    """All that was measured."""

    steps: int  # of a generation
    cells: Sequence[Cell]
    points: Sequence[Point]
    rows: Sequence[Row]


PAGE = """\
# What ReVisiT costs

{summary}

Measured by `nox -s bench -- --docs` on {today}: {machine}.

Times and memory are of the work beside the model's. *ReVisiT* projects tokens when they become
plausible. *Dense*, the published way, projects all vision states onto the whole vocabulary in
prefill and stores that; a step takes a softmax, a log-softmax and two Kullback-Leibler divergences
over V_cons of it. Both get the same random weights, vision states and logits. A generation has
{steps} steps; in each, 5% of V_cons are replaced by tokens drawn by Zipf's law (the probability of
a token is 1 / its rank), so that frequent tokens come back. `cache_bytes` is the default,
{cache} MiB.

Times are medians of interleaved repeats in one run. A few dense steps are timed and multiplied;
ReVisiT's generations run whole. Memory is the peak of the bytes of all tensors, recorded vision
states included. *Of greedy* is relative to {steps} greedy steps of the model on this machine: the
LM head and one decoder layer are timed, and the layer counted as often as the model has it.

| model, layers | V_cons | tokens kept | ReVisiT, s | dense, s | time | of greedy | ReVisiT, MiB \
| dense, MiB | memory |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|
{cells}

\\* V_cons does not fit the cache: what does not is projected again in every step. Bold: worse than
dense, whose projection pays where a generation needs most of the vocabulary.

## Growth of a step

![Time against V_cons, vision states, rows, vocabulary, and length](cost.png)

The sizes that are not named are LLaVA-1.5-7B's, with 1,000 tokens in V_cons. A step of ReVisiT
includes the projection of its new tokens; a dense step only reads what its prefill stored. Bold:
longer than dense.

| axis | size | ReVisiT, ms | dense, ms |
|---|---:|---:|---:|
{points}

## Many rows

Rows of one batch, each with its number of vision states and of plausible tokens, drawn between half
and one and a half times 576 and 300. Operators are what PyTorch is asked to do in a step without
new tokens, views apart: on a GPU without the kernels about one launch each.

| model, layers | rows | ms | ms a row | operators |
|---|---:|---:|---:|---:|
{rows}

On a GPU: [gpu.md](gpu.md), by `python benchmarks/gpu.py --docs`.
"""

ON_A_GPU = (
    "- On an H100: 9% to 29% more time than greedy decoding with *last*; with *all* 25% for one "
    "row, 115% for eight, by an older step. Not measured since the step changed: "
    "[docs/gpu.md](docs/gpu.md)."
)  # until benchmarks/gpu.py has measured it


def ratio(value: float, other: float) -> str:
    """How one compares to the other, bold where it is worse."""
    text = f"{value / other:.3f}"
    return f"**{text}**" if value > other else text


def summary(result: Measured) -> str:
    """What it comes to on a CPU, in three lines."""
    size = sorted({cell.candidates for cell in result.cells})[-2]  # the largest is rare
    cells = [cell for cell in result.cells if cell.candidates == size]
    cells.sort(key=lambda cell: cell.revisit / cell.greedy)
    least, most = cells[0], cells[-1]
    memory = [cell.revisit_bytes / 2**20 for cell in cells]
    times = [cell.dense / cell.revisit for cell in cells]
    spaces = [cell.dense_bytes / cell.revisit_bytes for cell in cells]
    several = min(result.rows, key=lambda row: abs(row.rows - 32))
    return (
        f"- On a CPU: {least.revisit / least.greedy:.1%} ({least.case}) to "
        f"{most.revisit / most.greedy:.1%} ({most.case}) more time, with {size:,} tokens in "
        "V_cons, 5% new in a step (an assumption).\n"
        f"- Memory: {min(memory):.0f} to {max(memory):.0f} MiB; it grows with the tokens "
        "that were ever plausible, not with the vocabulary, and has a budget. The published way to "
        f"compute the same takes {min(times):.0f} to {max(times):.0f} times as long, and "
        f"{min(spaces):.0f} to {max(spaces):.0f} times the memory.\n"
        f"- Rows are taken one after another: {several.rows} unlike ones ({several.case}) "
        f"take {1e3 * several.seconds:.3g} ms."
    )


def write(result: Measured, machine: str, folder: Path) -> None:
    """`cost.md` and `cost.png` in the folder."""
    tables = {"cells": result.cells, "points": result.points, "rows": result.rows}
    text = PAGE.format(
        summary=summary(result),
        today=date.today(),
        machine=machine,
        steps=result.steps,
        cache=ReVisiTConfig().cache_bytes // 2**20,
        **{name: "\n".join(map(str, lines)) for name, lines in tables.items()},
    )
    folder.joinpath("cost.md").write_text(text, encoding="utf-8")
    plot(result, folder / "cost.png")


def renew(readme: Path, result: Measured) -> None:
    """Put the summary between the marks of the README."""
    put(readme, "cost", f"{ON_A_GPU}\n{summary(result)}")


def plot(result: Measured, to: Path) -> None:
    """The tables in one picture; ReVisiT's points are round, the published way's are squares."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 8), layout="constrained")
    first, *panels = figure.subplots(2, 4).flatten()
    for number, (case, cells) in enumerate(itertools.groupby(result.cells, lambda c: c.case), 2):
        curve = [(cell.candidates, cell.revisit, cell.dense) for cell in cells]
        draw(first, "tokens in V_cons", curve, f"C{number}")
        first.plot([], [], "o-", color=f"C{number}", label=str(case))
    first.set(title="a generation, without the model", ylabel="seconds")
    first.legend(fontsize=8, loc="upper left")
    curves: dict[str, list[Any]] = {
        axis: [(each.value, 1e3 * each.revisit, each.dense and 1e3 * each.dense) for each in points]
        for axis, points in itertools.groupby(result.points, lambda point: point.axis)
    }
    curves["rows"] = [(row.rows, 1e3 * row.seconds, None) for row in result.rows]
    for axis, curve in curves.items():
        panel = panels.pop(0)
        draw(panel, axis, curve)
        panel.set(title="one step", ylabel="milliseconds")
    for unused in panels:
        unused.axis("off")
    lines = [first.plot([], [], style, color="grey")[0] for style in ("o-", "s:")]
    figure.legend(lines, ["ReVisiT", "dense"], loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(to, dpi=110)


def draw(panel: Any, x: str, curve: Sequence[Any], color: str = "C0") -> None:
    """Points (size, time of ReVisiT, time of dense or None), with a tick at each size."""
    sizes, revisit, dense = zip(*curve, strict=True)
    panel.loglog(sizes, revisit, "o-", color=color)
    if None not in dense:
        panel.loglog(sizes, dense, "s:", color=color)
    panel.set_xlabel(x)
    panel.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=45, fontsize=8)
    panel.minorticks_off()
