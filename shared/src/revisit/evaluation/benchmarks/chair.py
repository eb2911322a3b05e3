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

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from revisit import __version__
from revisit.evaluation import EvaluationError
from revisit.evaluation.answer_files import Form, read_record
from revisit.evaluation.benchmarks.benchmark import Benchmark, Columns, Counted, Section, Task
from revisit.evaluation.benchmarks.checks import check_whole
from revisit.evaluation.benchmarks.counting import Counts, as_counts, by_columns, ratio
from revisit.evaluation.benchmarks.objects.coco import (
    check_captioned,
    check_covered,
    fingerprints,
    image_id,
    read_captions,
    sample_images,
)
from revisit.evaluation.benchmarks.objects.lemmas import LEMMATIZERS, Lemmatizer
from revisit.evaluation.benchmarks.objects.truth import Objects, count, load_objects, mentions
from revisit.evaluation.files import sha256

METRICS = ("CHAIRs", "CHAIRi", "Recall", "F1", "Len")


class Score(NamedTuple):
    """The counts and sentences of captions, in the order of the captions."""

    image_ids: list[int]
    counts: Counts
    """(images, 7): summed over images, the counts of `metrics`."""
    sentences: list[dict[str, Any]]
    """Each has `image_id`, `caption`, `words` (object words), `node_words` (the objects they name),
    `hallucinated` (pairs of a word and its object), `gt_objects`, `metrics`."""


def score(captions: Mapping[int, str], objects: Objects, lemmatize: Lemmatizer) -> Score:
    """Find the object words of each caption, and which of them are hallucinated.

    Args:
        captions: image id -> caption.
        objects: ground truth of, at least, the images in `captions`.

    Raises `EvaluationError` where there are no captions, or an image has no ground truth.
    """
    from tqdm import tqdm

    if not captions:
        raise EvaluationError("there are no captions to score")
    if strangers := [image for image in captions if image not in objects]:
        raise EvaluationError(
            f"{len(strangers)} of {len(captions)} captions are of images without ground truth "
            f"(image id {strangers[0]}, for one): do the captions and annotations belong together?"
        )
    counts, sentences = [], []
    bar = tqdm(captions.items(), "scoring", unit=" captions", disable=None, leave=False)
    for image, caption in bar:
        sentence, length = mentions(caption, set(objects[image]), lemmatize)
        counts.append(count(sentence, length))
        sentence["metrics"] = metrics(counts[-1])
        sentences.append({"image_id": image, **sentence})
    return Score(list(captions), as_counts(counts), sentences)


def metrics(totals: Counts | Sequence[int]) -> dict[str, float]:
    """The metrics of the module's docstring, as fractions of 1, from counts (7,) summed."""
    return dict(zip(METRICS, measure(totals).tolist(), strict=True))


def _formulas(columns: Any) -> list[Any]:
    """The metrics of the module's docstring, as fractions of 1."""
    captions, hallucinating, wrong, words, found, true, length = columns
    chair_i, recall = ratio(wrong, words), ratio(found, true)
    precision = 1 - chair_i
    f1 = ratio(2 * precision * recall, precision + recall)
    chair_s, mean = ratio(hallucinating, captions), ratio(length, 100 * captions)
    return [chair_s, chair_i, recall, f1, mean]


measure = by_columns(_formulas)
"""Counts (..., 7), summed over images -> `METRICS` (5, ...)."""


def paired_bootstrap(first: Counts, second: Counts, **options: Any) -> dict[str, dict[str, float]]:
    """The intervals of the differences between two captions of each image, of their counts; see
    `named_intervals`."""
    from revisit.evaluation.results.bootstrap import named_intervals

    return named_intervals(METRICS, measure, first, second, **options)


def score_file(
    captions: Path,
    annotations: Path | None,
    lemmatizer: str,
    cache: Path | None = None,
    image_id_key: str = "image_id",
    caption_key: str = "caption",
) -> dict[str, Any]:
    """The result of a file of captions, as it is saved: metrics, their sources, every caption.

    `cache` has the objects of images; where it is not there, it is made from the annotations.

    Raises `EvaluationError` where something cannot be read, or does not belong together.
    """
    texts = read_captions(captions, image_id_key, caption_key)
    lemmatize = LEMMATIZERS[lemmatizer]()
    objects, truth = load_objects(annotations, cache, lemmatizer, lemmatize)
    record = read_record(captions)
    check_captioned(record, texts, truth["source"], captions)
    found = score(texts, objects, lemmatize)
    versions = {name: version(name) for name in ("nltk", "numpy")}
    versions |= {"python": platform.python_version(), "revisit": __version__}
    return {
        "benchmark": "chair",
        "overall_metrics": metrics(found.counts.sum(0)),
        "captions": {
            "file": str(captions),
            "sha256": sha256(captions),
            "count": len(texts),
            "run": record or None,
        },
        "settings": {"lemmatizer": lemmatizer, "ground_truth": truth, "versions": versions},
        "sentences": found.sentences,
    }


@by_columns
def _measure_twice(columns: Any) -> list[Any]:
    """The metrics, and the part of captions that name an object twice: the eighth column."""
    return [*_formulas(columns[:-1]), ratio(columns[-1], columns[0])]


COLUMNS = Columns(
    things="images",
    metrics=(*METRICS, "twice"),
    measure=_measure_twice,
    shown=("CHAIRs", "F1"),
    lower=frozenset(("CHAIRs", "CHAIRi", "twice")),
    unit="Percent; Len in words",
)


@dataclass(frozen=True, kw_only=True)
class Chair(Benchmark):
    """Describe a sample of COCO's images; CHAIR scores which objects the captions name.

    Args:
        data_path: folder of COCO's images (val2014).
        anno_path: annotations of COCO (the folder, or an instances file): checked before the run to
            cover the images.
        lemmatizer: score the captions too, with words read as published (nltk: needs NLTK's data),
            or all as nouns (noun) (default: no scoring).
        question: what the model is asked.
        num_eval_samples: images to draw.
    """

    name: ClassVar[str] = "chair"
    form: ClassVar[Form] = Form("captions.jsonl", ("image_id",), "caption", "image")
    columns: ClassVar[Columns] = COLUMNS

    anno_path: Path | None = None
    lemmatizer: Literal["nltk", "noun"] | None = None
    question: str = "Please describe this image in detail."
    num_eval_samples: int = 500

    def __post_init__(self) -> None:
        check_whole("num_eval_samples", self.num_eval_samples, 1)
        if self.lemmatizer is not None and self.anno_path is None:
            raise EvaluationError("--lemmatizer: scoring needs the annotations; give --anno_path")

    @property
    def prefix(self) -> str:  # captions were there first
        return ""

    @property
    def scored(self) -> bool:
        return self.lemmatizer is not None

    def sections(self, seed: int) -> list[Section]:
        """One: the sample of images. The annotations, where there are any, must cover it."""
        if self.lemmatizer is not None:
            LEMMATIZERS[self.lemmatizer]()
        sample = sample_images(self.data_path, self.num_eval_samples, seed)
        if self.anno_path is not None:
            check_covered([image_id(name) for name in sample], self.anno_path)
        settings = {"question": self.question, "num_eval_samples": self.num_eval_samples}
        return [Section("", self._tasks(sample), settings)]

    def resume(self, section: Section, record: dict[str, Any], answers: Path) -> list[Task]:
        """A rerun continues the sample it began, whatever the folder gained or lost since."""
        sample = record.setdefault("images", [task.image for task in section.tasks])
        if self.anno_path is not None:
            source = fingerprints(self.anno_path)
            check_captioned(record, [], source, answers)
            record.setdefault("annotations", source)
        return self._tasks(sample)

    def _tasks(self, sample: Sequence[str]) -> list[Task]:
        return [Task(image_id(name), name, self.question) for name in sample]

    def score(self, section: Section, answers: Path) -> dict[str, Any]:
        assert self.lemmatizer is not None
        return score_file(answers, self.anno_path, self.lemmatizer)

    @staticmethod
    def counted(saved: Mapping[str, Any]) -> Counted:
        sentences = sorted(saved["sentences"], key=lambda each: int(each["image_id"]))
        if not sentences:
            raise ValueError("no captions")
        images = [each["image_id"] for each in sentences]
        record = saved["captions"]["run"] or {}
        source = saved["settings"].get("ground_truth", {}).get("source")
        check_captioned(record, [int(image) for image in images], source, "what was scored")
        return Counted(
            things=images,
            counts=as_counts([_saved(each) for each in sentences]),
            truth={"the images' objects": [each["gt_objects"] for each in sentences]},
            conditions={"lemmatizer": saved["settings"]["lemmatizer"]},
            record=record,
        )


def _saved(sentence: Mapping[str, Any]) -> tuple[int, ...]:
    """The counts of a caption in a result, and whether it names an object twice."""
    named, length = sentence["node_words"], round(100 * sentence["metrics"]["Len"])
    return *count(sentence, length), len(set(named)) < len(named)
