"""The committed checkpoints say how their weights were made."""

import json
import re
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_a_record_names_the_commits_and_the_log_has_all_stages(family: str) -> None:
    checkpoint = DEMO / f"{family}-tiny"
    record = json.loads((checkpoint / "training_record.json").read_text("utf-8"))
    assert record["command"] == f"python prerequisites/demo/train_{family}.py"
    assert all(re.fullmatch("[0-9a-f]{40}", run["commit"]) for run in record["runs"])
    assert not any(run["changed"] for run in record["runs"])
    lines = (checkpoint / "training_log.jsonl").read_text("utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    assert {entry["stage"] for entry in entries} == {"tower", "language", "questions"}
    last = [entry for entry in entries if "dev" in entry][-1]["dev"]
    assert last["Recall"] >= 0.85
