"""`revisit compare`: one table of several results."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from revisit.commands import CommandError, check_folder

if TYPE_CHECKING:
    from revisit.evaluation.results.result import Result


def compare(
    *results: Annotated[
        Path,
        Parameter(
            help="files of `revisit score --save_path`, or folders of `revisit eval`; the first is "
            "the baseline"
        ),
    ],
    format: Annotated[
        Literal["markdown", "csv", "json", "latex"] | None,
        Parameter(help="of the table (default: drawn on a terminal, else Markdown)"),
    ] = None,
    plot: Annotated[
        Path | None, Parameter(help="a PNG: quality against cost (needs matplotlib)")
    ] = None,
    paper: Annotated[
        bool,
        Parameter(
            help="print the paper's figures beside each result: within the 95% interval of its "
            "sample, outside it, or not the same setting, and which"
        ),
    ] = False,
    report: Annotated[
        Path | None,
        Parameter(help="an HTML page: the table, the images that changed most, and plots"),
    ] = None,
) -> None:
    """One table of results: decoders, settings, models.

    The columns: the metrics in percent; seconds a token over the baseline's and peak memory, where
    both were measured in the same conditions; differences to the baseline and their 95% intervals
    (paired bootstrap over images, or questions). Results that differ by their seed alone are one
    row: mean and standard deviation. All results need the same sample of images, length of captions
    and scorer, which move the figures more than a decoder does.
    """
    from revisit.evaluation.pictures.plots import check_matplotlib
    from revisit.evaluation.pictures.report import compare_report
    from revisit.evaluation.pictures.tradeoff import write_tradeoff
    from revisit.evaluation.results import tables

    if not results:
        raise CommandError("name a result, or several")
    if paper and format is not None and format != "markdown":
        raise CommandError(f"--paper is a second table, which --format {format} has no place for")
    files = [result_in(path) for path in results]
    for flag, path in (("--plot", plot), ("--report", report)):
        if path is not None:
            if path.resolve() in [file.resolve() for file in files]:
                raise CommandError(f"{flag} {path} would overwrite a result")
            check_folder(flag, path)
    if report is not None and report.suffix.lower() != ".html":
        raise CommandError(f"--report {report}: its name must end in .html")
    if plot is not None:
        check_matplotlib("--plot")
    found = tables.compare(files)
    grid = tables.grid(found.rows, found.columns)
    numbers = tables.as_csv(found.rows, found.columns)
    notes = tables.notes(found.rows)
    if format == "csv":
        print(numbers, end="")
    elif format == "json":
        print(json.dumps(list(map(_with_numbers, csv.DictReader(io.StringIO(numbers)))), indent=1))
    elif format == "latex":
        print(tables.latex(grid))
    else:
        tables.show(found.title, grid, drawn=format is None and sys.stdout.isatty())
        if notes:
            print(f"\n{notes}")
    if paper:
        _show_paper(found.results)
    if notes and format in ("csv", "json", "latex"):
        print(notes, file=sys.stderr)
    if plot is not None:
        write_tradeoff(found.rows, found.columns, plot)
    if report is not None:
        compare_report(report, files, [each.name for each in found.results])


def _show_paper(results: "Sequence[Result]") -> None:
    """Print the paper's figures beside the results."""
    from revisit.evaluation.results.paper import paper_figures
    from revisit.evaluation.results.tables import show

    header = ["", "the paper's table", "read in", "metric", "paper", "here", "95%", "verdict"]
    rows = [
        [
            figure.name,
            figure.table,
            figure.source,
            figure.metric,
            f"{figure.published:.2f}",
            f"{figure.value:.2f}",
            "[{:.2f}, {:.2f}]".format(*figure.interval),
            figure.verdict,
        ]
        for figure in paper_figures(results)
    ]
    print()
    if rows:
        show("The paper's figures, percent", [header, *rows])
    else:
        print("The paper has no figure of this benchmark and these decoders.")


def result_in(path: Path) -> Path:
    """The file of a result, from its path or from the folder of a run.

    Raises `CommandError` where a folder has none, or several, and for captions or answers.
    """
    from revisit.evaluation.benchmarks.registry import BENCHMARKS

    remedy = "`revisit score` scores captions and answers (--save_path)"
    if path.suffix == ".jsonl":
        raise CommandError(f"{path} holds captions or answers, and no result: {remedy}")
    if not path.is_dir():
        return path
    here = [each for each in sorted(path.glob("*.json")) if not each.name.endswith(".run.json")]
    found = [each for each in here if each.stem in BENCHMARKS] or sorted(path.glob("*/pope.json"))
    found = found or here
    if len(found) == 1:
        return found[0]
    if found:
        raise CommandError(f"{path} has several results, name one: {', '.join(map(str, found))}")
    raise CommandError(f"{path} has no result: {remedy}")


def _with_numbers(row: dict[str, str]) -> dict[str, str | float | None]:
    """A row of the CSV, its cells read as numbers."""
    numbers = {name: float(text) if text else None for name, text in row.items() if name}
    return {"name": row[""], **numbers}
