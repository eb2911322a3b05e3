"""Write a split of the drawn scenes in COCO's layout: images, instances and reference captions."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from captions import references
from scenes import SIZE, SPLITS, THINGS, Scene, draw, sample_scene

HERE = Path(__file__).resolve().parent
IMAGES = 600
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
    """Write ``val2014/*.jpg`` and the two annotation files of ``count`` scenes to ``folder``."""
    scenes = [sample_scene(split, index) for index in range(count)]
    for name in ("val2014", "annotations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for scene in tqdm(scenes, desc=f"drawing {split}", unit="image"):
        path = folder / "val2014" / file_name(scene.index)
        draw(scene).save(path, quality=85, optimize=True)
    for name, content in (("instances", instances(scenes)), ("captions", captions(scenes))):
        path = folder / "annotations" / f"{name}_val2014.json"
        path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "coco", help="folder to write")
    parser.add_argument("--split", choices=SPLITS, default="val", help="which scenes")
    parser.add_argument("--count", type=int, default=IMAGES, help="how many of them")
    args = parser.parse_args()
    write_coco(args.out, args.split, args.count)


if __name__ == "__main__":
    main()
