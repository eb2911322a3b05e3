"""The tables of `-- --decoder all`: what they are made of, and what they say of results."""

import ast
import json
from pathlib import Path

import pytest

import asking
import every_decoder
from every_decoder import AGAIN, LAYERS, NAMES, ablations, jobs, report, timing_file, ways
from jobs import COCO, FAMILIES, GREEDY, Decoder, read_json
from revisit.commands.main import main as program
from revisit.config import OTHERS

TRUTH = {1: ["dog"], 2: ["cat"], 3: ["pizza"], 4: ["dog", "cat"]}
TRUE = {1: "A dog.", 2: "A cat.", 3: "A pizza.", 4: "A dog and a cat."}
FALSE = {image: f"{text[:-1]}, and a fork." for image, text in TRUE.items()}
LESS = TRUE | {4: "A dog."}
TEXTS = {"greedy": FALSE, "m3id": FALSE}
SECONDS = {"greedy": 2.0, AGAIN: 2.2, "vcd": 5.0}


def write_result(folder: Path, way: Decoder) -> None:
    """What an evaluation script leaves of a way to decode."""
    folder.mkdir(parents=True)
    captions = folder / "captions.jsonl"
    texts = TEXTS.get(way.slug, TRUE)
    selection = way.settings.get("revisit_selection")
    texts = LESS if way.settings.get("use_revisit") and selection != "random" else texts
    texts = FALSE if selection == "max" else texts
    lines = [json.dumps({"image_id": image, "caption": text}) for image, text in texts.items()]
    captions.write_text("\n".join(lines), encoding="utf-8")
    model = {"name": "tiny", "sha256": "0123456789abcdef"}
    settings = {
        "model": model,
        "dtype": "float32",
        "torch version": "2",
        "transformers version": "4",
        "seed": 0,
    }
    run = {"device": "cpu", "processor": "Z80", "threads": 1, "batch_size": 3, "tokens": 100}
    record = {
        "settings": settings | {name: str(value) for name, value in way.settings.items()},
        "runs": [run | {"seconds": 1.0}],
        "images": [],
    }
    (folder / "captions.jsonl.run.json").write_text(json.dumps(record), encoding="utf-8")
    cache = folder.parent / "objects.json"
    cache.write_text(json.dumps({"objects": {str(i): each for i, each in TRUTH.items()}}))
    flags = ["--cache", str(cache), "--lemmatizer", "noun"]
    saved = ["--save_path", str(folder / "chair.json")]
    assert program(["score", "chair", "--cap_file", str(captions), *flags, *saved]) == 0


def write_all(out: Path) -> None:
    """What all jobs leave."""
    for family in FAMILIES:
        folder = out / family.environment
        names = [way.slug for way in ways(family)] + [AGAIN]
        for way in ways(family):
            write_result(folder / way.slug, way)
        timed = {name: [[pace * SECONDS.get(name, 3.0), 100] for pace in (1, 9)] for name in names}
        timing_file(folder).write_text(json.dumps(timed), encoding="utf-8")


@pytest.fixture
def text(tmp_path: Path) -> str:
    write_all(tmp_path)
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
        model = f"{family.name} (`{family.checkpoint.name}`, 0123456789ab, float32)"
        again = f"{model} on Z80, 1 thread, 3 images"
        assert again in text and "2 rounds; greedy decoding a second time in each: 1.10." in text
    for family in FAMILIES:
        best = "CHAIRs by `min`, Recall by `max`, F1 by `random`"
        assert f"of {family.name}: {best}" in text
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
    assert NAMES.keys() == OTHERS.keys() - {"sid"}  # the families' releases cannot run it
    for family in FAMILIES:
        *todo, timed = jobs(family, tmp_path, 4)
        last = [
            dict(zip(job["arguments"][::2], job["arguments"][1::2], strict=True)) for job in todo
        ]
        folders = [each["--output_path"] for each in last]
        assert len(set(folders)) == len(folders) == len(ways(family))
        assert folders[0] == str(tmp_path / GREEDY.slug) and "--decoder" not in last[0]
        assert NAMES.keys() == {each["--decoder"] for each in last if "--decoder" in each}
        assert all(each["--data_path"] == str(COCO / "val2014") for each in last)

        flags = timed["ways"]
        assert list(flags) == [*(way.slug for way in ways(family)), AGAIN]
        assert flags[AGAIN] == flags[GREEDY.slug] and flags["vcd"][-2:] == ["--decoder", "vcd"]
        assert [len(files) for files in timed["rounds"]] == [4]


SCRIPT = """
from types import SimpleNamespace
from revisit.commands.eval import Family
from revisit.evaluation.run import decoder_name
class Printer:
    def __init__(self, run):
        self.decode(run)
    def decode(self, run):
        self.decoder = decoder_name(run.decoder)
        if run.decoder is not None:
            assert (run.decoder.layers, run.decoder.alpha) == ("all", 0.1)
    def answer(self, images, questions):
        print((self.decoder, [image.size for image in images], questions[0]))
        return [SimpleNamespace(tokens=3) for _ in images]
FAMILY = Family(Printer, str, layers="all")
"""


def test_ways_take_turns_on_the_same_images(tmp_path: Path, capsys) -> None:
    script, out = tmp_path / "script.py", tmp_path / "timing.json"
    script.write_text(SCRIPT)
    files = [str(COCO / "val2014" / f"COCO_val2014_{i:012d}.jpg") for i in (1, 2, 3)]
    flags = ["--model_path", "m", "--data_path", "d", "--output_path", "o", "--device", "cpu"]
    revisit = [*flags, "--decoder", "revisit", "--relative_top", "0.1"]
    ways = {"greedy": flags, "revisit": revisit}
    rounds = [files[:2], files[2:]]
    job = {"script": str(script), "ways": ways, "rounds": rounds}
    asking.measure(job | {"timing": str(out)})
    answered = [ast.literal_eval(line) for line in capsys.readouterr().out.splitlines()]
    assert [(decoder, len(sizes)) for decoder, sizes, _ in answered] == [
        ("greedy", 2),  # to begin with
        *[("greedy", 2), ("revisit", 2)],
        *[("revisit", 1), ("greedy", 1)],
    ]
    assert {question for *_, question in answered} == {"Please describe this image in detail."}
    found = json.loads(out.read_text())
    assert found.keys() == ways.keys()
    assert all([tokens for _, tokens in rounds] == [6, 3] for rounds in found.values())
    assert all(seconds > 0 for rounds in found.values() for seconds, _ in rounds)


def test_a_cost_is_the_median_of_what_each_round_says() -> None:
    # The machine is three times as slow in the second round, and something else ran in the third.
    found = {"greedy": [(1, 10), (3, 10), (1, 10)], "vcd": [(4, 20), (12, 20), (90, 20)]}
    assert every_decoder.relative(found) == {"greedy": 1, "vcd": 2}


def test_the_page_is_written_where_it_is_asked_for(tmp_path: Path, monkeypatch) -> None:
    docs = tmp_path / "docs" / "decoders.md"
    docs.parent.mkdir()
    docs.write_text(f"An older page.\n{every_decoder.BY_HAND}Measured.\n", encoding="utf-8")
    monkeypatch.setattr(every_decoder, "ROOT", tmp_path)
    monkeypatch.setattr(every_decoder, "run_jobs", lambda jobs, out: None)
    write_all(tmp_path / "out")
    every_decoder.run(tmp_path / "out", 4, docs=False)
    assert docs.read_text("utf-8").startswith("An older page.")
    every_decoder.run(tmp_path / "out", 4, docs=True)
    page = docs.read_text("utf-8")
    assert page.startswith("# Decoders, on the demo\n") and report(tmp_path / "out", 4) in page
    assert page.endswith(f"{every_decoder.BY_HAND}Measured.\n")
