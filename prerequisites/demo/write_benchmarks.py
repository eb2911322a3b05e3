"""Write AMBER's and MME's layouts from the demo's scenes, so that `revisit eval` has them without a
download.

AMBER: a caption of each scene, and questions about the existence of objects. Expected
hallucinations are the absent objects that POPE's adversarial questions ask about. MME: the category
`existence`, two questions of an image.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MME_IMAGES = 30  # as many as the published category has


def read_scenes(coco: Path) -> dict[str, dict[str, list[str]]]:
    """The images that POPE asks about -> the objects that are there, and absent ones.

    Args:
        coco: a folder that `write_coco.py` wrote.
    """
    scenes: dict[str, dict[str, list[str]]] = defaultdict(lambda: {"yes": [], "no": []})
    for line in (coco / "pope" / "adversarial.jsonl").read_text().splitlines():
        entry = json.loads(line)
        name = entry["text"].removeprefix("Is there ").removesuffix(" in the image?")
        scenes[entry["image"]][entry["label"]].append(name.split(" ", 1)[1])
    return dict(scenes)


def read_objects(coco: Path) -> dict[str, list[str]]:
    """The objects that each image shows."""
    saved = json.loads((coco / "annotations" / "instances_val2014.json").read_text())
    names = {category["id"]: category["name"] for category in saved["categories"]}
    files = {image["id"]: image["file_name"] for image in saved["images"]}
    objects: dict[str, list[str]] = defaultdict(list)
    for each in saved["annotations"]:
        objects[files[each["image_id"]]].append(names[each["category_id"]])
    return {file: list(dict.fromkeys(shown)) for file, shown in objects.items()}


def write_amber(coco: Path, folder: Path) -> None:
    """AMBER's data in its published layout. Objects of two words are left out: the scorer reads
    single words."""
    scenes, objects = read_scenes(coco), read_objects(coco)
    items: list[dict[str, Any]] = []
    queries: list[dict[str, Any]] = []

    def add(image: str, query: str, item: dict[str, Any]) -> None:
        number = {"id": len(items) + 1}
        items.append(number | item)
        queries.append(number | {"image": image, "query": query})

    for image, asked in scenes.items():
        truth, hallu = _single(objects[image]), _single(asked["no"])
        if truth and hallu:
            item = {"type": "generative", "truth": truth, "hallu": hallu}
            add(image, "Please describe this image in detail.", item)
    for image, asked in scenes.items():
        for answer, names in asked.items():
            for name in names:
                item = {"type": "discriminative-hallucination", "truth": answer}
                add(image, f"Is there a {name} in the image?", item)
    words = sorted({word for shown in objects.values() for word in _single(shown)})
    (folder / "data" / "query").mkdir(parents=True, exist_ok=True)
    contents = {
        "annotations": items,
        "relation": {word: [] for word in words},
        "query/query_all": queries,
    }
    for name, content in contents.items():
        (folder / "data" / f"{name}.json").write_text(json.dumps(content))
    (folder / "data" / "safe_words.txt").write_text("")


def write_mme(coco: Path, folder: Path) -> None:
    """MME's category `existence` in its published layout."""
    target = folder / "existence"
    target.mkdir(parents=True, exist_ok=True)
    for image, asked in list(read_scenes(coco).items())[:MME_IMAGES]:
        lines = [
            f"Is there a {asked[label][0]} in the image?\t{label.capitalize()}"
            for label in ("yes", "no")
        ]
        (target / image).with_suffix(".txt").write_text("\n".join(lines) + "\n")
        shutil.copy(coco / "val2014" / image, target / image)


def _single(names: list[str]) -> list[str]:
    return [name for name in names if " " not in name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coco", type=Path, default=HERE / "coco", help="the scenes")
    parser.add_argument(
        "--out", type=Path, default=HERE / "out" / "benchmarks", help="gets amber/ and mme/"
    )
    args = parser.parse_args()
    write_amber(args.coco, args.out / "amber")
    write_mme(args.coco, args.out / "mme")
    print(f"{args.out}: amber/ (images in {args.coco / 'val2014'}), mme/")


if __name__ == "__main__":
    main()
