"""Scenes of the embedded demo as data sets, and the tasks on them, as lmms-eval reads both."""

import json
import shutil
from pathlib import Path

from datasets import Dataset, Image

HERE = Path(__file__).parent
COCO = HERE.parents[2] / "prerequisites" / "demo" / "coco"
SCENES = 6
LONGEST = 40  # tokens of an answer
DESCRIBE = "Please describe this image in detail."
WITHOUT_IMAGE = 2  # this question of yes and no

TASK = """\
task: {name}
dataset_path: {kind}
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_visual: !function scoring.images
doc_to_text: question
doc_to_target: answer
generation_kwargs:
  max_new_tokens: {longest}
  temperature: 0
process_results: !function scoring.{score}
metric_list:
  - metric: {score}
    aggregation: mean
    higher_is_better: true
"""


def captions():
    """The first scenes, with a reference caption each."""
    annotations = json.loads((COCO / "annotations" / "captions_val2014.json").read_text())
    reference = {row["image_id"]: row["caption"] for row in annotations["annotations"]}
    return [
        {
            "question": DESCRIBE,
            "answer": reference[number],
            "image": str(COCO / "val2014" / f"COCO_val2014_{number:012d}.jpg"),
        }
        for number in range(1, SCENES + 1)
    ]


def questions():
    """A question of POPE about each of the first scenes, and one without an image."""
    lines = (COCO / "pope" / "random.jsonl").read_text().splitlines()
    rows = [
        {
            "question": row["text"],
            "answer": row["label"],
            "image": str(COCO / "val2014" / row["image"]),
        }
        for row in map(json.loads, lines[: 4 * SCENES : 4])
    ]
    rows.insert(
        WITHOUT_IMAGE, {"question": "Is there a dog in the image?", "answer": "no", "image": None}
    )
    return rows


def write_tasks(folder):
    """`demo_captions` on a parquet file that holds its images, `demo_questions` on JSON."""
    shutil.copy(HERE / "scoring.py", folder)
    table = Dataset.from_list(captions())
    inside = [{"bytes": Path(path).read_bytes(), "path": None} for path in table["image"]]
    table = table.remove_columns("image").add_column("image", inside)
    table.cast_column("image", Image()).to_parquet(folder / "captions.parquet")
    lines = (json.dumps(row) + "\n" for row in questions())
    (folder / "questions.json").write_text("".join(lines))
    for name, kind, file, score in (
        ("demo_captions", "parquet", "captions.parquet", "named"),
        ("demo_questions", "json", "questions.json", "right"),
    ):
        task = TASK.format(name=name, kind=kind, file=folder / file, score=score, longest=LONGEST)
        (folder / f"{name}.yaml").write_text(task)
