"""The tables of `-- --decoder all`: what they are made of, and what they say of results."""

import json
from pathlib import Path

import pytest

import every_decoder
from every_decoder import LAYERS, NAMES, ablations, jobs, others, report, ways
from jobs import COCO, FAMILIES, GREEDY, Decoder, read_json
from revisit.config import OTHERS
from revisit.evaluation import chair

TRUTH = {1: ["dog"], 2: ["cat"], 3: ["pizza"], 4: ["dog", "cat"]}
TRUE = {1: "A dog.", 2: "A cat.", 3: "A pizza.", 4: "A dog and a cat."}
FALSE = {image: f"{text[:-1]}, and a fork." for image, text in TRUE.items()}
SAID = {"greedy": FALSE, "greedy-again": FALSE, "m3id": FALSE}
SECONDS = {"greedy": 2.0, "greedy-again": 2.2, "vcd": 5.0}


def write_result(folder: Path, way: Decoder) -> None:
    """What an evaluation script leaves of a way to decode."""
    folder.mkdir(parents=True)
    captions = folder / "captions.jsonl"
    said = SAID.get(way.slug, TRUE)
    lines = [json.dumps({"image_id": image, "caption": text}) for image, text in said.items()]
    captions.write_text("\n".join(lines), encoding="utf-8")
    settings = {"dtype": "float32", "torch version": "2", "transformers version": "4", "seed": 0}
    run = {"device": "cpu", "processor": "Z80", "threads": 1, "batch_size": 3, "tokens": 100}
    record = {
        "settings": settings | {name: str(value) for name, value in way.settings.items()},
        "runs": [run | {"seconds": SECONDS.get(way.slug, 3.0)}],
        "images": [],
    }
    (folder / "captions.jsonl.run.json").write_text(json.dumps(record), encoding="utf-8")
    cache = folder.parent / "objects.json"
    cache.write_text(json.dumps({"objects": {str(i): each for i, each in TRUTH.items()}}))
    flags = ["--cache", str(cache), "--lemmatizer", "noun"]
    saved = ["--save_path", str(folder / "chair.json")]
    assert chair.main(["--cap_file", str(captions), *flags, *saved]) == 0


@pytest.fixture
def text(tmp_path: Path) -> str:
    for family in FAMILIES:
        for way in ways(family):
            write_result(tmp_path / family.environment / way.slug, way)
    return report(tmp_path, 4)


def lines(text: str, family: str) -> dict[str, list[str]]:
    """The cells of a family's rows, of both tables, by the decoder; the first one counts."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == family:
            found.setdefault(cells[1], cells[2:])
    return found


def test_every_decoder_stands_beside_greedy_decoding_with_interval_and_cost(text: str) -> None:
    for family in FAMILIES:
        rows = lines(text, family.name)
        assert {"greedy", "VCD", "RITUAL", "M3ID", "DoLa"} <= rows.keys()
        assert sum(name.startswith("ReVisiT") for name in rows) >= 2
        assert rows["greedy"][0] == "100.0" and rows["greedy"][-3:] == ["1.00", "", ""]
        assert rows["VCD"][-3:-1] == ["2.50", "-100.0 [-100.0, -100.0]"]
        assert rows["M3ID"][-2] == "+0.0 [+0.0, +0.0]"
        again = f"{family.name} (`{family.checkpoint.name}`, float32) on Z80, 1 thread, 3 images"
        assert again in text and "at the end of the run: 1.10." in text
    assert "neither with M3ID" in text and "fewer with ReVisiT" in text


def test_an_ablation_differs_from_the_chosen_setting_in_one_thing() -> None:
    for family in FAMILIES:
        chosen, *rest = ablations(family)
        flags = {"revisit_selection": "min", **chosen.settings}
        assert flags["relative_top"] == read_json(family.setting)["alpha"]
        changed = []
        for way in rest:
            ((name, value),) = (
                {"revisit_selection": "min", **way.settings}
            ).items() - flags.items()
            changed.append((name, value))
        assert {("revisit_selection", "max"), ("revisit_selection", "random")} <= set(changed)
        layers = {value for name, value in changed if name == "early_exit_layers"}
        assert layers | {flags["early_exit_layers"]} == set(LAYERS)
        assert len([name for name, _ in changed if name == "relative_top"]) >= 4


def test_each_way_captions_once_and_by_its_own_flags(tmp_path: Path) -> None:
    assert NAMES.keys() == OTHERS.keys()
    for family in FAMILIES:
        todo = jobs(family, tmp_path, 4)
        last = [
            dict(zip(job["arguments"][::2], job["arguments"][1::2], strict=True)) for job in todo
        ]
        folders = [each["--output_path"] for each in last]
        assert len(set(folders)) == len(folders) == len(ways(family))
        assert folders[0] == str(tmp_path / GREEDY.slug) and "--decoder" not in last[0]
        assert {"vcd", "ritual", "m3id", "dola"} == {
            each["--decoder"] for each in last if "--decoder" in each
        }
        assert all(each["--data_path"] == str(COCO / "val2014") for each in last)


def test_the_page_is_written_where_it_is_asked_for(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(every_decoder, "ROOT", tmp_path)
    monkeypatch.setattr(every_decoder, "run_jobs", lambda jobs, out: None)
    for family in FAMILIES:
        for way in ways(family):
            write_result(tmp_path / "out" / family.environment / way.slug, way)
    every_decoder.run(tmp_path / "out", 4, docs=False)
    assert not (tmp_path / "docs" / "decoders.md").exists()
    every_decoder.run(tmp_path / "out", 4, docs=True)
    page = (tmp_path / "docs" / "decoders.md").read_text("utf-8")
    assert page.startswith("# Decoders, on the demo\n") and report(tmp_path / "out", 4) in page
    assert len(others()) == 4
