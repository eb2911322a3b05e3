"""The objects of COCO that images show and captions name."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks.objects.coco import (
    annotation_pairs,
    fingerprints,
    read_instances,
    read_references,
)
from revisit.evaluation.benchmarks.objects.lemmas import Lemmatizer
from revisit.evaluation.benchmarks.objects.lexicon import DOUBLE_WORDS, OBJECT_OF, OBJECTS
from revisit.evaluation.files import read_json, sha256, write_json

Objects = Mapping[int, Collection[str]]
"""Ground truth: image id -> names of the objects in the image."""


def object_words(lemmas: Sequence[str]) -> tuple[list[str], int]:
    """The words of a caption that name objects, in order, and the number of all its words."""
    words = []
    position = 0
    while position < len(lemmas):
        double = DOUBLE_WORDS.get(" ".join(lemmas[position : position + 2]))
        words.append(double or lemmas[position])
        position += 2 if double else 1
    # The seat of a toilet is no chair.
    dropped = {"seat"} if "toilet" in words else set()
    return [word for word in words if word in OBJECT_OF and word not in dropped], len(words)


def mentions(caption: str, truth: set[str], lemmatize: Lemmatizer) -> tuple[dict[str, Any], int]:
    """The objects that a caption names, as results keep them, and its number of words."""
    words, length = object_words(lemmatize(caption))
    named = [OBJECT_OF[word] for word in words]
    return {
        "caption": caption,
        "words": words,
        "node_words": named,
        "hallucinated": [pair for pair in zip(words, named, strict=True) if pair[1] not in truth],
        "gt_objects": sorted(truth),
    }, length


def count(sentence: Mapping[str, Any], length: int) -> tuple[int, ...]:
    """The counts of a caption: 1, whether a word is hallucinated, hallucinated words, object words,
    true objects named, true objects, words."""
    wrong, truth = len(sentence["hallucinated"]), sentence["gt_objects"]
    found = len(set(truth).intersection(sentence["node_words"]))
    return 1, wrong > 0, wrong, len(sentence["words"]), found, len(truth), length


def ground_truth(annotations: Path, lemmatize: Lemmatizer) -> dict[int, set[str]]:
    """Image id -> objects, from every pair of instances and captions files of `annotations`."""
    from tqdm import tqdm

    objects: dict[int, set[str]] = {}
    for instances, captions in annotation_pairs(annotations):
        for image, names in read_instances(instances).items():
            objects.setdefault(image, set()).update(names)
        for image, references in tqdm(
            read_references(captions).items(), captions.name, unit=" images", disable=None
        ):
            for reference in references:
                words, _ = object_words(lemmatize(reference))
                objects.setdefault(image, set()).update(OBJECT_OF[word] for word in words)
    return objects


def load_objects(
    annotations: Path | None, cache: Path | None, lemmatizer: str, lemmatize: Lemmatizer
) -> tuple[Objects, dict[str, Any]]:
    """The ground truth, and the record of where it came from.

    From the cache where there is one, else from the annotations, which the cache is then written
    from. A cache that says which lemmatizer and annotations made it is used with no others.
    """
    if cache is not None and cache.exists():
        return _read_cache(cache, annotations, lemmatizer)
    if annotations is None:
        missing = "neither --coco_path nor --cache is given"
        if cache is not None:
            missing = (
                f"the cache {cache} does not exist and no --coco_path is given to make it from"
            )
        raise EvaluationError(f"{missing}; --coco_path is the `annotations` folder of COCO 2014")
    source = fingerprints(annotations)
    objects = ground_truth(annotations, lemmatize)
    if cache is not None:
        named = {str(image): sorted(names) for image, names in objects.items()}
        write_json(cache, {"lemmatizer": lemmatizer, "source": source, "objects": named})
    return objects, {"annotations": str(annotations), "source": source}


def _read_cache(
    path: Path, annotations: Path | None, lemmatizer: str
) -> tuple[Objects, dict[str, Any]]:
    data = read_json(path)
    entries = data.get("objects") if isinstance(data, dict) else None
    if not isinstance(entries, dict):
        raise EvaluationError(f'{path} is not a cache of objects: {{"objects": {{"<id>": [...]}}}}')
    for image, names in entries.items():
        if not image.isdecimal() or not isinstance(names, list) or not set(names) <= set(OBJECTS):
            raise EvaluationError(f"{path}: image {image!r}: {names!r} are not objects of COCO")
    remedy = "remove the cache, to have it made again, or name another one"
    made_with = data.get("lemmatizer", lemmatizer)
    if made_with != lemmatizer:
        raise EvaluationError(
            f"{path} was made with --lemmatizer {made_with}, not {lemmatizer}: {remedy}"
        )
    source = data.get("source")
    if annotations is not None and source is not None and source != fingerprints(annotations):
        raise EvaluationError(f"{path} was not made from the annotations {annotations}: {remedy}")
    record = {"cache": str(path), "sha256": sha256(path), "source": source}
    return {int(image): names for image, names in entries.items()}, record
