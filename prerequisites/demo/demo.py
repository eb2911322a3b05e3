"""Caption the demo's images by greedy decoding and by ReVisiT, score both, show where they differ.

Every family captions through the script that its users run on COCO, and answers POPE's questions;
both families run at once, each in one process on one thread. Captions are kept in out/: a rerun
captions only what is missing. The setting of ReVisiT stands in settings/, where choose_setting.py
wrote what it chose on other scenes.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import every_decoder
from captions import QUESTION
from html_report import Results, write_page
from jobs import (
    COCO,
    FAMILIES,
    HERE,
    LONGEST,
    ROOT,
    Family,
    caption_job,
    captions_file,
    decoders,
    interval,
    markdown,
    put_between,
    question_job,
    read_json,
    read_lines,
    repeating,
    run_jobs,
    score,
    seconds,
    write_lines,
)
from revisit.evaluation.benchmarks import chair, pope
from revisit.evaluation.pictures.picture import Picture
from revisit.evaluation.store import read_answers
from sheet import draw_sheet, pictures

SHOWN = {"LLaVA-1.5": ("helps",), "Qwen2.5-VL": ("helps", "same", "fails")}
"""The kinds of scenes that the picture shows of each family."""


def pope_entries() -> dict[str, list[dict[str, Any]]]:
    """POPE's sets of questions."""
    names = ("random", "popular", "adversarial")
    return {name: read_lines(COCO / "pope" / f"{name}.jsonl") for name in names}


def distinct(sets: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The questions of all sets, each about each image once."""
    asked = dict.fromkeys((e["image"], e["text"]) for entries in sets.values() for e in entries)
    return [{"question_id": i, "image": im, "text": text} for i, (im, text) in enumerate(asked)]


def pope_scores(
    sets: Mapping[str, list[dict[str, Any]]], answers: Path
) -> tuple[dict[str, dict[str, float]], float]:
    """POPE's metrics of each set, and the part of the questions answered by "Yes" or "No"."""
    said = read_answers(answers, pope.FORM)
    by_question = {(e["image"], e["text"]): said[e["question_id"]] for e in distinct(sets)}
    scores = {}
    for name, entries in sets.items():
        found = {e["question_id"]: by_question[e["image"], e["text"]] for e in entries}
        write_lines(
            answers.with_name(f"{answers.stem}-{name}.jsonl"),
            [{"question_id": number, "answer": text} for number, text in found.items()],
        )
        labels = pope.read_labels(COCO / "pope" / f"{name}.jsonl")
        scores[name] = pope.score(labels, found)
    form = [text in ("Yes", "No") for text in said.values()]
    return scores, sum(form) / len(form)


HEADER = [
    *("model", "decoder", *chair.METRICS, "twice", "seconds"),
    *("CHAIRs - greedy", "Recall - greedy"),
]
SHORT = [HEADER.index(name) for name in ("model", "decoder", "CHAIRs", "Recall")]
POPE_HEADER = ["model", "decoder", "random", "popular", "adversarial", "Yes or No"]


def row(
    family: str, decoder: str, scored: chair.Score, took: float, greedy: chair.Score | None
) -> list[str]:
    """A line of the table; with the greedy score also the differences to it."""
    values = chair.metrics(scored.counts.sum(0))
    shown = [f"{100 * value:.1f}" for value in (*values.values(), repeating(scored))]
    cells = [family, decoder, *shown, f"{took:.0f}"]
    if greedy is None:
        return [*cells, "", ""]
    gap = chair.paired_bootstrap(greedy.counts, scored.counts)
    return [*cells, *(interval(gap[metric]) for metric in ("CHAIRs", "Recall"))]


def pope_row(
    family: str, decoder: str, scores: Mapping[str, Mapping[str, float]], form: float
) -> list[str]:
    """A line of POPE's table: accuracy, F1 and the part of yes in each set."""
    cells = [
        " / ".join(f"{100 * values[metric]:.1f}" for metric in ("Accuracy", "F1", "Yes"))
        for values in scores.values()
    ]
    return [family, decoder, *cells, f"{100 * form:.1f}"]


def report(rows: list[list[str]], images: int) -> str:
    """The table of captions, and what its numbers are."""
    chosen = [(family.name, read_json(family.setting)) for family in FAMILIES]
    choices = "; ".join(f"{name} on {entry['images']} scenes" for name, entry in chosen)
    rules = " / ".join(dict.fromkeys(entry["rule"] for _, entry in chosen))
    return (
        f"{markdown(HEADER, rows)}\n\n"
        f"{images} held-out drawn scenes in `prerequisites/demo/coco`, two tiny models of 1.6 and "
        "1.3 million parameters, trained for this demo; `revisit score chair --lemmatizer noun`. "
        "Percent, Len in words; *twice*: captions that name an object twice; seconds on one thread "
        "each. Differences to greedy decoding with their 95% paired bootstrap interval over "
        f"images. The chosen setting was chosen on other scenes ({choices}): {rules}. *Published* "
        "is the default of the published code.\n"
    )


def short_report(rows: list[list[str]], images: int) -> str:
    """The README's table: greedy decoding and the published setting, two metrics."""
    shown = [[line[at] for at in SHORT] for line in rows if "(chosen)" not in line[1]]
    return (
        f"{markdown([HEADER[at] for at in SHORT], shown)}\n\n"
        f"{images} held-out drawn scenes, two tiny models trained for this demo; `revisit score "
        "chair --lemmatizer noun`, in percent. CHAIRs: captions that name an object that is not "
        "there. Recall: objects that are named. *Published*: the default of the published code. "
        "[docs/demo.md](docs/demo.md) has intervals, and a setting chosen on other scenes.\n"
    )


def pope_report(rows: list[list[str]]) -> str:
    """POPE's table, and what its numbers are."""
    return (
        f"{markdown(POPE_HEADER, rows)}\n\n"
        "POPE on the same scenes (`prerequisites/demo/coco/pope`): accuracy / F1 / answers of yes "
        "in percent; *Yes or No*: answers in that form. Half of the questions are to be affirmed: "
        "50% is chance.\n"
    )


def _file_names() -> dict[int, str]:
    images = read_json(COCO / "annotations" / "instances_val2014.json")["images"]
    return {image["id"]: image["file_name"] for image in images}


def describe_entries(count: int) -> list[dict[str, Any]]:
    """The question for a caption, of the first ``count`` images by id."""
    names = sorted(_file_names().items())[:count]
    return [{"question_id": i, "image": name, "text": QUESTION} for i, name in names]


def family_jobs(family: Family, out: Path, images: int) -> list[dict[str, Any]]:
    """Captions by every decoder; POPE by greedy and the chosen one; the trace of the published."""
    ways = decoders(family)
    asked = distinct(pope_entries())
    return [
        *(caption_job(family, way, COCO, out, images) for way in ways),
        *(question_job(family, way, asked, out / f"pope-{way.slug}.jsonl", 4) for way in ways[:2]),
        question_job(
            family,
            ways[2],
            describe_entries(images),
            out / "trace.jsonl",
            LONGEST,
            revisit_trace=True,
        ),
    ]


def family_results(
    family: Family, out: Path
) -> tuple[list[list[str]], list[list[str]], list[Picture]]:
    """What the jobs of a family gave: its rows of both tables, its scenes of the picture."""
    ways = decoders(family)
    files = [captions_file(way, out) for way in ways]
    scores = [score(file, COCO) for file in files]
    rows = [
        row(family.name, way.name, scored, seconds(file), scores[0] if number else None)
        for number, (way, scored, file) in enumerate(zip(ways, scores, files, strict=True))
    ]
    pope_rows = [
        pope_row(
            family.name, way.name, *pope_scores(pope_entries(), out / f"pope-{way.slug}.jsonl")
        )
        for way in ways[:2]
    ]
    traces = {entry["question_id"]: entry for entry in read_lines(out / "trace.jsonl")}
    shown = pictures(
        family.name,
        SHOWN[family.name],
        (scores[0], scores[2]),
        COCO / "val2014",
        _file_names(),
        traces,
    )
    return rows, pope_rows, shown


def told(family: Family, out: Path) -> Results:
    """What the page is told of a family."""
    ways = decoders(family)
    captions = [(way.name, captions_file(way, out)) for way in ways]
    return Results(family.name, family.setting, captions)


def renew_docs(text: str, asked: str, short: str, picture: Path) -> None:
    """Write both tables and the picture to docs/, and a short table into the README."""
    docs = ROOT / "docs"
    docs.mkdir(exist_ok=True)
    parts = ("# The demo", "Written by `nox -s demo -- --docs`.", text, asked)
    page = "\n\n".join(part.rstrip() for part in parts) + "\n\n![Captions](demo.png)\n"
    (docs / "demo.md").write_text(page, encoding="utf-8")
    shutil.copy(picture, docs / "demo.png")
    put_between(ROOT / "README.md", "demo", short)


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


def compare(out: Path, images: int, docs: bool) -> None:
    """Caption by greedy decoding and ReVisiT, ask POPE's questions, draw the picture."""
    folders = {family: out / family.environment for family in FAMILIES}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    jobs = {family: family_jobs(family, own, images) for family, own in folders.items()}
    run_jobs(jobs, out)
    found = [family_results(family, folder) for family, folder in folders.items()]
    rows = [line for lines, _, _ in found for line in lines]
    pope_rows = [line for _, lines, _ in found for line in lines]
    picture = out / "demo.png"
    draw_sheet([each for _, _, shown in found for each in shown], picture)
    page = out / "demo.html"
    write_page([told(*each) for each in folders.items()], COCO / "annotations", page)
    text, asked = report(rows, images), pope_report(pope_rows)
    (out / "demo.md").write_text(f"{text}\n{asked}", encoding="utf-8")
    print(f"\n{text}\n{asked}\n{picture}\n{page}")
    if docs:
        renew_docs(text, asked, short_report(rows, images), picture)


if __name__ == "__main__":
    main()
