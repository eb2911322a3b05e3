"""Write a split of the drawn scenes in COCO's layout, and POPE's questions about it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from captions import question, references
from scenes import SIZE, SPLITS, THINGS, Scene, draw, sample_scene

HERE = Path(__file__).resolve().parent
IMAGES = 600
POPE_IMAGES, POPE_EACH = 150, 2
"""Images that POPE's questions are of; questions to affirm, and to deny, of each."""
POPE_COUNTED = 2000
"""Training scenes in which objects are counted for "popular" and "adversarial"."""
INFO = {
    "description": "Scenes drawn for the demo of ReVisiT, in the layout of COCO 2014",
    "version": "1.0",
    "year": 2026,
    "contributor": "prerequisites/demo/write_coco.py",
}
LICENSES = [{"id": 1, "name": "Apache License 2.0; sprites rendered from Noto Color Emoji"}]


def instances(scenes: list[Scene]) -> dict[str, Any]:
    """The instances file. An image's id is its scene's index plus one."""
    categories = [
        {"supercategory": thing.supercategory, "id": thing.category_id, "name": thing.name}
        for thing in sorted(THINGS, key=lambda thing: thing.category_id)
    ]
    annotations: list[dict[str, Any]] = []
    for scene in scenes:
        for item in scene.placed:
            x, y, width, height = item.box
            right, bottom = x + width, y + height
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": scene.index + 1,
                    "category_id": item.thing.category_id,
                    "bbox": list(item.box),
                    "area": width * height,
                    "segmentation": [[x, y, right, y, right, bottom, x, bottom]],
                    "iscrowd": 0,
                }
            )
    return {**_head(scenes), "annotations": annotations, "categories": categories}


def captions(scenes: list[Scene]) -> dict[str, Any]:
    """The captions file: five captions an image."""
    texts = [(scene.index + 1, text) for scene in scenes for text in references(scene)]
    annotations = [
        {"id": number, "image_id": image_id, "caption": text}
        for number, (image_id, text) in enumerate(texts, 1)
    ]
    return {**_head(scenes), "annotations": annotations}


def pope(scenes: list[Scene]) -> dict[str, list[dict[str, Any]]]:
    """POPE's three sets of questions, in its published format.

    Of each image the same objects are affirmed in all three. Denied are absent objects: of
    ``random`` any, of ``popular`` the most frequent, of ``adversarial`` those that stand most often
    beside the image's objects. Frequencies are those of training scenes, where models have their
    expectations from.
    """
    together = _together()
    questions: dict[str, list[dict[str, Any]]] = {"random": [], "popular": [], "adversarial": []}
    for scene in scenes:
        rng = np.random.default_rng([scene.seed, 3])
        there = [THINGS.index(item.thing) for item in scene.placed]
        absent = np.setdiff1d(np.arange(len(THINGS)), there)
        affirmed = rng.permutation(there)[:POPE_EACH]
        denied: dict[str, Sequence[int]] = {
            "random": rng.permutation(absent).tolist(),
            "popular": sorted(absent, key=lambda thing: -together[thing, thing]),
            "adversarial": sorted(absent, key=lambda thing: -together[there, thing].sum()),
        }
        for name, rows in questions.items():
            for pair in zip(affirmed, denied[name], strict=False):
                for thing, label in zip(pair, ("yes", "no"), strict=True):
                    text = question(THINGS[thing].name)
                    image = file_name(scene.index)
                    entry = {"question_id": len(rows) + 1, "image": image, "text": text}
                    rows.append(entry | {"label": label})
    return questions


def _together() -> np.ndarray:
    """(things, things) training scenes that show both; on the diagonal, that show the one."""
    shown = np.zeros((POPE_COUNTED, len(THINGS)), np.int64)
    for index in range(POPE_COUNTED):
        shown[index, [THINGS.index(item.thing) for item in sample_scene("train", index).placed]] = 1
    return shown.T @ shown


def file_name(index: int) -> str:
    """The name COCO would give the image of scene ``index``."""
    return f"COCO_val2014_{index + 1:012d}.jpg"


def _head(scenes: list[Scene]) -> dict[str, Any]:
    images = [
        {
            "id": scene.index + 1,
            "file_name": file_name(scene.index),
            "height": SIZE,
            "width": SIZE,
            "license": 1,
        }
        for scene in scenes
    ]
    return {"info": INFO, "licenses": LICENSES, "images": images}


def write_coco(folder: Path, split: str, count: int) -> None:
    """Write images, annotations and POPE's questions of ``count`` scenes to ``folder``."""
    scenes = [sample_scene(split, index) for index in range(count)]
    for name in ("val2014", "annotations", "pope"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for scene in tqdm(scenes, desc=f"drawing {split}", unit="image"):
        path = folder / "val2014" / file_name(scene.index)
        draw(scene).save(path, quality=85, optimize=True)
    for name, content in (("instances", instances(scenes)), ("captions", captions(scenes))):
        path = folder / "annotations" / f"{name}_val2014.json"
        path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
    for name, rows in pope(scenes[:POPE_IMAGES]).items():
        path = folder / "pope" / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "coco", help="folder to write")
    parser.add_argument("--split", choices=SPLITS, default="val", help="which scenes")
    parser.add_argument("--count", type=int, default=IMAGES, help="how many of them")
    args = parser.parse_args()
    write_coco(args.out, args.split, args.count)


if __name__ == "__main__":
    main()
