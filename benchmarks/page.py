"""The page of costs: tables, what they come to, and plots."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from drift import Work
from own import AXES, CONFIG, Cell, Growth
from rows import Batch, Traffic


class Found(NamedTuple):
    """All that was measured."""

    work: Work
    cells: Sequence[Cell]
    growth: Growth
    long: Sequence[tuple[int, float]]  # a step in each stretch of a long generation
    batches: Sequence[Batch]
    traffic: Sequence[Traffic]


ABOUT = """\
Own work is all that a decoder does besides the model: for *ReVisiT* the projection of tokens that
become plausible, and the steps; for *dense* the projection of all vision states onto the whole
vocabulary in prefill, which is stored as the published implementation stores it, and per step a
softmax, a log-softmax and two Kullback-Leibler divergences over V_cons of what is stored. Weights,
vision states and logits are random; both get the same. A generation has {steps} steps. Its V_cons
has a fixed size; in each step {share:.0%} of its tokens are replaced by tokens drawn by Zipf's law
(the probability of a token is 1 / its rank), so that frequent tokens come back. `cache_bytes` is
the default, {cache} MiB.

Times are medians of interleaved repeats in one run. A dense step costs the same all along, so a few
are timed and multiplied; ReVisiT's generations run whole. Extra memory is the peak of the bytes of
all tensors alive, the recorded vision states with it. *Of greedy* is ReVisiT's own work relative to
{steps} greedy steps of the model on this machine: the LM head and one decoder layer of the real
shape are timed, and the layer counted {layers} times."""

GROWTH = """\
## Growth of a step

![Time against V_cons, vision states, rows, vocabulary, and length](cost.png)

The sizes that are not named are LLaVA-1.5-7B's, with 1,000 tokens in V_cons. A step of ReVisiT
includes the projection of its new tokens; a dense step only reads what its prefill stored, which is
not counted here. Bold: longer than dense, where the fixed cost of a step's small operators shows
(few tokens) or the projection of many new tokens."""

ROWS = """\
## Many rows

Rows of one batch, each with its own number of vision states and of plausible tokens, drawn between
half and one and a half times those of the shape: LLaVA-1.5-7B has 576 states and 300 tokens,
*small* 64 and 50 (width 128, vocabulary 1,000). One after another, each row has its own cache, as
if it were alone. Operators are what PyTorch is asked to do in a step without new tokens, views
apart: on a GPU about one kernel each. Rows are taken one after another, so that their number grows
with the rows."""

TRAFFIC = """\
Requests that come and go, as a serving engine has them: {requests} of {least} to {steps} steps, so
many at a time. Own work opens their sessions, takes the steps, and closes them."""

ON_A_GPU = (
    "- On an H100: 9% to 29% more time than greedy decoding with *last*; with *all* 25% for one "
    "row, 115% for eight, by an older step. Not measured since the step changed: "
    "[docs/gpu.md](docs/gpu.md)."
)  # until benchmarks/gpu.py has measured it

CELLS = (
    "| shape | V_cons | tokens kept | ReVisiT, s | dense, s | time | of greedy "
    "| ReVisiT, MiB | dense, MiB | memory |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)
BATCHES = (
    "| shape | rows | together, ms | one after another, ms | ratio | operators |\n"
    "|---|---:|---:|---:|---:|---:|"
)
REQUESTS = (
    "| shape | at a time | together, s | one after another, s | ratio | requests a second |\n"
    "|---|---:|---:|---:|---:|---:|"
)


def cell_line(cell: Cell) -> str:
    """A cell in Markdown, below CELLS."""
    own, dense = (each / 2**20 for each in (cell.revisit_bytes, cell.dense_bytes))
    return (
        f"| {cell.shape.name} | {cell.candidates:,}{'' if cell.fits else ' *'} "
        f"| {cell.columns:,} | {cell.revisit:.3g} | {cell.dense:.3g} "
        f"| {ratio(cell.revisit, cell.dense)} | {cell.revisit / cell.greedy:.2%} "
        f"| {own:.1f} | {dense:.1f} | {ratio(own, dense)} |"
    )


def batch_line(cell: Batch) -> str:
    """A batch in Markdown, below BATCHES."""
    return (
        f"| {cell.ragged.name} | {cell.rows} | {1e3 * cell.together:.3g} | {1e3 * cell.alone:.3g} "
        f"| {ratio(cell.together, cell.alone)} | {cell.operators} |"
    )


def traffic_line(cell: Traffic) -> str:
    """Traffic in Markdown, below REQUESTS."""
    return (
        f"| {cell.ragged.name} | {cell.slots} | {cell.together:.3g} | {cell.alone:.3g} "
        f"| {ratio(cell.together, cell.alone)} | {cell.requests / cell.together:,.0f} |"
    )


def ratio(own: float, other: float) -> str:
    """How one compares to the other, bold where it is worse."""
    text = f"{own / other:.3f}"
    return f"**{text}**" if own > other else text


def growth_table(found: Found) -> str:
    """A step's milliseconds along each axis in Markdown."""
    lines = ["| axis | size | ReVisiT, ms | dense, ms |", "|---|---:|---:|---:|"]
    for axis, points in found.growth.items():
        for value, own, dense in points:
            mine = f"{own * 1e3:.3g}"
            mine = f"**{mine}**" if own > dense else mine
            lines.append(f"| {AXES[axis][0]} | {value:,} | {mine} | {dense * 1e3:.3g} |")
    for step, own in found.long[:: max(1, len(found.long) // 4)]:
        lines.append(f"| steps of the generation so far | {step:,} | {own * 1e3:.3g} | |")
    return "\n".join(lines)


def remarks(cells: Sequence[Cell]) -> list[str]:
    """Why the cells that stand out do."""
    texts = []
    if any(not cell.fits for cell in cells):
        texts.append(
            "\\* V_cons does not fit the cache: what does not is projected again in every step."
        )
    if any(cell.revisit > cell.dense or cell.revisit_bytes > cell.dense_bytes for cell in cells):
        texts.append(
            "Bold: worse than dense, whose projection pays where a generation needs most of the "
            "vocabulary, and so many columns are computed in parts, or again."
        )
    return texts


def sections(found: Found) -> list[str]:
    """What follows the first table."""
    one = found.traffic[0]
    about = TRAFFIC.format(requests=one.requests, least=one.longest // 2, steps=one.longest)
    return [
        *remarks(found.cells),
        GROWTH,
        growth_table(found),
        ROWS,
        "\n".join([BATCHES, *map(batch_line, found.batches)]),
        about,
        "\n".join([REQUESTS, *map(traffic_line, found.traffic)]),
    ]


def summary(found: Found) -> list[str]:
    """What it comes to on a CPU, in three lines."""
    size = sorted({cell.candidates for cell in found.cells})[-2]  # the largest is rare
    cells = [cell for cell in found.cells if cell.candidates == size]
    shares = [cell.revisit / cell.greedy for cell in cells]
    memory = [cell.revisit_bytes / 2**20 for cell in cells]
    times = [cell.revisit / cell.dense for cell in cells]
    spaces = [cell.revisit_bytes / cell.dense_bytes for cell in cells]
    least, most = shares.index(min(shares)), shares.index(max(shares))
    large = [batch for batch in found.batches if batch.ragged == found.batches[0].ragged]
    several = min(large, key=lambda batch: abs(batch.rows - 32))
    return [
        f"- On a CPU: {shares[least]:.1%} ({cells[least].shape.name}) to {shares[most]:.1%} "
        f"({cells[most].shape.name}) more time, with {size:,} tokens in V_cons, "
        f"{found.work.share:.0%} new in a step (an assumption).",
        f"- Memory: {min(memory):.0f} to {max(memory):.0f} MiB; it grows with the tokens "
        "that were ever plausible, not with the vocabulary, and has a budget. The published way to "
        f"compute the same takes {1 / max(times):.0f} to {1 / min(times):.0f} times as long, and "
        f"{1 / max(spaces):.0f} to {1 / min(spaces):.0f} times the memory.",
        f"- Rows are taken one after another: {several.rows} unlike ones ({several.ragged.name}) "
        f"take {1e3 * several.together:.3g} ms.",
    ]


def write(found: Found, machine: str, folder: Path) -> None:
    """`cost.md` and `cost.png` in the folder."""
    layers = " or ".join(sorted({str(cell.shape.decoder["layers"]) for cell in found.cells}))
    about = ABOUT.format(
        steps=found.work.steps,
        share=found.work.share,
        cache=CONFIG.cache_bytes // 2**20,
        layers=layers,
    )
    parts = [
        "# What ReVisiT costs",
        "\n".join(summary(found)),
        f"Measured by `nox -s bench -- --docs` on {date.today()}: {machine}.",
        about,
        "\n".join([CELLS, *map(cell_line, found.cells)]),
        *sections(found),
        "On a GPU: [gpu.md](gpu.md), by `python benchmarks/gpu.py --docs`.",
    ]
    folder.joinpath("cost.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    plot(found, folder / "cost.png")


def renew(readme: Path, found: Found) -> None:
    """Put the summary between the marks of the README."""
    before, begin, rest = readme.read_text("utf-8").partition("<!-- cost -->\n")
    _, end, after = rest.partition("<!-- /cost -->\n")
    if not end:
        raise SystemExit(f"{readme} lacks the marks <!-- cost --> and <!-- /cost -->")
    text = "\n".join([ON_A_GPU, *summary(found)])
    readme.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")


def plot(found: Found, to: Path) -> None:
    """The tables in one picture; at each last point, ReVisiT's time relative to dense."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 8), layout="constrained")
    panels = iter(figure.subplots(2, 4).flatten())
    _whole(next(panels), found.cells)
    for axis, points in found.growth.items():
        panel = next(panels)
        values = [value for value, _, _ in points]
        panel.loglog(values, [1e3 * own for _, own, _ in points], "o-", color="C0")
        panel.loglog(values, [1e3 * dense for _, _, dense in points], "s:", color="C1")
        value, own, dense = points[-1]
        _mark(panel, value, 1e3 * own, own / dense)
        _label(panel, "one step", AXES[axis][0], "milliseconds", values)
    panel = next(panels)
    panel.plot([step for step, _ in found.long], [1e3 * s for _, s in found.long], "o-")
    panel.set(title="one step of a long generation", xlabel="step", ylabel="milliseconds")
    panel.set_ylim(bottom=0)
    _rows(next(panels), found.batches)
    for unused in panels:
        unused.axis("off")
    lines = [panel.plot([], [], s, color=c)[0] for s, c in (("o-", "C0"), ("s:", "C1"))]
    labels = ["ReVisiT", "dense, or one row after another"]
    figure.legend(lines, labels, loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(to, dpi=110)


def _whole(panel: Any, cells: Sequence[Cell]) -> None:
    """A generation's own work against V_cons, shape by shape."""
    for number, name in enumerate(dict.fromkeys(cell.shape.name for cell in cells)):
        mine = [cell for cell in cells if cell.shape.name == name]
        places = [cell.candidates for cell in mine]
        color = f"C{number + 2}"
        panel.loglog(places, [c.revisit for c in mine], "o-", color=color, label=name)
        panel.loglog(places, [c.dense for c in mine], "s:", color=color)
        _mark(panel, places[-1], mine[-1].revisit, mine[-1].revisit / mine[-1].dense)
    panel.legend(fontsize=8, loc="upper left")
    _label(panel, "a generation's own work", "tokens in V_cons", "seconds", places)


def _rows(panel: Any, batches: Sequence[Batch]) -> None:
    """A step of several rows, shape by shape."""
    for number, name in enumerate(dict.fromkeys(batch.ragged.name for batch in batches)):
        mine = [batch for batch in batches if batch.ragged.name == name]
        places = [batch.rows for batch in mine]
        color = f"C{number + 2}"
        panel.loglog(places, [1e3 * b.together for b in mine], "o-", color=color, label=name)
        panel.loglog(places, [1e3 * b.alone for b in mine], "s:", color=color)
        _mark(panel, places[-1], 1e3 * mine[-1].together, mine[-1].together / mine[-1].alone)
    panel.legend(fontsize=8, loc="upper left")
    _label(panel, "one step of unlike rows", "rows", "milliseconds", places)


def _mark(panel: Any, x: float, y: float, relative: float) -> None:
    panel.annotate(
        f"{relative:.2f} of it", (x, y), xytext=(4, -10), textcoords="offset points", fontsize=8
    )


def _label(panel: Any, title: str, x: str, y: str, ticks: Sequence[int]) -> None:
    """Titles, and ticks at the sizes that were measured, as plain numbers."""
    panel.set(title=title, xlabel=x, ylabel=y)
    panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=45, fontsize=8)
    panel.minorticks_off()
    panel.margins(x=0.12)
