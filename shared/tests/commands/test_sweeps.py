"""Settings of one loaded model, swept: each says what it says alone."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torchvision", reason="Qwen2.5-VL's processor needs it")

from releases import RELEASE
from revisit.commands.describe import demo_model
from revisit.commands.eval import main

if RELEASE < (4, 57):
    pytest.skip("written for stock releases", allow_module_level=True)

COCO = Path(demo_model()).parent / "coco"
SELECTIONS = ("min", "max", "random")


def caption(out: Path, *more: str) -> None:
    flags = ["--model", demo_model(), "--data_path", str(COCO / "val2014"), "--device", "cpu"]
    flags += ["--num_eval_samples", "6", "--max_new_tokens", "24", "--batch_size", "2"]
    assert main(["chair", *flags, "--output_path", str(out), *more]) == 0


def made(folder: Path) -> str:
    return (folder / "captions.jsonl").read_text()


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("swept")
    scoring = ["--anno_path", str(COCO / "annotations"), "--lemmatizer", "noun"]
    caption(out, "--sweep", f"selection={','.join(SELECTIONS)}", "layers=last,all", *scoring)
    return out


def folder_of(selection: str, layers: str) -> str:
    named = "" if selection == "min" else f"-{selection}"
    return f"revisit-{layers}-1e-5-ag{named}-seed42"


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_run_of_a_sweep_says_what_it_says_alone(swept, tmp_path, selection):
    flags = ["--decoder", "revisit", "--revisit_selection", selection, "--early_exit_layers", "all"]
    caption(tmp_path, *flags)
    assert made(tmp_path) == made(swept / folder_of(selection, "all"))
    assert (swept / folder_of(selection, "all") / "chair.json").exists()


def test_settings_and_greedy_decoding_say_different_things(swept):
    said = [made(swept / folder_of(selection, "all")) for selection in SELECTIONS]
    assert len({*said, made(swept / "plain-seed42")}) == 4
    drawn = [made(swept / folder_of("random", layers)) for layers in ("last", "all")]
    assert drawn[0] != drawn[1]


def test_what_is_drawn_at_random_continues_to_what_one_run_draws(swept, tmp_path):
    flags = ["--decoder", "revisit", "--revisit_selection", "random", "--early_exit_layers", "all"]
    caption(tmp_path, *flags)
    whole = made(tmp_path)
    file = tmp_path / "captions.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
    caption(tmp_path, *flags)
    assert made(tmp_path) == whole


def test_only_another_selection_than_the_default_is_recorded(swept):
    for selection in SELECTIONS:
        record = swept / folder_of(selection, "last") / "captions.jsonl.run.json"
        settings = json.loads(record.read_text())["settings"]
        default = None if selection == "min" else selection
        assert settings.get("revisit_selection") == default
        # Rows of a batch share a stream of draws.
        assert settings.get("batch_size") == (2 if selection == "random" else None)
