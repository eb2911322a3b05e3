import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

CATEGORIES = {1: "person", 2: "dog", 3: "dining table", 4: "vase"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of ten images, named as COCO's, each of its own size."""
    folder = tmp_path / "val2014"
    folder.mkdir()
    for image in range(1, 11):
        name = f"COCO_val2014_{image:012d}.jpg"
        Image.new("RGB", (10 + image, 20 + image), (image, 0, 0)).save(folder / name)
    return folder


@pytest.fixture
def eval_command(images: Path, tmp_path: Path) -> Any:
    """`revisit eval` on the ten images: a benchmark, flags, and how a captioner is loaded; the
    exit status. Results go to `results/`."""
    from revisit.commands.eval import Family, main
    from revisit.transformers.checkpoint import own_dtype

    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")

    def eval_command(benchmark: str, *flags: str, load: Any, **family: Any) -> int:
        where = ["--model_path", str(model), "--data_path", str(images), "--device", "cpu"]
        family = {"results": tmp_path / "results", "own_dtype": own_dtype} | family
        return main([benchmark, *where, *flags], Family(load, **family))

    return eval_command


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """A folder of annotations of those ten images: a dog in all, a vase where captions say it."""
    folder = tmp_path / "annotations"
    references = {
        image: ["A dog.", "A small dog", "dogs", "A pet.", "It"] for image in range(1, 11)
    }
    references[1][1] = "A dog beside a vase."
    write_annotations(folder, {image: [2] for image in references}, references)
    return folder


def write_annotations(
    folder: Path, objects: Mapping[int, Sequence[int]], captions: Mapping[int, Sequence[str]]
) -> None:
    folder.mkdir(exist_ok=True)
    images = [{"id": image, "file_name": f"COCO_val2014_{image:012d}.jpg"} for image in objects]
    instances: dict[str, Any] = {
        "images": images,
        "categories": [{"id": key, "name": name} for key, name in CATEGORIES.items()],
        "annotations": [
            {"image_id": image, "category_id": category, "bbox": [0, 0, 1, 1]}
            for image, categories in objects.items()
            for category in categories
        ],
    }
    references = {
        "images": images,
        "annotations": [
            {"image_id": image, "caption": caption}
            for image, texts in captions.items()
            for caption in texts
        ],
    }
    (folder / "instances_val2014.json").write_text(json.dumps(instances))
    (folder / "captions_val2014.json").write_text(json.dumps(references))
