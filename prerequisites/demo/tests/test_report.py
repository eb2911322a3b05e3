"""What the report is made of: the rule of the setting, the questions, the picture's marks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from choose_setting import ALLOWED_LOSS, ALLOWED_REPEATS, choose
from grounding import hits
from html_report import grounding, write_page
from jobs import COCO, FAMILIES, decoders, folders, result_file
from revisit.commands.main import main as program
from scenes import THINGS, coverage, font_path, sample_scene
from sheet import GRID, changed_words


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


def test_marks_stand_where_a_changed_word_begins() -> None:
    words = ["We", "can", "see", "a", "dog", ",", "a", "teddy", "bear", ",", "a", "dog", "."]
    steps: list[dict[str, Any]] = [
        {"text": word, "changed": index in (0, 7, 11), "patch": [0, index, 1]}
        for index, word in enumerate(words)
    ]
    caption = "We can see a dog, a teddy bear, a dog."
    marks = [(caption.index("teddy"), [0, 7, 1]), (caption.rindex("dog"), [0, 11, 1])]
    assert changed_words(caption, [*steps, {"text": "", "changed": True}]) == marks


def test_a_hit_is_a_patch_that_shows_the_object_of_the_word() -> None:
    try:
        font_path()
    except FileNotFoundError:
        pytest.skip("a scene needs the font Noto Color Emoji")
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
