"""The committed images and annotations, and that they are what the seed gives."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from revisit.evaluation.benchmarks.objects.coco import image_id, read_instances
from revisit.evaluation.benchmarks.objects.lemmas import LEMMATIZERS
from revisit.evaluation.benchmarks.objects.truth import ground_truth
from scenes import GROUPS, SIZE, sample_scene
from write_coco import IMAGES, POPE_EACH, POPE_IMAGES, captions, instances, pope

COCO = Path(__file__).resolve().parents[1] / "coco"


def read(name: str) -> Any:
    return json.loads((COCO / "annotations" / f"{name}_val2014.json").read_text("utf-8"))


def pope_entries(name: str) -> list[dict[str, Any]]:
    lines = (COCO / "pope" / f"{name}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def asked_object(entry: dict[str, Any]) -> str:
    return str(entry["text"]).removeprefix("Is there a ").removesuffix(" in the image?")


def test_images_and_annotations_belong_together() -> None:
    data = read("instances")
    files = sorted((COCO / "val2014").iterdir())
    assert len(files) == IMAGES >= 500
    assert sorted(image["file_name"] for image in data["images"]) == [file.name for file in files]
    assert {image["id"]: image["file_name"] for image in data["images"]} == {
        image_id(file.name): file.name for file in files
    }
    categories = {category["id"]: category for category in data["categories"]}
    assert len(categories) >= 24
    for annotation in data["annotations"]:
        x, y, width, height = annotation["bbox"]
        assert min(x, y) >= 0 and max(x + width, y + height) <= SIZE
        assert annotation["category_id"] in categories
        assert 0 < annotation["area"] <= width * height
    assert len({annotation["id"] for annotation in data["annotations"]}) == len(data["annotations"])


def test_images_open_and_have_the_annotated_size() -> None:
    for image in read("instances")["images"][::25]:
        with Image.open(COCO / "val2014" / image["file_name"]) as picture:
            picture.load()
            assert picture.size == (image["width"], image["height"])


def test_five_references_an_image_name_what_the_instances_show() -> None:
    texts: dict[int, list[str]] = {}
    for annotation in read("captions")["annotations"]:
        texts.setdefault(annotation["image_id"], []).append(annotation["caption"])
    assert {len(each) for each in texts.values()} == {5}
    objects = ground_truth(COCO / "annotations", LEMMATIZERS["noun"]())
    assert objects == read_instances(COCO / "annotations" / "instances_val2014.json")


@pytest.mark.parametrize("name", ["random", "popular", "adversarial"])
def test_popes_questions_are_true_and_balanced_in_every_image(name: str) -> None:
    objects = read_instances(COCO / "annotations" / "instances_val2014.json")
    asked: dict[str, list[str]] = {}
    for number, entry in enumerate(pope_entries(name), 1):
        assert list(entry) == ["question_id", "image", "text", "label"]
        assert entry["question_id"] == number
        there = asked_object(entry) in objects[image_id(entry["image"])]
        assert entry["label"] == ("yes" if there else "no")
        asked.setdefault(entry["image"], []).append(entry["label"])
    assert len(asked) == POPE_IMAGES
    assert all(sorted(labels) == sorted(["yes", "no"] * POPE_EACH) for labels in asked.values())


def test_adversarial_questions_ask_for_the_partners_of_what_is_there() -> None:
    objects = read_instances(COCO / "annotations" / "instances_val2014.json")
    partners = {a.name: b.name for pair in GROUPS for a, b in (pair, pair[::-1])}
    for entry in pope_entries("adversarial"):
        if entry["label"] == "no":
            assert partners[asked_object(entry)] in objects[image_id(entry["image"])]


@pytest.mark.usefixtures("font")
def test_annotations_are_what_the_seed_gives() -> None:
    scenes = [sample_scene("val", index) for index in range(IMAGES)]
    assert read("instances") == json.loads(json.dumps(instances(scenes)))
    assert read("captions") == json.loads(json.dumps(captions(scenes)))
    for name, rows in pope(scenes[:POPE_IMAGES]).items():
        assert rows == pope_entries(name)
