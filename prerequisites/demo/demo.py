"""Caption the demo's images by greedy decoding and by ReVisiT, score both, show where they differ.

Every family captions through the script that its users run on COCO. Results are kept in out/:
a rerun captions only what is missing. The setting of ReVisiT stands in settings/, where
choose_setting.py wrote what it chose on other scenes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revisit.evaluation import chair
from revisit.evaluation.lemmas import LEMMATIZERS
from sheet import Example, draw_sheet

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COCO = HERE / "coco"
PUBLISHED_ALPHA = 1e-5


@dataclass(frozen=True)
class Family:
    """A model family: the environment that runs it, its evaluation script, its tiny checkpoint."""

    name: str
    environment: str
    script: Path
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
        checkpoint=HERE / "llava-tiny",
        published_layers="last",
        batch_size=100,
    ),
    Family(
        name="Qwen2.5-VL",
        environment="qwen",
        script=ROOT / "Qwen2.5-VL" / "eval" / "chair_eval_qwenvl.py",
        checkpoint=HERE / "qwen-tiny",
        published_layers="all",
        batch_size=10,  # its vision tower attends over all images of a batch at once
    ),
)


@dataclass(frozen=True)
class Decoder:
    """A way to decode: its name in the table, its file name, its flags."""

    name: str
    slug: str
    flags: tuple[str, ...] = ()


GREEDY = Decoder("greedy", "greedy")


def revisit_decoder(layers: str | list[int], alpha: float, note: str = "") -> Decoder:
    """ReVisiT with these layers and this alpha."""
    named = layers if isinstance(layers, str) else ",".join(map(str, layers))
    flags = ("--use_revisit", "--early_exit_layers", named, "--relative_top", str(alpha))
    name = f"ReVisiT {named}, alpha {alpha:g}{note}"
    return Decoder(name, f"revisit-{named.replace(',', '-')}-{alpha:g}", flags)


def decoders(family: Family) -> list[Decoder]:
    """Greedy, ReVisiT at the chosen setting, and at the published default."""
    chosen = _read(family.setting)
    return [
        GREEDY,
        revisit_decoder(chosen["layers"], chosen["alpha"], " (chosen)"),
        revisit_decoder(family.published_layers, PUBLISHED_ALPHA, " (published)"),
    ]


def caption(family: Family, decoder: Decoder, coco: Path, out: Path, images: int) -> Path:
    """Run the family's evaluation script; returns its captions file. Done already is kept."""
    captions = out / f"{decoder.slug}.jsonl"
    command = [
        *(family.python, str(family.script)),
        *("--model_path", str(family.checkpoint)),
        *("--data_path", str(coco / "val2014"), "--anno_path", str(coco / "annotations")),
        *("--output_path", str(captions), "--seed", "0", "--num_eval_samples", str(images)),
        *("--max_new_tokens", "96", "--batch_size", str(family.batch_size), "--dtype", "float32"),
        *("--device", "cpu", *decoder.flags),
    ]
    print(f"{family.name}, {decoder.name}", flush=True)
    # Threads that spin between tiny operations slow each other down where cores are shared.
    calm = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, check=False, env=calm)
    if done.returncode:
        raise SystemExit(
            f"captioning failed (status {done.returncode}): {' '.join(command)}\n"
            f"run the same again to continue, or remove {out} to begin anew"
        )
    return captions


def seconds(captions: Path) -> float:
    """How long the captions took, from their run record; a rerun adds to it."""
    record = _read(captions.with_name(captions.name + ".run.json"))
    return float(sum(run["seconds"] for run in record["runs"]))


def score(captions: Path, coco: Path) -> chair.Score:
    """CHAIR of a captions file, every word read as a noun; images in the order of their ids."""
    lemmatize = LEMMATIZERS["noun"]()
    objects = chair.ground_truth(coco / "annotations", lemmatize)
    return chair.score(dict(sorted(chair.read_captions(captions).items())), objects, lemmatize)


def row(
    family: str, decoder: str, scored: chair.Score, took: float, greedy: chair.Score | None
) -> list[str]:
    """A line of the table; with the greedy score also the differences to it."""
    values = chair.metrics(scored.counts.sum(0))
    shown = [f"{100 * values[metric]:.1f}" for metric in chair.METRICS]
    cells = [family, decoder, *shown, f"{took:.0f}"]
    if greedy is None:
        return [*cells, "", ""]
    gap = chair.paired_bootstrap(greedy.counts, scored.counts)
    return [*cells, *(_interval(gap[metric]) for metric in ("CHAIRs", "Recall"))]


def _interval(gap: dict[str, float]) -> str:
    difference, low, high = (100 * gap[name] for name in ("difference", "low", "high"))
    return f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]"


HEADER = ["model", "decoder", *chair.METRICS, "seconds", "CHAIRs - greedy", "Recall - greedy"]


def markdown(rows: list[list[str]]) -> str:
    """The table in Markdown, its columns lined up so that it reads well in a terminal too."""
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    rule = ["-" * (w - 1) + (":" if column > 1 else "-") for column, w in enumerate(widths)]
    lines = [HEADER, rule, *rows]
    return "\n".join(
        "| "
        + " | ".join(
            cell.rjust(width) if column > 1 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    )


def report(table: str, images: int) -> str:
    """The table, and what its numbers are."""
    chosen = [(family.name, _read(family.setting)) for family in FAMILIES]
    choices = "; ".join(f"{name} on {entry['images']} scenes" for name, entry in chosen)
    rules = " / ".join(dict.fromkeys(entry["rule"] for _, entry in chosen))
    return (
        f"{table}\n\n"
        f"{images} held-out drawn scenes in `prerequisites/demo/coco`, two tiny models of about a "
        "million parameters each, trained for this demo; `revisit-chair --lemmatizer noun`. "
        "Percent, Len in words, seconds on 2 CPU cores. Differences to greedy decoding with their "
        "95% paired bootstrap interval over images. The chosen setting was chosen on other scenes "
        f"({choices}): {rules}. *Published* is the default of the published code.\n"
    )


def examples(
    titles: tuple[str, str], greedy: chair.Score, chosen: chair.Score, coco: Path, count: int = 4
) -> list[Example]:
    """The first images, by id, of which the two captions do not name the same objects."""
    differing = [
        (plain, refined)
        for plain, refined in zip(greedy.sentences, chosen.sentences, strict=True)
        if set(plain["node_words"]) != set(refined["node_words"])
    ]
    names = {
        image["id"]: image["file_name"]
        for image in _read(coco / "annotations" / "instances_val2014.json")["images"]
    }
    return [
        Example(
            coco / "val2014" / names[plain["image_id"]],
            list(zip(titles, (plain, refined), strict=True)),
        )
        for plain, refined in differing[:count]
    ]


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def run(family: Family, out: Path, images: int) -> tuple[list[list[str]], list[Example], int]:
    """Caption and score for one family: its rows, its examples, the number of images."""
    ways = decoders(family)
    files = [caption(family, way, COCO, out, images) for way in ways]
    scores = [score(file, COCO) for file in files]
    rows = [
        row(family.name, way.name, scored, seconds(file), scores[0] if number else None)
        for number, (way, scored, file) in enumerate(zip(ways, scores, files, strict=True))
    ]
    titles = (f"{family.name}, {ways[0].name}", f"{family.name}, {ways[1].name}")
    return rows, examples(titles, scores[0], scores[1], COCO), len(scores[0].image_ids)


def renew_docs(text: str, picture: Path) -> None:
    """Write the report and the picture to docs/, and the report into the README."""
    docs = ROOT / "docs"
    docs.mkdir(exist_ok=True)
    page = f"# The demo\n\nWritten by `nox -s demo -- --docs`.\n\n{text}\n![Captions](demo.png)\n"
    (docs / "demo.md").write_text(page, encoding="utf-8")
    shutil.copy(picture, docs / "demo.png")
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text("utf-8").partition("<!-- demo -->\n")
    _, _, after = rest.partition("<!-- /demo -->\n")
    readme.write_text(f"{before}<!-- demo -->\n{text}<!-- /demo -->\n{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "out", help="where results are kept")
    there = len(list((COCO / "val2014").iterdir()))
    parser.add_argument("--images", type=int, default=there, help="how many (default: all)")
    parser.add_argument(
        "--docs", action="store_true", help="renew docs/demo.md, docs/demo.png and the README"
    )
    args = parser.parse_args()
    rows: list[list[str]] = []
    shown: list[Example] = []
    images = 0
    for family in FAMILIES:
        folder = args.out / family.environment
        folder.mkdir(parents=True, exist_ok=True)
        lines, cards, images = run(family, folder, args.images)
        rows += lines
        shown += cards
    picture = args.out / "demo.png"
    draw_sheet(shown, picture)
    text = report(markdown(rows), images)
    (args.out / "demo.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\n{picture}")
    if args.docs:
        renew_docs(text, picture)


if __name__ == "__main__":
    main()
