"""CHAIR: which objects captions name that their images do not show, and which they miss.

Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018, section 3. A caption's
words are brought to lemmas, those that name one of COCO's 80 objects are its object words, and an
object word is hallucinated where its object is not in the image's ground truth: the annotated
instances united with the objects that the five reference captions name.

=======  ====================================================================================
CHAIRs   captions with a hallucinated word / captions
CHAIRi   hallucinated words / object words; 0 where no caption has an object word
Recall   ground-truth objects that their caption names / ground-truth objects, summed over images
F1       harmonic mean of the object precision, 1 - CHAIRi, and Recall
Len      mean number of words of a caption, two-word objects counting once, / 100
=======  ====================================================================================
"""

import argparse
import json
import platform
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from revisit import __version__
from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks.objects.coco import (
    annotation_pairs,
    fingerprints,
    image_id,
    read_instances,
    read_references,
)
from revisit.evaluation.benchmarks.objects.lemmas import LEMMATIZERS, Lemmatizer
from revisit.evaluation.benchmarks.objects.lexicon import DOUBLE_WORDS, OBJECT_OF, OBJECTS
from revisit.evaluation.files import read_json, read_json_lines, read_run, sha256, write_json
from revisit.evaluation.results.bootstrap import paired_intervals, ratio

METRICS = ("CHAIRs", "CHAIRi", "Recall", "F1", "Len")

SAME = ("question", "max_new_tokens")
"""What a run was told to ask and to write; it moves the numbers more than a decoder does."""

Objects = Mapping[int, Collection[str]]
"""Ground truth: image id -> names of the objects in the image."""

# Columns of a score's counts.
_CAPTIONS, _HALLUCINATING, _HALLUCINATED, _OBJECT_WORDS, _FOUND, _TRUE, _WORDS = range(7)


class Score(NamedTuple):
    """What `score` found, image by image in the order of the captions."""

    image_ids: list[int]
    counts: NDArray[np.int64]
    """(images, 7): what `metrics` and `paired_bootstrap` sum."""
    sentences: list[dict[str, Any]]
    """Of each caption: `image_id`, `caption`, `words` (object words), `node_words` (the objects
    they name), `hallucinated` (pairs of a word and its object), `gt_objects`, `metrics`."""


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


def score(captions: Mapping[int, str], objects: Objects, lemmatize: Lemmatizer) -> Score:
    """Find the object words of each caption, and which of them are hallucinated.

    Args:
        captions: image id -> caption.
        objects: ground truth of, at least, the images in `captions`.
        lemmatize: one of `revisit.evaluation.benchmarks.objects.lemmas.LEMMATIZERS`.

    Raises:
        EvaluationError: no captions, or an image without ground truth.
    """
    if not captions:
        raise EvaluationError("there are no captions to score")
    strangers = [image for image in captions if image not in objects]
    if strangers:
        raise EvaluationError(
            f"{len(strangers)} of {len(captions)} captions are of images without ground truth "
            f"(image id {strangers[0]}, for one): do the captions and annotations belong together?"
        )
    counts, sentences = [], []
    for image, caption in tqdm(
        captions.items(), "scoring", unit=" captions", disable=None, leave=False
    ):
        count, sentence = _score_one(caption, set(objects[image]), lemmatize)
        counts.append(count)
        sentences.append({"image_id": image, **sentence})
    return Score(list(captions), np.array(counts, np.int64), sentences)


def _score_one(
    caption: str, truth: set[str], lemmatize: Lemmatizer
) -> tuple[tuple[int, ...], dict[str, Any]]:
    words, length = object_words(lemmatize(caption))
    named = [OBJECT_OF[word] for word in words]
    hallucinated = [pair for pair in zip(words, named, strict=True) if pair[1] not in truth]
    wrong, found = len(hallucinated), len(truth.intersection(named))
    counts = (1, bool(hallucinated), wrong, len(words), found, len(truth), length)
    return counts, {
        "caption": caption,
        "words": words,
        "node_words": named,
        "hallucinated": hallucinated,
        "gt_objects": sorted(truth),
        "metrics": metrics(np.array(counts)),
    }


def metrics(totals: NDArray[np.int64]) -> dict[str, float]:
    """The metrics of the module's docstring, as fractions of 1, from counts (7,) summed."""
    return {name: float(value) for name, value in zip(METRICS, measure(totals), strict=True)}


def paired_bootstrap(
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, dict[str, float]]:
    """Percentile intervals of the differences `second - first` of two captions of each image.

    Images are drawn with replacement, both captions of an image together.

    Args:
        first, second: counts (images, 7) of two scores, row by row of the same image.
        resamples: how many times the images are drawn.
        seed: of the draws.
        level: the part of the draws inside an interval.

    Returns:
        For each metric `{"difference": ..., "low": ..., "high": ...}`, fractions of 1.
    """
    found = paired_intervals(first, second, measure, resamples, seed, level)
    return {
        name: {"difference": float(difference), "low": float(low), "high": float(high)}
        for name, (difference, low, high) in zip(METRICS, found.T, strict=True)
    }


def measure(totals: NDArray[np.int64]) -> NDArray[np.float64]:
    """Counts (..., 7) -> metrics (5, ...)."""
    columns = np.moveaxis(totals, -1, 0)
    chair_s = ratio(columns[_HALLUCINATING], columns[_CAPTIONS])
    chair_i = ratio(columns[_HALLUCINATED], columns[_OBJECT_WORDS])
    recall = ratio(columns[_FOUND], columns[_TRUE])
    precision = 1 - chair_i
    f1 = ratio(2 * precision * recall, precision + recall)
    length = ratio(columns[_WORDS], 100 * columns[_CAPTIONS])
    return np.stack([chair_s, chair_i, recall, f1, length])


def read_captions(
    path: Path, image_id_key: str = "image_id", caption_key: str = "caption"
) -> dict[int, str]:
    """Image id -> caption, from JSON Lines, in the file's order; blank lines are skipped.

    Raises `EvaluationError`, with the line's number, for a line that is no JSON object with both
    keys, and for a second caption of an image.
    """
    captions: dict[int, str] = {}
    for where, entry in read_json_lines(path, f"captions {path}"):
        for key in (image_id_key, caption_key):
            if not isinstance(entry, dict) or key not in entry:
                raise EvaluationError(f"{where} has no key {key!r}")
        image, caption = str(entry[image_id_key]), entry[caption_key]
        if not image.isdecimal():
            raise EvaluationError(f"{where}: {image_id_key} {image!r} is not a whole number")
        if not isinstance(caption, str):
            raise EvaluationError(f"{where}: {caption_key} is not text")
        if int(image) in captions:
            raise EvaluationError(f"{where} is a second caption of image {image}; keep one")
        captions[int(image)] = caption
    if not captions:
        raise EvaluationError(f"{path} holds no captions")
    return captions


def ground_truth(annotations: Path, lemmatize: Lemmatizer) -> dict[int, set[str]]:
    """Image id -> objects, from every pair of instances and captions files of `annotations`."""
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
        missing = (
            "neither --coco_path nor --cache is given"
            if cache is None
            else (f"the cache {cache} does not exist and no --coco_path is given to make it from")
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


def check_run(
    run: Any, images: Collection[int], source: Mapping[str, str] | None, captions: object
) -> None:
    """Raises `EvaluationError` where the record of a run says that it captioned other images, or
    was checked against other annotations than these, by their files' sha256."""
    if not isinstance(run, dict):
        return
    asked = {image_id(name) for name in run.get("images", [])}
    if asked and (strangers := set(images) - asked):
        raise EvaluationError(
            f"{captions} has captions of {len(strangers)} images that its run was not asked about "
            f"(image id {min(strangers)}, for one): it and its record (.run.json) do not belong "
            "together; move the record away to score the captions without it"
        )
    made_with = run.get("annotations", {})
    for name, digest in (source or {}).items():
        if made_with.get(name, digest) != digest:
            raise EvaluationError(
                f"{captions} was made for other annotations: its run saw a {name} of sha256 "
                f"{made_with[name][:12]}..., and this one's is {digest[:12]}...; score it against "
                "those of its images"
            )


def _table(rows: Mapping[str, Mapping[str, float]]) -> str:
    width = max(map(len, rows))
    lines = [f"{'':{width}}" + "".join(f"{name:>8}" for name in METRICS)]
    for label, values in rows.items():
        lines.append(f"{label:{width}}" + "".join(f"{100 * values[m]:8.1f}" for m in METRICS))
    return "\n".join(lines)


def _interval_lines(intervals: Mapping[str, Mapping[str, float]]) -> str:
    return "\n".join(
        f"  {name:7}{100 * i['difference']:+8.2f}   [{100 * i['low']:+.2f}, {100 * i['high']:+.2f}]"
        for name, i in intervals.items()
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="revisit-chair",
        description="Score captions of COCO images by CHAIR: how many of the objects that they "
        "name are not in the image, and how many of the image's objects they name.",
    )
    add = parser.add_argument
    add("--cap_file", type=Path, required=True, metavar="JSONL", help="captions, one JSON a line")
    add("--image_id_key", default="image_id", help="key of the image id (default: %(default)s)")
    add("--caption_key", default="caption", help="key of the caption (default: %(default)s)")
    add(
        "--coco_path",
        type=Path,
        metavar="FOLDER",
        help="annotations of COCO 2014: every pair instances_*2014.json, captions_*2014.json in "
        "the folder is read",
    )
    add(
        "--cache",
        type=Path,
        metavar="JSON",
        help="ground-truth objects; read where it exists, else made from --coco_path and written",
    )
    add("--save_path", type=Path, metavar="JSON", help="write metrics and every caption's objects")
    add(
        "--lemmatizer",
        choices=sorted(LEMMATIZERS),
        default="nltk",
        help="nltk: the published pipeline, needs NLTK's data. noun: needs no data, reads every "
        "word as a noun (default: %(default)s)",
    )
    add(
        "--compare",
        type=Path,
        metavar="JSONL",
        help="other captions of the same images: their scores too, and 95%% intervals of the "
        "differences (theirs minus those of --cap_file)",
    )
    return parser


def _result(name: Path, captions: Mapping[int, str], found: Score) -> dict[str, Any]:
    return {
        "overall_metrics": metrics(found.counts.sum(0)),
        "captions": {
            "file": str(name),
            "sha256": sha256(name),
            "count": len(captions),
            "run": read_run(name),
        },
    }


def _run(args: argparse.Namespace) -> None:
    files = [args.cap_file] + ([args.compare] if args.compare else [])
    inputs = [file.resolve() for file in (*files, args.cache) if file]
    if args.save_path and args.save_path.resolve() in inputs:
        raise EvaluationError(f"--save_path {args.save_path} would overwrite an input")
    captions = [read_captions(file, args.image_id_key, args.caption_key) for file in files]
    alone = captions[0].keys() ^ captions[-1].keys()
    if alone:
        raise EvaluationError(
            f"{args.cap_file} and {args.compare} caption different images: {len(alone)} images "
            f"are in one of them only (image id {min(alone)}, for one)"
        )
    lemmatize = LEMMATIZERS[args.lemmatizer]()
    objects, truth = load_objects(args.coco_path, args.cache, args.lemmatizer, lemmatize)
    runs = [read_run(file) for file in files]
    for file, run, ids in zip(files, runs, captions, strict=True):
        check_run(run, ids, truth["source"], file)
    _check_same(runs, files)
    scores = [
        score({image: c[image] for image in captions[0]}, objects, lemmatize) for c in captions
    ]
    results = [_result(*each) for each in zip(files, captions, scores, strict=True)]
    intervals = paired_bootstrap(scores[0].counts, scores[1].counts) if args.compare else None
    if args.save_path:
        write_json(
            args.save_path,
            results[0]
            | {"settings": _settings(args.lemmatizer, truth)}
            | ({"comparison": results[1] | {"difference": intervals}} if args.compare else {})
            | {"sentences": scores[0].sentences},
        )
    print(f"{len(captions[0])} captions, lemmatizer {args.lemmatizer}; percent, Len in words")
    print(_table({r["captions"]["file"]: r["overall_metrics"] for r in results}))
    for each in results:
        _warn_of_gaps(**each["captions"])
    if intervals:
        print("difference, 95% interval (bootstrap over images)")
        print(_interval_lines(intervals))


def _check_same(runs: Sequence[Any], files: Sequence[Path]) -> None:
    """Raises `EvaluationError` where two runs differ in what moves the numbers by itself."""
    settings = [run.get("settings", {}) if isinstance(run, dict) else {} for run in runs]
    for name in SAME:
        found = {json.dumps(each[name]) for each in settings if name in each}
        if len(found) > 1:
            raise EvaluationError(
                f"{' and '.join(map(str, files))} cannot be compared: their runs' {name} differ, "
                f"{' and '.join(sorted(found))}"
            )


def _warn_of_gaps(file: str, count: int, run: Any, **_: Any) -> None:
    if isinstance(run, dict) and count < len(run.get("images", [])):
        print(
            f"WARNING: {file} has {count} of the {len(run['images'])} captions of its run; "
            f"{len(run.get('failed', []))} images could not be read",
            file=sys.stderr,
        )


def _settings(lemmatizer: str, truth: Mapping[str, Any]) -> dict[str, Any]:
    versions = {name: version(name) for name in ("nltk", "numpy")}
    versions |= {"python": platform.python_version(), "revisit": __version__}
    return {"lemmatizer": lemmatizer, "ground_truth": truth, "versions": versions}


def main(argv: Sequence[str] | None = None) -> int:
    """The console script `revisit-chair`. Returns 0, or 2 where the input is bad."""
    args = _parser().parse_args(argv)
    try:
        _run(args)
    except EvaluationError as error:
        print(f"revisit-chair: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
