"""COCO's images and annotations: which images to caption, and what they show."""

import random
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from revisit.evaluation import EvaluationError
from revisit.evaluation.answer_files import Form, read_answers
from revisit.evaluation.benchmarks.objects.lexicon import OBJECTS
from revisit.evaluation.files import read_json, sha256

_SUFFIXES = {".jpg", ".jpeg", ".png"}


def image_id(name: str) -> int:
    """The image id in a file name of COCO: `COCO_val2014_000000000123.jpg` -> 123."""
    digits = re.search(r"(\d+)$", Path(name).stem)
    if digits is None:
        raise EvaluationError(
            f"image file {name} does not end in an image id; COCO's names look like "
            "COCO_val2014_000000000123.jpg"
        )
    return int(digits[1])


def sample_images(folder: Path, count: int, seed: int) -> list[str]:
    """File names of `count` images of the folder, drawn without replacement; all if it has fewer.

    The sample and its order depend on `seed` and the names in the folder only.

    Raises:
        EvaluationError: no folder of images, a name without an image id, or two images with one.
    """
    if not folder.is_dir():
        raise EvaluationError(f"--data_path {folder} is not a folder of images")
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    name_of: dict[int, str] = {}
    for name in names:
        other = name_of.setdefault(image_id(name), name)
        if other != name:
            raise EvaluationError(f"{folder} holds two images with one id: {other} and {name}")
    if not names:
        raise EvaluationError(f"--data_path {folder} holds no images (.jpg, .jpeg, .png)")
    return random.Random(seed).sample(names, min(count, len(names)))


def annotation_pairs(path: Path) -> list[tuple[Path, Path]]:
    """The `(instances, captions)` files to read, sorted by name.

    `path` is a folder, of which every `instances_*2014.json` is taken, or one instances file.
    """
    if path.is_dir():
        files = sorted(path.glob("instances_*2014.json"))
        if not files:
            raise EvaluationError(
                f"{path} holds no instances_*2014.json; give the `annotations` folder of COCO 2014"
            )
    elif not path.is_file():
        raise EvaluationError(f"annotations not found: {path}")
    elif not path.name.startswith("instances_"):
        raise EvaluationError(f"{path} is not an instances file of COCO (instances_val2014.json)")
    else:
        files = [path]
    pairs = [
        (file, file.with_name(file.name.replace("instances", "captions", 1))) for file in files
    ]
    for instances, captions in pairs:
        if not captions.is_file():
            raise EvaluationError(f"{instances} has no {captions.name} beside it")
    return pairs


def read_instances(path: Path) -> dict[int, set[str]]:
    """Image id -> names of the objects annotated in it, for every image of an instances file."""
    data = _read(path, "instances", "images", "annotations", "categories")
    try:
        names = {category["id"]: category["name"] for category in data["categories"]}
        objects: dict[int, set[str]] = {image["id"]: set() for image in data["images"]}
        for annotation in data["annotations"]:
            objects[annotation["image_id"]].add(names[annotation["category_id"]])
    except (KeyError, TypeError) as error:
        raise _not_coco(path, "instances", repr(error)) from error
    strangers = sorted(set(names.values()) - set(OBJECTS))
    if strangers:
        raise _not_coco(path, "instances", f"COCO has no category {strangers[0]!r}")
    return objects


def read_references(path: Path) -> dict[int, list[str]]:
    """Image id -> its reference captions, for every image of a captions file."""
    data = _read(path, "captions", "images", "annotations")
    try:
        references: dict[int, list[str]] = {image["id"]: [] for image in data["images"]}
        for annotation in data["annotations"]:
            references[annotation["image_id"]].append(str(annotation["caption"]))
    except (KeyError, TypeError) as error:
        raise _not_coco(path, "captions", repr(error)) from error
    return references


def fingerprints(annotations: Path) -> dict[str, str]:
    """The sha256 of each file of the annotations, by its name."""
    return {file.name: sha256(file) for pair in annotation_pairs(annotations) for file in pair}


def check_covered(ids: Collection[int], annotations: Path) -> None:
    """`EvaluationError` unless reference captions of every image are among the annotations."""
    known: set[int] = set()
    for _, captions in annotation_pairs(annotations):
        known.update(read_references(captions))
    strangers = sorted(set(ids) - known)
    if strangers:
        raise EvaluationError(
            f"{len(strangers)} of {len(ids)} images are not in the annotations {annotations} "
            f"(image id {strangers[0]}, for one): do the images and annotations belong together?"
        )


def read_captions(
    path: Path, image_id_key: str = "image_id", caption_key: str = "caption"
) -> dict[int, str]:
    """Image id -> caption, from JSON Lines or a JSON list, in the file's order.

    Raises `EvaluationError` as `read_answers`, and for an image id that is no whole number.
    """
    captions: dict[int, str] = {}
    form = Form(path.name, (image_id_key,), caption_key, "caption")
    for image, caption in read_answers(path, form).items():
        if not str(image).isdecimal():
            raise EvaluationError(f"{path}: {image_id_key} {image!r} is not a whole number")
        captions[int(str(image))] = caption
    return captions


def check_captioned(
    record: Mapping[str, Any], images: Collection[int], source: Mapping[str, str] | None, what: Any
) -> None:
    """Raises `EvaluationError` where the record of a run says that it captioned other images, or
    was checked against other annotations than these, by their files' sha256."""
    asked = {image_id(name) for name in record.get("images", [])}
    if asked and (strangers := set(images) - asked):
        raise EvaluationError(
            f"{what} has captions of {len(strangers)} images that its run was not asked about "
            f"(image id {min(strangers)}, for one): it and its record (.run.json) do not belong "
            "together; move the record away to score the captions without it"
        )
    made_with = record.get("annotations", {})
    for name, digest in (source or {}).items():
        if made_with.get(name, digest) != digest:
            raise EvaluationError(
                f"{what} was made for other annotations: its run saw a {name} of sha256 "
                f"{made_with[name][:12]}..., and this one's is {digest[:12]}...; score it against "
                "the annotations of its images"
            )


def _read(path: Path, kind: str, *keys: str) -> Any:
    data = read_json(path)
    for key in keys:
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise _not_coco(path, kind, f"it has no list {key!r}")
    return data


def _not_coco(path: Path, kind: str, why: str) -> EvaluationError:
    return EvaluationError(f"{path} is not a {kind} file of COCO: {why}")
