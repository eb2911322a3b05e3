"""`revisit eval --engine openai`: images that the server refuses, and requests that it refuses."""

import base64
import io
import json

import pytest

pytest.importorskip("openai")

from PIL import Image

from openai_server import Handler, serving
from revisit.commands import eval as command
from revisit.evaluation.benchmarks.chair import read_captions


def choice(text, reason="stop", **more):
    message = {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "finish_reason": reason, "message": message, **more}]}


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The command on ten images of 4 to 13 rows, and a server that refuses some requests."""
    images = tmp_path / "val2014"
    images.mkdir()
    for number in range(4, 14):
        Image.new("RGB", (9, number)).save(images / f"COCO_val2014_{number:012d}.png")

    def run(refuses, status=400, said=None):
        def answer(handler, asked):
            url = asked["messages"][0]["content"][0]["image_url"]["url"]
            image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
            if refuses(image.height):
                error = {"message": "aspect ratio", "type": "BadRequestError", "code": status}
                return handler.whole(status, said or {"error": error})
            handler.whole(200, choice(f"{image.height} rows"))

        monkeypatch.setattr(Handler, "right", answer)
        monkeypatch.setattr("revisit.commands.engines.openai._RETRIES", 0)
        out = tmp_path / "out" / "captions.jsonl"
        with serving() as server:
            flags = ["--model", "tiny", "--data_path", str(images), "--output_path", str(out)]
            flags += ["--engine", "openai", "--base_url", server.base_url, "--device", "cpu"]
            return command.main(["chair", *flags]), out

    return run


def test_an_image_that_the_server_refuses_is_listed_and_the_others_are_answered(served):
    status, out = served(lambda rows: rows in (5, 8))
    assert status == 1
    assert read_captions(out) == {n: f"{n} rows" for n in (*range(4, 14),) if n not in (5, 8)}
    record = json.loads(out.with_name("captions.jsonl.run.json").read_text())
    assert sorted(entry["image_id"] for entry in record["failed"]) == [5, 8]
    assert "aspect ratio" in record["failed"][0]["error"]


@pytest.mark.parametrize("status", [400, 500])
def test_a_server_that_refuses_every_image_ends_the_run(served, capsys, status):
    assert served(lambda rows: True, status)[0] == 2
    assert f"the server answers {status}: " in capsys.readouterr().err


def test_a_busy_server_is_no_fault_of_the_images(served, capsys):
    assert served(lambda rows: rows == 5, 429)[0] == 2
    assert "the server answers 429" in capsys.readouterr().err


UNFINISHED = {
    "ended an answer by 'error': it lost a step": choice(
        "5 ro", "error", stop_reason="it lost a step"
    ),
    "ended an answer by 'abort'": choice("5 ro", "abort"),
    "ended an answer by None": choice("5 ro", None),
    "ended an answer by 'length', without text": choice(None, "length"),
    "gives no answer: {'message': 'no room'}": {"error": {"message": "no room"}},
}


@pytest.mark.parametrize("why", UNFINISHED)
def test_a_text_that_was_cut_off_is_no_answer(served, why):
    status, out = served(lambda rows: rows == 5, 200, UNFINISHED[why])
    assert status == 1
    assert sorted(read_captions(out)) == [4, *range(6, 14)]
    (entry,) = json.loads(out.with_name("captions.jsonl.run.json").read_text())["failed"]
    assert entry["image_id"] == 5 and why in entry["error"]
