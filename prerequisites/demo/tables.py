"""The demo's tables: rows of decoders of each family, as `revisit compare` computes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs import Decoder, result_file
from revisit.evaluation.benchmarks.chair import COLUMNS
from revisit.evaluation.results.result import read_result
from revisit.evaluation.results.tables import Row, cells, compare, header

GAPS = ("CHAIRs", "Recall")
"""The metrics whose differences to greedy decoding are shown."""


def metrics(decoder: Decoder, out: Path) -> dict[str, float]:
    """CHAIR's metrics of a decoder's captions, and *twice*, as fractions of 1."""
    values = COLUMNS.measure(read_result(result_file(decoder, out)).counts.sum(0))
    return {name: float(value) for name, value in zip(COLUMNS.metrics, values, strict=True)}


def compared(decoders: Sequence[Decoder], out: Path) -> list[Row]:
    """A row for each decoder; the first is the baseline."""
    found = compare([result_file(each, out) for each in decoders]).rows
    return [row._replace(name=each.name) for each, row in zip(decoders, found, strict=True)]


def table(
    found: Mapping[str, Sequence[Row]],
    columns: Sequence[str],
    gaps: Sequence[str] = GAPS,
    passes: Mapping[str, str] | None = None,
) -> str:
    """The rows of each family, in Markdown; the column `passes` is 1 where ``passes`` has none."""
    lines = []
    for family, some in found.items():
        for row in some:
            cell = dict(zip(header(COLUMNS), cells(row, COLUMNS), strict=True))
            cell["passes"] = (passes or {}).get(row.name, "1")
            differences = [cell[f"{name} - baseline"] for name in gaps]
            lines.append([family, row.name, *(cell[name] for name in columns), *differences])
    return markdown(["model", "decoder", *columns, *(f"{name} - greedy" for name in gaps)], lines)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """The table in Markdown, its columns lined up so that it reads well in a terminal too."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * (w - 1) + (":" if column > 1 else "-") for column, w in enumerate(widths)]
    lines = [
        [
            cell.rjust(width) if column > 1 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in [header, rule, *rows]
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def put_between(page: Path, mark: str, text: str) -> None:
    """Replace what stands between ``<!-- mark -->`` and ``<!-- /mark -->`` in a page."""
    before, begin, rest = page.read_text("utf-8").partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- /{mark} -->\n")
    if not end:
        raise SystemExit(f"{page} lacks the marks <!-- {mark} --> and <!-- /{mark} -->")
    page.write_text(f"{before}{begin}{text}{end}{after}", encoding="utf-8")
