"""Every decoder, and ReVisiT by other settings than the chosen one: two tables from one run.

`nox -s demo -- --decoder all`. Each captions the demo's images through the evaluation script that
users run on COCO; the figures are those of `revisit compare`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import tables
from jobs import (
    COCO,
    GREEDY,
    LONGEST,
    ROOT,
    Decoder,
    Family,
    caption_job,
    decoders,
    folders,
    read_json,
    result_file,
    revisit_decoder,
    run_jobs,
)
from revisit.config import OTHERS
from revisit.evaluation.benchmarks.chair import COLUMNS
from revisit.evaluation.results.result import read_result
from revisit.evaluation.results.tables import Row

NAMES = {
    "vcd": "VCD",
    "ritual": "RITUAL",
    "m3id": "M3ID",
    "dola": "DoLa",
    "code": "CODE",
    "icd": "ICD",
    "deco": "DeCo",
    "vista": "VISTA",
    "pai": "PAI (logits half)",
}
CHANGED = {"pai": {"alpha": 0}}
"""Settings that are not the published ones. PAI's attention half needs an interface that the
families' releases lack. So does SID, which is left out."""
ONE_PASS = ("dola", "deco", "vista")
"""The decoders without a second stream."""
ALPHAS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1)
LAYERS = ("last", "all", "low", "high")
ROUNDS = 5
"""Batches that all decoders caption in turn, which measures their cost."""
AGAIN = "greedy-again"
"""Greedy decoding as the last of each round: were the machine always equally fast, it costs 1."""
SHOWN = [*COLUMNS.metrics, "s/token"]
BY_HAND = "\n## SID, with Transformers 5.24\n"
"""Begins the last section of the page, which was measured by hand; a new page keeps it."""


def others() -> list[Decoder]:
    """The decoders beside greedy decoding and ReVisiT, by their published settings."""
    made = []
    for name, shown in NAMES.items():
        flags = {f"{name}_{setting}": value for setting, value in CHANGED.get(name, {}).items()}
        made.append(Decoder(shown, name, {"decoder": name, **flags}))
    return made


def ablations(family: Family) -> list[Decoder]:
    """ReVisiT by the chosen setting, and by those that differ from it in one thing."""
    chosen = read_json(family.setting)
    layers, alpha = chosen["layers"], chosen["alpha"]
    first = decoders(family)[1]
    selections = [
        Decoder(
            f"selection {name}",
            f"{first.slug}-{name}",
            {**first.settings, "revisit_selection": name},
        )
        for name in ("max", "random")
    ]
    alphas = [revisit_decoder(layers, each) for each in ALPHAS if each != alpha]
    other_layers = [revisit_decoder(each, alpha) for each in LAYERS if each != layers]
    return [first, *selections, *alphas, *other_layers]


def ways(family: Family) -> list[Decoder]:
    """All that captions, each once."""
    every = [*decoders(family), *others(), *ablations(family)]
    return list({way.slug: way for way in every}.values())


def jobs(family: Family, out: Path, images: int) -> list[dict[str, Any]]:
    """For ``asking.py``: captions and scores of each decoder, and what they cost."""
    captioned = [caption_job(family, way, COCO, out, images) for way in ways(family)]
    timed = read_json(timing_file(out)) if timing_file(out).exists() else {}
    if {way.slug for way in ways(family)} <= timed.keys():
        return captioned
    return [*captioned, timing_job(family, out, images)]


def timing_file(out: Path) -> Path:
    """Where the seconds of each decoder are."""
    return out / "timing.json"


def timing_job(family: Family, out: Path, images: int) -> dict[str, Any]:
    """Caption the first images by all decoders in turn."""
    files = [str(file) for file in sorted((COCO / "val2014").iterdir())[:images]]
    starts = range(0, min(len(files), ROUNDS * family.batch_size), family.batch_size)
    flags = {
        way.slug: caption_job(family, way, COCO, out, images)["arguments"] for way in ways(family)
    }
    return {
        "timing": str(timing_file(out)),
        "script": str(family.script("chair")),
        "ways": {**flags, AGAIN: flags[GREEDY.slug]},
        "rounds": [files[start : start + family.batch_size] for start in starts],
    }


def relative(found: Mapping[str, Sequence[tuple[float, int]]]) -> dict[str, float]:
    """The median over the rounds of each decoder's seconds a token over those of the first.

    A machine is not equally fast from one minute to the next: ratios within a round are.
    """
    costs = {name: [took / tokens for took, tokens in rounds] for name, rounds in found.items()}
    baseline = next(iter(costs.values()))
    return {
        name: median(mine / theirs for mine, theirs in zip(each, baseline, strict=True))
        for name, each in costs.items()
    }


def compared(chosen: Sequence[Decoder], out: Path) -> list[Row]:
    """Rows of these decoders, with their measured cost; the first is the baseline."""
    costs = relative(read_json(timing_file(out)))
    rows = zip(chosen, tables.compared(chosen, out), strict=True)
    return [row._replace(relative=np.array([costs[way.slug]])) for way, row in rows]


def verdicts(found: Mapping[str, Sequence[Row]]) -> str:
    """For each model, the decoders by what the interval of CHAIRs says."""
    column = COLUMNS.metrics.index("CHAIRs")
    lines: list[str] = []
    for family, rows in found.items():
        names: dict[str, list[str]] = {"fewer": [], "neither": [], "more": []}
        for row in rows[1:]:
            assert row.interval is not None
            low, high = row.interval[:, column]
            verdict = "fewer" if high < 0 else "more" if low > 0 else "neither"
            names[verdict].append(row.name)
        lines += [
            f"- {family}: {verdict} with {'; '.join(some)}."
            for verdict, some in names.items()
            if some
        ]
    return "\n".join(
        [
            "Each of these decoders is published as one that hallucinates less than greedy "
            "decoding in large models. On these two tiny models not all of them help. By the "
            "interval of CHAIRs, captions that name an absent object become fewer, more, or "
            "neither (the interval contains 0):",
            "",
            *lines,
        ]
    )


def selections(found: Mapping[str, Sequence[Row]]) -> str:
    """Which selection of the vision token is better here, by what."""
    parts = []
    for family, (_, least, most, random, *_) in found.items():
        best = []
        for name, better in (("CHAIRs", min), ("Recall", max), ("F1", max)):
            column = COLUMNS.metrics.index(name)
            chosen = {"min": least, "max": most, "random": random}
            values = {which: row.values[0, column] for which, row in chosen.items()}
            best.append(f"{name} by `{better(values, key=values.__getitem__)}`")
        parts.append(f"of {family}: {', '.join(best)}")
    return (
        "The paper takes the vision token that diverges least (`min`, in all rows that name no "
        f"other) and compares it with `max` and `random`. Here the best are, {'; '.join(parts)}."
    )


def measured(family: Family, out: Path) -> str:
    """Where and how a family's costs were measured, by its run records."""
    result = read_result(result_file(GREEDY, out))
    run, settings = result.runs[0], result.settings
    timed = read_json(timing_file(out))
    return (
        f"{family.name} (`{family.checkpoint.name}`, {settings['model']['sha256'][:12]}, "
        f"{settings['dtype']}) on {run['processor']}, "
        f"{run['threads']} thread, {run['batch_size']} images at once, PyTorch "
        f"{settings['torch version']}, Transformers {settings['transformers version']}; "
        f"{len(timed[AGAIN])} rounds; greedy decoding a second time in each: "
        f"{relative(timed)[AGAIN]:.2f}."
    )


def settings_of_others() -> str:
    """The settings of the other decoders."""
    lines = []
    for name, shown in NAMES.items():
        defaults = {field.name: field.default for field in fields(OTHERS[name])}
        settings = {**defaults, **CHANGED.get(name, {})}
        values = ", ".join(f"{key} {value}" for key, value in settings.items())
        lines.append(f"{shown} {values}")
    return "; ".join(lines)


def report(out: Path, images: int) -> str:
    """Both tables, and what their numbers are."""
    every = {
        family.name: compared([*decoders(family), *others()], folder)
        for family, folder in folders(out).items()
    }
    ablated = {
        family.name: compared([GREEDY, *ablations(family)], folder)
        for family, folder in folders(out).items()
    }
    shown = [*COLUMNS.metrics, "passes", "s/token"]
    passes = {way.name: "2" for way in others() if way.slug not in ONE_PASS}
    took = "\n".join(f"- {measured(*each)}" for each in folders(out).items())
    return (
        f"## Every decoder\n\n{tables.table(every, shown, passes=passes)}\n\n{verdicts(every)}\n\n"
        "PAI runs with alpha 0 here, so without its attention half: that half needs Transformers' "
        "attention interface, which neither model's release has (4.31 and 4.50). SID needs it too, "
        "so it has no row here. DeCo and VISTA are published with layers of 32, which are scaled "
        "to the 4 layers here. *passes*: forward passes a step. VISTA also reads the prompt twice "
        "before the first step, and CODE has the model write a description first; both are in "
        "*s/token*.\n\n"
        f"## Settings of ReVisiT\n\n{tables.table(ablated, SHOWN)}\n\n"
        "The first is the chosen setting; each other one differs from it in what its row names. "
        f"{selections(ablated)}\n\n"
        "## What the numbers are\n\n"
        f"{images} held-out drawn scenes in `prerequisites/demo/coco`, at most {LONGEST} tokens a "
        "caption; `revisit score chair --lemmatizer noun`; percent, Len in words; *twice*: "
        "captions that name an object twice. Differences to greedy decoding with their 95% paired "
        "bootstrap interval over images. *s/token*: the processor's seconds a token over those of "
        "greedy decoding, the median of rounds in which each decoder captioned the same images in "
        "turn:\n\n"
        f"{took}\n\n"
        "Both models ran at once, each in its own process. Settings: "
        f"{settings_of_others()}. The demo shows how the decoders work, not what they gain on a "
        "large model: see [its page](demo.md).\n"
    )


def run(out: Path, images: int, docs: bool) -> None:
    """Caption by every decoder, print both tables and write them to ``out``, or to docs/ too."""
    todo = {family: jobs(family, folder, images) for family, folder in folders(out).items()}
    run_jobs(todo, out)
    text = report(out, images)
    (out / "decoders.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")
    if docs:
        page = ROOT / "docs" / "decoders.md"
        head = "# Decoders, on the demo\n\nWritten by `nox -s demo -- --decoder all --docs`.\n\n"
        _, mark, by_hand = page.read_text("utf-8").partition(BY_HAND)
        page.write_text(head + text + mark + by_hand, encoding="utf-8")
