"""Every decoder, and ReVisiT by other settings than the chosen one: two tables from one run.

`nox -s demo -- --decoder all`. Each captions the demo's images through the evaluation script that
users run on COCO; what is told of it is what `revisit compare` tells.
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
    "pai": "PAI, logits half",
}
GIVEN = {"pai": {"pai_alpha": 0}}
"""The other half needs an attention interface, which the families' releases lack. So does SID."""
ALPHAS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1)
LAYERS = ("last", "all", "low", "high")
ROUNDS = 5
"""Batches that are captioned by each way in turn, to see what it costs."""
AGAIN = "greedy-again"
"""Greedy decoding as the last way of a round: were the machine always equally fast, it costs 1."""
SHOWN = [*COLUMNS.metrics, "s/token"]


def others() -> list[Decoder]:
    """The decoders beside greedy decoding and ReVisiT, by their published settings."""
    return [Decoder(NAMES[name], name, {"decoder": name, **GIVEN.get(name, {})}) for name in NAMES]


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
    among = [revisit_decoder(each, alpha) for each in LAYERS if each != layers]
    return [first, *selections, *alphas, *among]


def ways(family: Family) -> list[Decoder]:
    """All that captions, each once."""
    every = [*decoders(family), *others(), *ablations(family)]
    return list({way.slug: way for way in every}.values())


def jobs(family: Family, out: Path, images: int) -> list[dict[str, Any]]:
    """What ``asking.py`` does: captions and scores of each way, in a folder of its own, and what
    they cost."""
    captioned = [caption_job(family, way, COCO, out, images) for way in ways(family)]
    timed = read_json(timing_file(out)) if timing_file(out).exists() else {}
    if {way.slug for way in ways(family)} <= timed.keys():
        return captioned
    return [*captioned, timing_job(family, out, images)]


def timing_file(out: Path) -> Path:
    """Where the seconds of each way are."""
    return out / "timing.json"


def timing_job(family: Family, out: Path, images: int) -> dict[str, Any]:
    """Caption the first images by all ways in turn."""
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
    """Of each way the median over the rounds of its seconds a token over those of the first way.

    A machine is not equally fast from one minute to the next: ratios within a round are.
    """
    costs = {name: [took / tokens for took, tokens in rounds] for name, rounds in found.items()}
    first = next(iter(costs.values()))
    return {
        name: median(mine / theirs for mine, theirs in zip(each, first, strict=True))
        for name, each in costs.items()
    }


def compared(chosen: Sequence[Decoder], out: Path) -> list[Row]:
    """Rows of these ways, with what they cost in turn; the first is the baseline."""
    costs = relative(read_json(timing_file(out)))
    rows = zip(chosen, tables.compared(chosen, out), strict=True)
    return [row._replace(relative=np.array([costs[way.slug]])) for way, row in rows]


def verdict(row: Row) -> str:
    """Whether a decoder hallucinates less than greedy decoding, as far as these images tell."""
    assert row.interval is not None
    low, high = row.interval[:, COLUMNS.metrics.index("CHAIRs")]
    return "fewer" if high < 0 else "more" if low > 0 else "neither"


def verdicts(found: Mapping[str, Sequence[Row]]) -> str:
    """What the papers report, and what is seen here."""
    parts = []
    for family, some in found.items():
        by_verdict: dict[str, list[str]] = {}
        for row in some[1:]:
            by_verdict.setdefault(verdict(row), []).append(row.name)
        told = "; ".join(f"{which} with {', '.join(names)}" for which, names in by_verdict.items())
        parts.append(f"{family} {told}.")
    return (
        "Each of these decoders is published with fewer hallucinating captions of large models "
        "than greedy decoding. Here, by the interval of CHAIRs, it is: " + " ".join(parts)
    )


def selections(found: Mapping[str, Sequence[Row]]) -> str:
    """Which selection of the vision token is better here, by what."""
    parts = []
    for family, (_, least, most, random, *_) in found.items():
        said = []
        for name, better in (("CHAIRs", min), ("Recall", max), ("F1", max)):
            column = COLUMNS.metrics.index(name)
            chosen = {"min": least, "max": most, "random": random}
            values = {which: row.values[0, column] for which, row in chosen.items()}
            said.append(f"{name} by `{better(values, key=values.__getitem__)}`")
        parts.append(f"of {family}: {', '.join(said)}")
    return (
        "The paper takes the vision token that diverges least (`min`, in all rows that name no "
        f"other) and holds `max` and `random` against it. Here the best are, {'; '.join(parts)}."
    )


def measured(family: Family, out: Path) -> str:
    """Where and how a family's costs were measured, of its run records."""
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
    """The settings of the other decoders: the defaults of their configs."""
    told = []
    for name, shown in NAMES.items():
        given = ", ".join(f"{field.name} {field.default}" for field in fields(OTHERS[name]))
        told.append(f"{shown} {given}")
    return "; ".join(told)


def report(out: Path, images: int) -> str:
    """Both tables, and what their numbers are."""
    places = folders(out)
    every = {
        family.name: compared([*decoders(family), *others()], own) for family, own in places.items()
    }
    ablated = {
        family.name: compared([GREEDY, *ablations(family)], own) for family, own in places.items()
    }
    took = "\n".join(f"- {measured(family, own)}" for family, own in places.items())
    return (
        f"## Every decoder\n\n{tables.table(every, SHOWN)}\n\n{verdicts(every)}\n\n"
        f"## Settings of ReVisiT\n\n{tables.table(ablated, SHOWN)}\n\n"
        "The first is the chosen setting; each other one differs from it in what its row names. "
        f"{selections(ablated)}\n\n"
        "## What the numbers are\n\n"
        f"{images} held-out drawn scenes in `prerequisites/demo/coco`, at most {LONGEST} tokens a "
        "caption; `revisit score chair --lemmatizer noun`; percent, Len in words; *twice*: "
        "captions that name an object twice. Differences to greedy decoding with their 95% paired "
        "bootstrap interval over images. *s/token*: the processor's seconds a token over those of "
        "greedy decoding, the median of rounds in which each way captioned the same images in "
        "turn:\n\n"
        f"{took}\n\n"
        f"Both models ran at once, each in a process of its own. Settings: {settings_of_others()}. "
        "The demo shows how the decoders work, not what they gain on a large model: see "
        "[its page](demo.md).\n"
    )


def run(out: Path, images: int, docs: bool) -> None:
    """Caption by every way, print both tables and write them to ``out``, or to docs/ too."""
    todo = {family: jobs(family, folder, images) for family, folder in folders(out).items()}
    run_jobs(todo, out)
    text = report(out, images)
    (out / "decoders.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")
    if docs:
        page = "# Decoders, on the demo\n\nWritten by `nox -s demo -- --decoder all --docs`.\n\n"
        (ROOT / "docs" / "decoders.md").write_text(page + text, encoding="utf-8")
