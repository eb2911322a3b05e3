"""What the demo's programs share: models, decoders, and jobs in the families' environments.

``asking.py`` does the jobs of a family in its environment, in one process on one thread, both
families at once. What a job wrote is kept, and a rerun does what is missing.
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

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COCO = HERE / "coco"
PUBLISHED_ALPHA = 1e-5
LONGEST = 48
"""Tokens of a caption, at most."""


@dataclass(frozen=True)
class Family:
    """A model family: its nox environment, the folder of its evaluation scripts and what their
    names end in, its published layers."""

    name: str
    environment: str
    folder: str
    suffix: str
    published_layers: str
    batch_size: int

    @property
    def checkpoint(self) -> Path:
        """Its tiny model."""
        return HERE / f"{self.environment}-tiny"

    @property
    def setting(self) -> Path:
        """Where the chosen setting of ReVisiT stands."""
        return HERE / "settings" / f"{self.environment}.json"

    @property
    def python(self) -> str:
        """The Python of the family's nox environment; where there is none, the running one."""
        made = ROOT / ".nox" / self.environment / "bin" / "python"
        return str(made) if made.exists() else sys.executable

    def script(self, benchmark: str) -> Path:
        """The evaluation script of `"chair"` or `"pope"`."""
        return ROOT / self.folder / "eval" / f"{benchmark}_eval_{self.suffix}.py"


FAMILIES = (
    Family("LLaVA-1.5", "llava", "LLaVA1.5", "llava", "last", 50),
    # Its vision tower attends over all images of a batch at once.
    Family("Qwen2.5-VL", "qwen", "Qwen2.5-VL", "qwenvl", "all", 20),
)


@dataclass(frozen=True)
class Decoder:
    """Its name in tables, its folder's name, and its settings, named as the scripts' flags."""

    name: str
    slug: str
    settings: Mapping[str, Any] = field(default_factory=dict)


GREEDY = Decoder("greedy", "greedy")


def revisit_decoder(layers: str, alpha: float, note: str = "") -> Decoder:
    """ReVisiT with these layers and this alpha."""
    settings = {"use_revisit": True, "early_exit_layers": layers, "relative_top": alpha}
    return Decoder(
        f"ReVisiT {layers}, alpha {alpha:g}{note}", f"revisit-{layers}-{alpha:g}", settings
    )


def published_decoder(family: Family) -> Decoder:
    """ReVisiT at the default of the published code."""
    return revisit_decoder(family.published_layers, PUBLISHED_ALPHA, " (published)")


def decoders(family: Family) -> list[Decoder]:
    """Greedy, ReVisiT at the chosen setting, and at the published default."""
    chosen = read_json(family.setting)
    chosen_decoder = revisit_decoder(chosen["layers"], chosen["alpha"], " (chosen)")
    return [GREEDY, chosen_decoder, published_decoder(family)]


def flags(family: Family, decoder: Decoder, coco: Path = COCO, **more: Any) -> list[str]:
    """The flags of a family's evaluation scripts."""
    settings = {
        "model_path": family.checkpoint,
        "data_path": coco / "val2014",
        "seed": 0,
        "batch_size": family.batch_size,
        "dtype": "float32",
        "device": "cpu",
        **more,
        **decoder.settings,
    }
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def caption_job(
    family: Family, decoder: Decoder, coco: Path, out: Path, images: int
) -> dict[str, Any]:
    """Caption and score by the family's script, in a folder of ``out``; see `result_file`."""
    arguments = flags(
        family,
        decoder,
        coco,
        anno_path=coco / "annotations",
        output_path=out / decoder.slug,
        num_eval_samples=images,
        max_new_tokens=LONGEST,
        lemmatizer="noun",
    )
    return {"script": str(family.script("chair")), "arguments": arguments}


def result_file(decoder: Decoder, out: Path) -> Path:
    """Where the score of a decoder's captions is."""
    return out / decoder.slug / "chair.json"


def pope_job(family: Family, decoder: Decoder, out: Path) -> dict[str, Any]:
    """Answer POPE's questions by the family's script, in ``out / pope-<decoder>``."""
    folder = out / f"pope-{decoder.slug}"
    arguments = flags(
        family, decoder, pope_path=COCO / "pope", output_path=folder, max_new_tokens=4
    )
    return {"script": str(family.script("pope")), "arguments": arguments}


def trace_job(family: Family, decoder: Decoder, out: Path, images: int) -> dict[str, Any]:
    """Caption the first ``images``, by id, into the file ``out``, with what ReVisiT did."""
    names = sorted(image_names().items())[:images]
    arguments = flags(family, decoder, output_path=out.with_suffix(""), max_new_tokens=LONGEST)
    return {
        "script": str(family.script("chair")),
        "arguments": arguments,
        "trace": str(out),
        "images": [[number, str(COCO / "val2014" / name)] for number, name in names],
        "batch_size": family.batch_size,
    }


def image_names() -> dict[int, str]:
    """The files of the demo's images by their ids."""
    images = read_json(COCO / "annotations" / "instances_val2014.json")["images"]
    return {image["id"]: image["file_name"] for image in images}


def run_jobs(jobs: Mapping[Family, Sequence[dict[str, Any]]], out: Path) -> None:
    """Do each family's jobs in its own process, all families at once, one thread each."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = []
    for family, todo in jobs.items():
        file, log = (out / family.environment / name for name in ("jobs.json", "log.txt"))
        file.write_text(json.dumps(todo), encoding="utf-8")
        command = [family.python, str(HERE / "asking.py"), str(file)]
        with log.open("w", encoding="utf-8") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        print(f"{family.name}: {len(todo)} jobs, {log}", flush=True)
        running.append((process, family, log))
    failed = [(family, log) for process, family, log in running if process.wait()]
    for family, log in failed:
        print(f"{family.name} failed:\n{log.read_text('utf-8')[-2000:]}", file=sys.stderr)
    if failed:
        raise SystemExit(f"the same again continues; remove {out} to begin anew")


def folders(out: Path) -> dict[Family, Path]:
    """A folder in ``out`` for each family, made where it lacks."""
    found = {family: out / family.environment for family in FAMILIES}
    for folder in found.values():
        folder.mkdir(parents=True, exist_ok=True)
    return found


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    return json.loads(path.read_text("utf-8"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The values of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
