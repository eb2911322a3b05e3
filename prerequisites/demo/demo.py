"""Caption the demo's images by greedy decoding and by ReVisiT, score both, show where they differ.

Every family captions through the script that its users run on COCO. Results are kept in out/: a
rerun does only what is missing. The chosen setting of ReVisiT is in settings/; choose_setting.py
chose it on other scenes.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import every_decoder
from html_report import write_page
from jobs import (
    COCO,
    FAMILIES,
    GREEDY,
    HERE,
    ROOT,
    Family,
    caption_job,
    decoders,
    folders,
    pope_job,
    published_decoder,
    read_json,
    run_jobs,
    trace_job,
)
from revisit.evaluation.benchmarks.chair import COLUMNS
from revisit.evaluation.pictures.figure import write_figure
from revisit.evaluation.results.tables import Row
from sheet import NOTE, pictures
from tables import compared, markdown, put_between, table

SHOWN = {"LLaVA-1.5": ("helps",), "Qwen2.5-VL": ("helps", "same", "fails")}
"""The kinds of scenes that the picture shows of each family."""
SPLITS = ("random", "popular", "adversarial")


def short_report(found: Mapping[str, Sequence[Row]], images: int) -> str:
    """The README's table: greedy decoding and the published default."""
    rows = {name: [greedy, published] for name, (greedy, _, published) in found.items()}
    return (
        f"{table(rows, ['CHAIRs', 'Recall'], [])}\n\n"
        f"CHAIRs: captions that name an object that is not there; Recall: objects that are named; "
        f"percent, of {images} held-out drawn scenes.\n"
    )


def wide_report(found: Mapping[str, Sequence[Row]], images: int) -> str:
    """The table of captions, and what its numbers are."""
    chosen = [(family.name, read_json(family.setting)) for family in FAMILIES]
    choices = "; ".join(f"{name} on {entry['images']} scenes" for name, entry in chosen)
    rules = " / ".join(dict.fromkeys(entry["rule"] for _, entry in chosen))
    return (
        f"{table(found, COLUMNS.metrics)}\n\n"
        f"{images} held-out drawn scenes in `prerequisites/demo/coco`, two tiny models of 1.6 and "
        "1.3 million parameters, trained for this demo; `revisit score chair --lemmatizer noun`. "
        "Percent, Len in words; *twice*: captions that name an object twice. Differences to greedy "
        "decoding with their 95% paired bootstrap interval over images. The chosen setting was "
        f"chosen on other scenes ({choices}): {rules}. *Published* is the default of the published "
        "code.\n"
    )


def pope_report(out: Mapping[Family, Path]) -> str:
    """POPE's table: accuracy, F1 and the share of yes in each set."""
    lines = []
    for family, folder in out.items():
        for way in (GREEDY, published_decoder(family)):
            cells = []
            for split in SPLITS:
                result = read_json(folder / f"pope-{way.slug}" / split / "pope.json")
                values = [result["overall_metrics"][each] for each in ("Accuracy", "F1", "Yes")]
                cells.append(" / ".join(f"{100 * value:.1f}" for value in values))
            lines.append([family.name, way.name, *cells])
    return (
        f"{markdown(['model', 'decoder', *SPLITS], lines)}\n\n"
        "POPE on the same scenes (`prerequisites/demo/coco/pope`): accuracy / F1 / answers of yes "
        "in percent. Yes is right for half of the questions: 50% is chance.\n"
    )


def family_jobs(family: Family, out: Path, images: int, docs: bool) -> list[dict[str, Any]]:
    """Captions by every decoder; the picture's trace; for the docs POPE by two of the decoders."""
    published = published_decoder(family)
    return [
        *(caption_job(family, way, COCO, out, images) for way in decoders(family)),
        trace_job(family, published, out / "trace.jsonl", images),
        *(pope_job(family, way, out) for way in (GREEDY, published) if docs),
    ]


def compare(out: Path, images: int, docs: bool) -> None:
    """Caption by greedy decoding and ReVisiT, draw the picture; for the docs ask POPE's questions
    too."""
    found = folders(out)
    run_jobs({family: family_jobs(family, at, images, docs) for family, at in found.items()}, out)
    rows = {family.name: compared(decoders(family), folder) for family, folder in found.items()}
    picture, page, text = out / "demo.png", out / "demo.html", wide_report(rows, images)
    scenes = [pictures(family, SHOWN[family.name], folder) for family, folder in found.items()]
    write_figure([scene for some in scenes for scene in some], picture, NOTE)
    write_page(found, page)
    (out / "demo.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\n{picture}\n{page}")
    if docs:
        parts = ("# The demo", "Written by `nox -s demo -- --docs`.", text, pope_report(found))
        written = "\n\n".join(part.rstrip() for part in parts) + "\n\n![Captions](demo.png)\n"
        (ROOT / "docs" / "demo.md").write_text(written, encoding="utf-8")
        shutil.copy(picture, ROOT / "docs" / "demo.png")
        put_between(ROOT / "README.md", "demo", short_report(rows, images))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "out", help="where results are kept")
    there = len(list((COCO / "val2014").iterdir()))
    parser.add_argument("--images", type=int, default=there, help="how many (default: all)")
    parser.add_argument(
        "--decoder",
        choices=["all"],
        help="caption by every decoder and by ReVisiT's other settings, and print two tables of "
        "that instead",
    )
    parser.add_argument(
        "--docs",
        action="store_true",
        help="renew docs/demo.md, docs/demo.png and the README; with --decoder all "
        "docs/decoders.md",
    )
    args = parser.parse_args()
    if args.decoder == "all":
        every_decoder.run(args.out / "every", args.images, args.docs)
    else:
        compare(args.out, args.images, args.docs)


if __name__ == "__main__":
    main()
