import json

import pytest

from revisit.evaluation.captioner import Answer
from revisit.evaluation.evaluate import evaluate
from revisit.evaluation.results.result import read_result
from revisit.evaluation.run import Place, Run


class Scripted:
    """Answers by the question and the size of the image; keeps both."""

    settings = {"prompt": "v1"}  # noqa: RUF012

    def __init__(self, answer):
        self.answer_one, self.asked = answer, []

    def answer(self, images, questions):
        sizes = [None if image is None else image.size for image in images]
        pairs = list(zip(sizes, questions, strict=True))
        self.asked += pairs
        return [Answer(self.answer_one(*pair), 1) for pair in pairs]


@pytest.fixture
def run(tmp_path):
    """Runs a benchmark with a function (size of the image or None, question) -> answer; returns
    the captioner, the saved result, and the result as a comparison reads it."""

    def run(benchmark, answer):
        captioner = Scripted(answer)
        place = Place(device="cpu", dtype="float32", batch_size=3)
        out = tmp_path / "out"
        whole = Run(model_path="tiny", benchmark=benchmark, place=place, output_path=out)
        assert evaluate([whole], lambda run: captioner, lambda path: "float32") == 0
        path = out / f"{benchmark.name}.json"
        return captioner, json.loads(path.read_text()), read_result(path)

    return run
