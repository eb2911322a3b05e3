import json
from pathlib import Path

import pytest

from revisit.evaluation.captioner import Answer
from revisit.evaluation.evaluate import evaluate
from revisit.evaluation.results.result import read_result
from revisit.evaluation.run import Place, Run


class Scripted:
    """Answers by the question and whether there is an image; keeps what it was asked."""

    settings = {"prompt": "v1"}  # noqa: RUF012

    def __init__(self, says):
        self.says, self.asked = says, []

    def answer(self, images, questions):
        seen = [None if image is None else image.size for image in images]
        self.asked += zip(seen, questions, strict=True)
        return [Answer(self.says(*each), 1) for each in zip(seen, questions, strict=True)]


@pytest.fixture
def run(tmp_path):
    """Runs a benchmark with a function (size of the image or None, question) -> answer; returns
    the captioner, the saved result and the same as a comparison reads it."""

    def run(benchmark, says, status=0):
        captioner = Scripted(says)
        place = Place(device="cpu", dtype="float32", batch_size=3)
        out = tmp_path / "out"
        whole = Run(model_path="tiny", benchmark=benchmark, place=place, output_path=out)
        assert evaluate([whole], lambda run: captioner, lambda path: "float32") == status
        path = Path(out) / f"{benchmark.name}.json"
        return captioner, json.loads(path.read_text()), read_result(path)

    return run
