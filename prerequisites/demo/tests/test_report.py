"""What the report is made of: the rule of the setting, the questions, the picture's marks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import examples
from choose_setting import ALLOWED_LOSS, ALLOWED_REPEATS, choose
from grounding import hits
from html_report import grounding, write_page
from jobs import COCO, FAMILIES, decoders, folders, result_file
from revisit.commands.main import main as program
from revisit.evaluation.benchmarks import chair
from revisit.evaluation.benchmarks.objects.lemmas import LEMMATIZERS
from scenes import THINGS, coverage, sample_scene
from sheet import GRID, words


def entry(chairs: float, recall: float, twice: float) -> dict[str, float]:
    return {"CHAIRs": chairs, "Recall": recall, "twice": twice}


def test_the_rule_takes_the_lowest_chairs_that_costs_neither_recall_nor_repeats() -> None:
    greedy = entry(0.5, 0.9, 0.01)
    forgetful = entry(0.1, 0.9 - 2 * ALLOWED_LOSS, 0.01)
    stammering = entry(0.1, 0.9, 0.01 + 2 * ALLOWED_REPEATS)
    good, equal, weak = entry(0.3, 0.9, 0.01), entry(0.3, 0.95, 0.0), entry(0.4, 0.9, 0.01)
    assert choose(greedy, [forgetful, weak, stammering, good, equal]) is good
    with pytest.raises(SystemExit, match="no setting is allowed"):
        choose(greedy, [forgetful, stammering])


def test_words_have_the_token_that_they_begin_with() -> None:
    texts = ["We", "can", "see", "a", "dog", ",", "a", "teddy", "bear", ",", "a", "dog", "."]
    steps: list[dict[str, Any]] = [
        {
            "text": text,
            "plain": "cat",
            "changed": index == 7,
            "patch": [0, index // 8, index % 8],
            "layer": 4,
            "candidates": 2,
            "divergence": 0.1,
        }
        for index, text in enumerate(texts)
    ]
    found = words("We can see a dog, a teddy bear, a dog.", [*steps, {"text": ""}])
    assert [word.text for word in found] == texts
    tokens = [word.tokens[0] for word in found]
    assert [token.step and token.step.vision_token for token in tokens] == list(range(13))
    assert [word.instead for word in found] == [""] * 7 + ["cat"] + [""] * 5


def scored(captions: list[str], truth: list[list[str]]) -> chair.Score:
    pairs = enumerate(zip(captions, truth, strict=True))
    texts, objects = {}, {}
    for number, (text, there) in pairs:
        texts[number], objects[number] = text, there
    return chair.score(texts, objects, LEMMATIZERS["noun"]())


def test_the_examples_are_the_first_of_their_kind() -> None:
    dog = ["dog"]
    scenes = [
        ("A dog and a cat.", "A dog.", dog),  # one object only is gone
        ("A dog, a cat, a cup.", "A cat.", dog),  # one is left
        ("A dog, a cat, a cup.", "A beach.", ["dog", "chair"]),  # one is no longer named
        ("A dog, a cat, a cup.", "A puppy.", dog),  # helps
        ("A dog.", "A dog, a dog.", dog),  # same
        ("A dog.", "A beach.", dog),  # fails
        ("A dog.", "A cat.", dog),
        ("A cat.", "A cat.", dog),
    ]
    greedy = scored([each[0] for each in scenes], [each[2] for each in scenes])
    refined = scored([each[1] for each in scenes], [each[2] for each in scenes])
    assert examples.choose(greedy, refined) == [("helps", 3), ("same", 4), ("fails", 5)]
    assert "fewer errors in 3, as many in 3, more in 2" in examples.about(greedy, refined)


@pytest.mark.usefixtures("font")
def test_a_hit_is_a_patch_that_shows_the_object_of_the_word() -> None:
    shown = coverage(sample_scene("val", 0), GRID)
    thing = int(shown.min())
    on_it, off_it = np.argwhere(shown == thing)[0], np.argwhere(shown != thing)[0]
    absent = next(each for index, each in enumerate(THINGS) if index not in shown)
    word = THINGS[thing].name.split()[0]
    steps = [
        {"text": word, "patch": [0, *on_it.tolist()]},
        {"text": word, "patch": [0, *off_it.tolist()]},
        {"text": absent.name.split()[0], "patch": [0, 0, 0]},
        {"text": "and", "patch": [0, 0, 0]},
    ]
    found = hits([{"image_id": 1, "steps": steps}])
    chance = float((shown == thing).mean())
    assert found.tolist() == [[1.0, chance], [0.0, chance]]


def test_the_docs_tell_where_chosen_tokens_lie() -> None:
    head, *rows = grounding()
    assert head == ["model", "decoder", "object words", "on the object", "chance"]
    assert {(row[0], row[1].split()[1].strip(",")) for row in rows} == {
        (model, layers) for model in ("LLaVA-1.5", "Qwen2.5-VL") for layers in ("last", "all")
    }
    assert all(0 <= float(row[3].strip("%")) <= 100 for row in rows)


def test_the_page_tells_of_each_family_what_was_searched_and_where_tokens_lie(
    tmp_path: Path,
) -> None:
    pytest.importorskip("matplotlib")
    out = folders(tmp_path)
    for family, folder in out.items():
        for way in decoders(family):
            text = "A dog and a vase." if way.slug == "greedy" else "A dog."
            captions = result_file(way, folder).with_name("captions.jsonl")
            captions.parent.mkdir()
            lines = [json.dumps({"image_id": image, "caption": text}) for image in (2, 1)]
            captions.write_text("\n".join(lines), encoding="utf-8")
            record = {"settings": {"data_path": str(COCO / "val2014")}, "images": []}
            captions.with_name("captions.jsonl.run.json").write_text(json.dumps(record))
            flags = ["--coco_path", str(COCO / "annotations"), "--lemmatizer", "noun"]
            flags += ["--save_path", str(result_file(way, folder))]
            assert program(["score", "chair", "--cap_file", str(captions), *flags]) == 0
    write_page(out, tmp_path / "demo.html")
    page = (tmp_path / "demo.html").read_text("utf-8")
    for family in FAMILIES:
        assert f'-title">{family.name}</h2>' in page
        searched = json.loads(family.setting.read_text("utf-8"))
        greedy = f"The dashed line: greedy, {100 * searched['greedy']['CHAIRs']:.1f}"
        assert f"on the {searched['images']} scenes of dev" in page and greedy in page
    assert all(f"<td>{row[3]}</td>" in page for row in list(grounding())[1:])
