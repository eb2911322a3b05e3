"""Caption the demo's images by greedy decoding and by ReVisiT, score both, show where they differ.

Every family captions through the script that its users run on COCO, and answers POPE's questions;
both families run at once, each in one process on one thread. Captions are kept in out/: a rerun
captions only what is missing. The setting of ReVisiT stands in settings/, where choose_setting.py
wrote what it chose on other scenes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captions import QUESTION
from html_report import Results, write_page
from revisit.evaluation import chair, pope
from revisit.evaluation.lemmas import LEMMATIZERS
from sheet import Example, draw_sheet

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COCO = HERE / "coco"
PUBLISHED_ALPHA = 1e-5
LONGEST = 48
"""Tokens of a caption, at most."""
TRACED, SHOWN = 40, 2
"""Images that the picture's are taken from, and how many of them it shows of each family."""


@dataclass(frozen=True)
class Family:
    """A model family: the environment that runs it, its evaluation script, its tiny checkpoint."""

    name: str
    environment: str
    script: Path
    program: Path
    checkpoint: Path
    published_layers: str
    batch_size: int

    @property
    def setting(self) -> Path:
        """Where the chosen setting of ReVisiT stands."""
        return HERE / "settings" / f"{self.environment}.json"

    @property
    def python(self) -> str:
        """The Python of the family's nox environment; where there is none, the running one."""
        made = ROOT / ".nox" / self.environment / "bin" / "python"
        return str(made) if made.exists() else sys.executable


FAMILIES = (
    Family(
        name="LLaVA-1.5",
        environment="llava",
        script=ROOT / "LLaVA1.5" / "eval" / "chair_eval_llava.py",
        program=HERE / "ask_llava.py",
        checkpoint=HERE / "llava-tiny",
        published_layers="last",
        batch_size=50,
    ),
    Family(
        name="Qwen2.5-VL",
        environment="qwen",
        script=ROOT / "Qwen2.5-VL" / "eval" / "chair_eval_qwenvl.py",
        program=HERE / "ask_qwen.py",
        checkpoint=HERE / "qwen-tiny",
        published_layers="all",
        batch_size=20,  # its vision tower attends over all images of a batch at once
    ),
)


@dataclass(frozen=True)
class Decoder:
    """A way to decode: its name in the table, its file name, arguments of the fork's `generate`."""

    name: str
    slug: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def flags(self) -> list[str]:
        """The settings as flags of an evaluation script."""
        return [word for name, value in self.settings.items() for word in (f"--{name}", str(value))]


GREEDY = Decoder("greedy", "greedy")


def revisit_decoder(layers: str, alpha: float, note: str = "") -> Decoder:
    """ReVisiT with these layers and this alpha."""
    settings = {"use_revisit": True, "early_exit_layers": layers, "relative_top": alpha}
    return Decoder(
        f"ReVisiT {layers}, alpha {alpha:g}{note}", f"revisit-{layers}-{alpha:g}", settings
    )


def decoders(family: Family) -> list[Decoder]:
    """Greedy, ReVisiT at the chosen setting, and at the published default."""
    chosen = _read(family.setting)
    return [
        GREEDY,
        revisit_decoder(chosen["layers"], chosen["alpha"], " (chosen)"),
        revisit_decoder(family.published_layers, PUBLISHED_ALPHA, " (published)"),
    ]


def captions_file(decoder: Decoder, out: Path) -> Path:
    """Where a decoder's captions are."""
    return out / f"{decoder.slug}.jsonl"


def caption_job(
    family: Family, decoder: Decoder, coco: Path, out: Path, images: int
) -> dict[str, Any]:
    """A job of ``asking.py``: run the family's evaluation script. Captions there are kept."""
    arguments = [
        *("--model_path", str(family.checkpoint)),
        *("--data_path", str(coco / "val2014"), "--anno_path", str(coco / "annotations")),
        *("--output_path", str(captions_file(decoder, out))),
        *("--seed", "0", "--num_eval_samples", str(images), "--max_new_tokens", str(LONGEST)),
        *("--batch_size", str(family.batch_size), "--dtype", "float32", "--device", "cpu"),
        *decoder.flags,
    ]
    return {"script": str(family.script), "arguments": arguments}


def question_job(
    family: Family,
    decoder: Decoder,
    entries: list[dict[str, Any]],
    out: Path,
    longest: int,
    **more: Any,
) -> dict[str, Any]:
    """A job of ``asking.py``: answer ``entries`` into ``out``, at most ``longest`` tokens each."""
    questions = out.with_suffix(".questions.jsonl")
    _write_lines(questions, entries)
    settings = {"max_new_tokens": longest, "do_sample": False, **decoder.settings, **more}
    return {
        "questions": str(questions),
        "images": str(COCO / "val2014"),
        "out": str(out),
        "batch_size": family.batch_size,
        "decoding": settings,
    }


def run_jobs(jobs: Mapping[Family, Sequence[dict[str, Any]]], out: Path) -> None:
    """Do each family's jobs in a process of its own, all families at once, one thread each."""
    calm = os.environ | {"OMP_NUM_THREADS": "1"}
    running = []
    for family, own in jobs.items():
        folder = out / family.environment
        (folder / "jobs.json").write_text(json.dumps(own), encoding="utf-8")
        command = [
            family.python,
            *map(str, (family.program, family.checkpoint, folder / "jobs.json")),
        ]
        with (folder / "log.txt").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(command, env=calm, stdout=log, stderr=subprocess.STDOUT)
        print(f"{family.name}: {len(own)} jobs, {folder / 'log.txt'}", flush=True)
        running.append((process, family, folder))
    failed = [(family, folder) for process, family, folder in running if process.wait()]
    for family, folder in failed:
        log_text = (folder / "log.txt").read_text("utf-8")
        print(f"{family.name} failed:\n{log_text[-2000:]}", file=sys.stderr)
    if failed:
        raise SystemExit(f"the same again continues; remove {out} to begin anew")


def seconds(captions: Path) -> float:
    """How long the captions took, from their run record; a rerun adds to it."""
    record = _read(captions.with_name(captions.name + ".run.json"))
    return float(sum(run["seconds"] for run in record["runs"]))


def score(captions: Path, coco: Path) -> chair.Score:
    """CHAIR of a captions file, every word read as a noun; images in the order of their ids."""
    lemmatize = LEMMATIZERS["noun"]()
    objects = chair.ground_truth(coco / "annotations", lemmatize)
    return chair.score(dict(sorted(chair.read_captions(captions).items())), objects, lemmatize)


def repeating(scored: chair.Score) -> float:
    """The part of the captions that name an object twice."""
    twice = [len(set(each["node_words"])) < len(each["node_words"]) for each in scored.sentences]
    return sum(twice) / len(twice)


def pope_entries() -> dict[str, list[dict[str, Any]]]:
    """POPE's sets of questions."""
    names = ("random", "popular", "adversarial")
    return {name: _read_lines(COCO / "pope" / f"{name}.jsonl") for name in names}


def distinct(sets: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The questions of all sets, each about each image once."""
    asked = dict.fromkeys((e["image"], e["text"]) for entries in sets.values() for e in entries)
    return [{"question_id": i, "image": im, "text": text} for i, (im, text) in enumerate(asked)]


def pope_scores(
    sets: Mapping[str, list[dict[str, Any]]], answers: Path
) -> tuple[dict[str, dict[str, float]], float]:
    """POPE's metrics of each set, and the part of the questions answered by "Yes" or "No"."""
    said = pope.read_answers(answers)
    by_question = {(e["image"], e["text"]): said[e["question_id"]] for e in distinct(sets)}
    scores = {}
    for name, entries in sets.items():
        found = {e["question_id"]: by_question[e["image"], e["text"]] for e in entries}
        _write_lines(
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
    return [*cells, *(_interval(gap[metric]) for metric in ("CHAIRs", "Recall"))]


def _interval(gap: Mapping[str, float]) -> str:
    difference, low, high = (100 * gap[name] for name in ("difference", "low", "high"))
    return f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]"


def pope_row(
    family: str, decoder: str, scores: Mapping[str, Mapping[str, float]], form: float
) -> list[str]:
    """A line of POPE's table: accuracy, F1 and the part of yes in each set."""
    cells = [
        " / ".join(f"{100 * values[metric]:.1f}" for metric in ("Accuracy", "F1", "Yes"))
        for values in scores.values()
    ]
    return [family, decoder, *cells, f"{100 * form:.1f}"]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """The table in Markdown, its columns lined up so that it reads well in a terminal too."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * (w - 1) + (":" if column > 1 else "-") for column, w in enumerate(widths)]
    lines = [header, rule, *rows]
    return "\n".join(
        "| "
        + " | ".join(
            cell.rjust(width) if column > 1 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    )


def report(rows: list[list[str]], images: int) -> str:
    """The table of captions, and what its numbers are."""
    chosen = [(family.name, _read(family.setting)) for family in FAMILIES]
    choices = "; ".join(f"{name} on {entry['images']} scenes" for name, entry in chosen)
    rules = " / ".join(dict.fromkeys(entry["rule"] for _, entry in chosen))
    return (
        f"{markdown(HEADER, rows)}\n\n"
        f"{images} held-out drawn scenes in `prerequisites/demo/coco`, two tiny models of 1.6 and "
        "1.3 million parameters, trained for this demo; `revisit-chair --lemmatizer noun`. "
        "Percent, Len in words; *twice*: captions that name an object twice; seconds on one thread "
        "each. Differences to greedy decoding with their 95% paired bootstrap interval over "
        f"images. The chosen setting was chosen on other scenes ({choices}): {rules}. *Published* "
        "is the default of the published code.\n"
    )


def pope_report(rows: list[list[str]]) -> str:
    """POPE's table, and what its numbers are."""
    return (
        f"{markdown(POPE_HEADER, rows)}\n\n"
        "POPE on the same scenes (`prerequisites/demo/coco/pope`): accuracy / F1 / answers of yes "
        "in percent; *Yes or No*: answers in that form. Half of the questions are to be affirmed: "
        "50% is chance.\n"
    )


def example(
    family: Family, image: Path, plain: dict[str, Any], refined: dict[str, Any], trace: Any
) -> Example:
    """A card of the picture; the trace has to be that of the second caption."""
    if trace["answer"] != refined["caption"]:
        raise SystemExit(f"{image.name}: the trace is of another caption; remove the folder out/")
    captions = [(f"{family.name}, greedy", plain), (f"{family.name}, ReVisiT", refined)]
    return Example(image, captions, trace["steps"])


def examples(
    family: Family, greedy: chair.Score, chosen: chair.Score, traces: Path
) -> list[Example]:
    """The first images, by id, of which the two captions do not name the same objects."""
    names = _file_names()
    traced = {entry["question_id"]: entry for entry in _read_lines(traces)}
    pairs = zip(greedy.sentences, chosen.sentences, strict=True)
    differing = [
        (plain, refined)
        for plain, refined in pairs
        if plain["image_id"] in traced and set(plain["node_words"]) != set(refined["node_words"])
    ]
    return [
        example(
            family,
            COCO / "val2014" / names[plain["image_id"]],
            plain,
            refined,
            traced[plain["image_id"]],
        )
        for plain, refined in differing[:SHOWN]
    ]


def _file_names() -> dict[int, str]:
    images = _read(COCO / "annotations" / "instances_val2014.json")["images"]
    return {image["id"]: image["file_name"] for image in images}


def describe_entries(count: int) -> list[dict[str, Any]]:
    """The question for a caption, of the first ``count`` images by id."""
    names = sorted(_file_names().items())[:count]
    return [{"question_id": i, "image": name, "text": QUESTION} for i, name in names]


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _write_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def family_jobs(family: Family, out: Path, images: int) -> list[dict[str, Any]]:
    """Captions by every decoder; POPE by greedy and the chosen one; the picture's trace."""
    ways = decoders(family)
    asked = distinct(pope_entries())
    return [
        *(caption_job(family, way, COCO, out, images) for way in ways),
        *(question_job(family, way, asked, out / f"pope-{way.slug}.jsonl", 4) for way in ways[:2]),
        question_job(
            family,
            ways[1],
            describe_entries(min(TRACED, images)),
            out / "trace.jsonl",
            LONGEST,
            revisit_trace=True,
        ),
    ]


def family_results(
    family: Family, out: Path
) -> tuple[list[list[str]], list[list[str]], list[Example]]:
    """What the jobs of a family gave: its rows of both tables, its cards of the picture."""
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
    return rows, pope_rows, examples(family, scores[0], scores[1], out / "trace.jsonl")


def told(family: Family, out: Path) -> Results:
    """What the page is told of a family."""
    ways = decoders(family)
    captions = [(way.name, captions_file(way, out)) for way in ways]
    return Results(family.name, family.setting, captions)


def renew_docs(text: str, asked: str, picture: Path) -> None:
    """Write both tables and the picture to docs/, and the first table into the README."""
    docs = ROOT / "docs"
    docs.mkdir(exist_ok=True)
    parts = ("# The demo", "Written by `nox -s demo -- --docs`.", text, asked)
    page = "\n\n".join(part.rstrip() for part in parts) + "\n\n![Captions](demo.png)\n"
    (docs / "demo.md").write_text(page, encoding="utf-8")
    shutil.copy(picture, docs / "demo.png")
    put_between(ROOT / "README.md", "demo", text)


def put_between(page: Path, mark: str, text: str) -> None:
    """Replace what stands between ``<!-- mark -->`` and ``<!-- /mark -->`` in a page."""
    before, begin, rest = page.read_text("utf-8").partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- /{mark} -->\n")
    if not end:
        raise SystemExit(f"{page} lacks the marks <!-- {mark} --> and <!-- /{mark} -->")
    page.write_text(f"{before}{begin}{text}{end}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "out", help="where results are kept")
    there = len(list((COCO / "val2014").iterdir()))
    parser.add_argument("--images", type=int, default=there, help="how many (default: all)")
    parser.add_argument(
        "--docs", action="store_true", help="renew docs/demo.md, docs/demo.png and the README"
    )
    args = parser.parse_args()
    folders = {family: args.out / family.environment for family in FAMILIES}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    jobs = {family: family_jobs(family, own, args.images) for family, own in folders.items()}
    run_jobs(jobs, args.out)
    found = [family_results(family, folder) for family, folder in folders.items()]
    rows = [line for lines, _, _ in found for line in lines]
    pope_rows = [line for _, lines, _ in found for line in lines]
    picture = args.out / "demo.png"
    draw_sheet([card for _, _, cards in found for card in cards], picture)
    page = args.out / "demo.html"
    write_page([told(*each) for each in folders.items()], COCO / "annotations", page)
    text, asked = report(rows, args.images), pope_report(pope_rows)
    (args.out / "demo.md").write_text(f"{text}\n{asked}", encoding="utf-8")
    print(f"\n{text}\n{asked}\n{picture}\n{page}")
    if args.docs:
        renew_docs(text, asked, picture)


if __name__ == "__main__":
    main()
