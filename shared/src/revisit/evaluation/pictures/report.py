"""A report of evaluations as one HTML file: results, the images that changed most, plots."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from revisit.evaluation import EvaluationError
from revisit.evaluation.chair import METRICS, metrics, paired_bootstrap
from revisit.evaluation.pictures.changes import changes
from revisit.evaluation.pictures.marks import MEANINGS
from revisit.evaluation.pictures.plots import Axes, Point, check_matplotlib, plot
from revisit.evaluation.pictures.runs import Run, check_same_images, read_run, times
from revisit.evaluation.pictures.style import document

_BARS = "with the intervals of the differences to run 1"

Gaps = Mapping[str, Mapping[str, float]]
"""What `chair.paired_bootstrap` tells of a run and its baseline."""


class Table(NamedTuple):
    """A table of a report beside its own; the cells are text."""

    title: str
    note: str
    rows: Sequence[Sequence[str]]  # the first is the head


class Group(NamedTuple):
    """Runs on the same images: the first is the baseline that the others are compared with."""

    title: str
    runs: Sequence[Run]
    plots: Sequence[tuple[Sequence[Point], Axes]] = ()
    """Others than those of the runs."""


def compare_report(path: Path, results: Sequence[Path], names: Sequence[str]) -> None:
    """Write the report of files of `revisit-chair --save_path`, the baseline first.

    Raises:
        EvaluationError: a file that `revisit-chair` did not write, captions of other images, no
            matplotlib, or `path` is no .html, is one of the results, or cannot be written.
    """
    if path.suffix.lower() != ".html":
        raise EvaluationError(f"--report {path}: its name must end in .html")
    if path.resolve() in [each.resolve() for each in results]:
        raise EvaluationError(f"--report {path} would overwrite a result")
    runs = [read_run(file, name) for file, name in zip(results, names, strict=True)]
    check_same_images(runs)
    write_report([Group("Results", runs)], path)


def write_report(
    groups: Sequence[Group],
    path: Path,
    title: str = "What decoding changes",
    tables: Sequence[Table] = (),
) -> None:
    """Write the page; raises `EvaluationError` where that cannot be done."""
    made = report(groups, title, tables)
    try:
        path.write_text(made, "utf-8")
    except OSError as error:
        raise EvaluationError(f"cannot write {path}: {error.strerror}") from error


def report(
    groups: Sequence[Group], title: str = "What decoding changes", tables: Sequence[Table] = ()
) -> str:
    """The page, which needs nothing else.

    Args:
        groups: each of at least one run; the runs of a group on the same images.
        tables: stand at the end.

    Raises:
        EvaluationError: matplotlib, which draws the plots, is not installed.
    """
    check_matplotlib("a report of evaluations")
    body = "\n".join(_group(each, f"g{number}") for number, each in enumerate(groups))
    last = "\n".join(_other(each, f"t{number}") for number, each in enumerate(tables))
    return document(title, f"{_legend()}\n{body}\n{last}", _STYLE)


def _legend() -> str:
    words = ", ".join(
        f'<span class="{kind}">{escape(meaning)}</span>' for kind, meaning in MEANINGS.items()
    )
    return (
        f'<p class="quiet">In the captions, words that name an object are marked: {words}. '
        "CHAIRs: captions that name an object that is not there. CHAIRi: such words, of all object "
        "words. Recall: objects of the images that are named. F1: the harmonic mean of 1 - CHAIRi "
        "and Recall. Len: words. Twice: captions that name an object twice. All but Len in "
        "percent; in brackets 95% paired bootstrap intervals over images.</p>"
    )


def _group(group: Group, key: str) -> str:
    baseline, *others = group.runs
    gaps = [paired_bootstrap(baseline.counts, each.counts) for each in others]
    parts = [
        f'<section aria-labelledby="{key}-title">',
        f'<h2 id="{key}-title">{escape(group.title)}</h2>',
        _conditions(group.runs),
        _results(group.runs, gaps, key),
        f'<h3>Plots</h3><div class="plots">{_plots(group, gaps, key)}</div>',
        "</section>",
        *(
            changes(baseline, each, number, f"{key}-r{number}", group.title)
            for number, each in enumerate(others, 2)
        ),
    ]
    return "\n".join(parts)


def _conditions(runs: Sequence[Run]) -> str:
    settings = runs[0].record.get("settings", {})
    told = [f"{len(runs[0].counts)} images"]
    if "question" in settings:
        told.append(f"asked: “{settings['question']}”")
    if "max_new_tokens" in settings:
        told.append(f"at most {settings['max_new_tokens']} tokens")
    return f'<p class="quiet">{escape("; ".join(told))}. Run 1 is what the others are held to.</p>'


def _results(runs: Sequence[Run], gaps: Sequence[Gaps], key: str) -> str:
    heads = ("run", "", *METRICS, "Twice")
    rows = []
    for number, run in enumerate(runs):
        values = metrics(run.counts.sum(0))
        cells = [
            f"<td>{100 * values[name]:.1f}{_gap(gaps[number - 1][name] if number else None)}</td>"
            for name in METRICS
        ]
        cells.append(f"<td>{100 * _twice(run):.1f}</td>")
        named = f'<td>{number + 1}</td><th scope="row">{escape(run.name)}</th>'
        rows.append(f"<tr>{named}{''.join(cells)}</tr>")
    return _scrolled(heads, rows, f"Results {key}")


def _gap(gap: Mapping[str, float] | None) -> str:
    if gap is None:
        return ""
    difference, low, high = (100 * gap[name] for name in ("difference", "low", "high"))
    return f'<br><span class="gap">{difference:+.1f} [{low:+.1f}, {high:+.1f}]</span>'


def _twice(run: Run) -> float:
    twice = [len(set(each["node_words"])) < len(each["node_words"]) for each in run.sentences]
    return sum(twice) / len(twice)


def _scrolled(heads: Sequence[str], rows: Sequence[str], label: str) -> str:
    head = "".join(
        f'<th scope="col">{escape(each)}</th>' if each else "<td></td>" for each in heads
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _plots(group: Group, gaps: Sequence[Gaps], key: str) -> str:
    baseline = ("run 1", 100 * metrics(group.runs[0].counts.sum(0))["CHAIRs"])
    alphas = _against_alpha(group.runs, gaps)
    title = "CHAIRs against alpha"
    parts = (
        [
            plot(
                alphas,
                Axes(f"{title}, {_BARS}", "alpha", "CHAIRs, %", True, baseline),
                f"{key}-alpha",
            )
        ]
        if alphas
        else ["<p>No run is of ReVisiT: there is no alpha to draw CHAIR against.</p>"]
    )
    parts += [plot(*each, f"{key}-more{number}") for number, each in enumerate(group.plots)]
    costs = _against_cost(group.runs, gaps)
    if isinstance(costs, str):
        return "\n".join([*parts, f"<p>{escape(costs)}</p>"])
    return "\n".join([*parts, plot(*costs, f"{key}-cost")])


def _against_alpha(runs: Sequence[Run], gaps: Sequence[Gaps]) -> list[Point]:
    """Of the runs that are ReVisiT's; a series for each choice of layers and divergence."""
    points = []
    for number, run in enumerate(runs):
        settings = run.record.get("settings", {})
        if not settings.get("use_revisit"):
            continue
        named = f"{settings['early_exit_layers']}, {settings.get('revisit_divergence', 'ag')}"
        points.append(_point(runs, gaps, number, "CHAIRs", named, settings["relative_top"]))
    return points


def _against_cost(runs: Sequence[Run], gaps: Sequence[Gaps]) -> tuple[list[Point], Axes] | str:
    """F1 against the times of the runs; or why they cannot be told."""
    told = times(runs)
    if isinstance(told, str):
        return f"Quality against cost is not drawn: {told}."
    points = [
        _point(runs, gaps, number, "F1", "runs", time) for number, time in enumerate(told.relative)
    ]
    return points, Axes(
        f"F1 against the time that the records tell, {_BARS}",
        f"time of {told.of}, run 1 = 1",
        "F1, %",
        joined=False,
    )


def _point(
    runs: Sequence[Run], gaps: Sequence[Gaps], number: int, metric: str, series: str, x: float
) -> Point:
    """The bar is the interval of the difference to the baseline, which itself has none."""
    value = 100 * metrics(runs[number].counts.sum(0))[metric]
    if not number:
        return Point("1", series, x, value, value, value)
    base = 100 * metrics(runs[0].counts.sum(0))[metric]
    low, high = (base + 100 * gaps[number - 1][metric][end] for end in ("low", "high"))
    return Point(str(number + 1), series, x, value, low, high)


def _other(table: Table, key: str) -> str:
    heads, *rows = table.rows
    lines = [
        f'<tr><th scope="row">{escape(row[0])}</th>'
        f"{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    ]
    scrolled = _scrolled(heads, lines, f"Table: {table.title}")
    return (
        f'<section aria-labelledby="{key}-title"><h2 id="{key}-title">{escape(table.title)}</h2>'
        f'<p class="quiet">{escape(table.note)}</p>{scrolled}</section>'
    )


_STYLE = """
h3 { font-size:1rem; margin:1rem 0 .5rem; }
h4 { font-size:.95rem; margin:0; }
h5 { font-size:.85rem; font-weight:600; margin:.5rem 0 0; color:var(--quiet); }
.scroll { overflow-x:auto; }
table { border-collapse:collapse; font-size:.95rem; }
th, td { text-align:right; padding:.3rem .6rem; border-bottom:1px solid var(--line);
  vertical-align:top; white-space:nowrap; }
th[scope=row] { text-align:left; font-weight:600; white-space:normal; min-width:12rem; }
thead th:first-child { text-align:left; }
.plot th[scope=row] { min-width:0; }
@media (max-width:42rem) { th[scope=row] { min-width:8rem; } }
.gap { color:var(--quiet); font-size:.85rem; }
.plots { display:flex; flex-wrap:wrap; gap:1rem; }
.plot { flex:1 1 22rem; max-width:30rem; min-width:0; margin:0; }
figcaption { font-size:.9rem; color:var(--quiet); }
summary { cursor:pointer; padding:.5rem 0; }
.card { display:flex; flex-wrap:wrap; gap:1rem; padding:.75rem 0;
  border-top:1px solid var(--line); }
.thumbnail { flex:0 1 12rem; width:12rem; max-width:100%; align-self:flex-start;
  border-radius:.25rem; margin:0; }
.said { flex:1 1 16rem; min-width:0; overflow-wrap:anywhere; }
.said .quiet { margin:0; }
.caption { margin:.1rem 0 0; font-size:1.05rem; }
.right { color:var(--right); }
.wrong, .again { font-weight:600; text-decoration:underline; text-decoration-thickness:2px;
  text-underline-offset:.2em; }
.wrong { color:var(--wrong); text-decoration-style:double; }
.again { color:var(--again); text-decoration-style:dotted; }
.hidden { position:absolute; width:1px; height:1px; overflow:hidden; clip-path:inset(50%);
  white-space:nowrap; }
"""
