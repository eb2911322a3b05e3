"""What the demo's programs share: its models, ways to decode, jobs in the families' environments.

A job is done by ``asking.py`` in the environment of its family; both families' jobs run at once,
each in one process on one thread. What a job wrote is kept, and a rerun does what is missing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from revisit.evaluation.benchmarks import chair
from revisit.evaluation.benchmarks.objects.coco import read_captions
from revisit.evaluation.benchmarks.objects.lemmas import LEMMATIZERS
from revisit.evaluation.benchmarks.objects.truth import ground_truth

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COCO = HERE / "coco"
PUBLISHED_ALPHA = 1e-5
LONGEST = 48
"""Tokens of a caption, at most."""


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
    chosen = read_json(family.setting)
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
    write_lines(questions, entries)
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
    record = read_json(captions.with_name(captions.name + ".run.json"))
    return float(sum(run["seconds"] for run in record["runs"]))


def score(captions: Path, coco: Path) -> chair.Score:
    """CHAIR of a captions file, every word read as a noun; images in the order of their ids."""
    lemmatize = LEMMATIZERS["noun"]()
    objects = ground_truth(coco / "annotations", lemmatize)
    return chair.score(dict(sorted(read_captions(captions).items())), objects, lemmatize)


def repeating(scored: chair.Score) -> float:
    """The part of the captions that name an object twice."""
    twice = [len(set(each["node_words"])) < len(each["node_words"]) for each in scored.sentences]
    return sum(twice) / len(twice)


def interval(gap: Mapping[str, float]) -> str:
    """A difference and its interval, in points of percent."""
    difference, low, high = (100 * gap[name] for name in ("difference", "low", "high"))
    return f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]"


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


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text("utf-8"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What the lines of a JSON Lines file hold."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    """Write a JSON Lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def put_between(page: Path, mark: str, text: str) -> None:
    """Replace what stands between ``<!-- mark -->`` and ``<!-- /mark -->`` in a page."""
    before, begin, rest = page.read_text("utf-8").partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- /{mark} -->\n")
    if not end:
        raise SystemExit(f"{page} lacks the marks <!-- {mark} --> and <!-- /{mark} -->")
    page.write_text(f"{before}{begin}{text}{end}{after}", encoding="utf-8")
