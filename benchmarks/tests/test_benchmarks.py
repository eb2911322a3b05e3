"""The benchmarks measure what they say, and run."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import drift
import gpu
import own
import published
import rows
from revisit.core.step import constrain

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "shared/tests/core/golden/step.json").read_text())


@pytest.mark.parametrize("golden", GOLDEN, ids=range(len(GOLDEN)))
def test_the_dense_implementation_gives_the_published_steps(golden):
    states, head = (torch.tensor(golden[name]) for name in ("vision_states", "lm_head"))
    projected = published.prefill(states, head)
    logits = torch.tensor(golden["logits"])
    refined = published.step(logits, projected, torch.tensor(golden["alpha"]).log().item())
    kept = refined.isfinite().nonzero().squeeze(1)
    assert kept.tolist() == golden["vocabulary"]
    assert refined[kept].tolist() == pytest.approx(golden["refined_on_vocabulary_ag"], abs=1e-4)


@pytest.mark.parametrize("candidates", [1, 10, 300])
def test_v_cons_has_the_size_asked_for_and_drifts_by_the_share_asked_for(candidates):
    work = drift.Work([], steps=20, share=0.2)
    kept = [
        set(constrain(logits, own.CONFIG.alpha).tolist())
        for logits in drift.drift(2000, candidates, work)
    ]
    assert len(kept) == 20
    assert {len(words) for words in kept} == {candidates}
    for before, after in itertools.pairwise(kept):
        assert len(after - before) == max(1, round(0.2 * candidates))
    # Frequent words come back: fewer are needed than if every new word were a first one.
    if candidates > 1:
        assert len(set.union(*kept)) < candidates + 19 * round(0.2 * candidates)


def test_peak_memory_counts_what_is_alive_at_a_time_and_views_once():
    given = torch.ones(100)
    with own.Peak() as peak:
        first = given + 1
        view = first[:50]
        del first
        second = view * 2
        second += 1
        assert peak.now == 4 * 150
        del view, second
        assert peak.now == 0
        torch.zeros(60)
    assert peak.bytes == 4 * 150


def run(script, *arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_quick_benchmark_prints_every_cell_and_axis():
    done = run("cost.py", "--quick", "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert "bfloat16 (" in done.stdout.splitlines()[0]
    for line in (
        *("tiny, last | 2 |", "tiny, all | 20 |", "tokens in V_cons", "| tiny | 2 |"),
        *("- On a CPU: ", "- Memory: ", "- Rows are taken one after another: "),
    ):
        assert line in done.stdout


def test_rows_are_unlike_and_always_the_same():
    ragged = rows.Ragged("", tokens=40, candidates=20, width=4, vocabulary=300)
    work = drift.Work([], steps=3)
    made = [rows.rows_of(ragged, 8, work, torch.float32) for _ in range(2)]
    for one, again in zip(*made, strict=True):
        assert torch.equal(one.states, again.states)
        assert 20 <= len(one.states) <= 60
    assert len({len(row.states) for row in made[0]}) > 4
    kept = {len(constrain(row.logits[0], own.CONFIG.alpha)) for row in made[0]}
    assert len(kept) > 4 and min(kept) >= 10 and max(kept) <= 30


def test_every_request_is_served_to_its_end(monkeypatch):
    ragged = rows.Ragged("", tokens=10, candidates=5, width=4, vocabulary=90)
    made = rows.rows_of(ragged, 7, drift.Work([], steps=6), torch.float32)
    sizes = []
    refine = rows.refine
    monkeypatch.setattr(rows, "refine", lambda logits, s: sizes.append(len(s)) or refine(logits, s))
    lengths = [3, 6, 4, 5, 6, 3, 4]
    assert rows.serve(rows.weight(ragged, torch.float32), made, lengths, 3) > 0
    assert sum(sizes) == sum(lengths)
    assert max(sizes) == 3


def test_the_quick_benchmark_writes_page_and_plot(tmp_path):
    pytest.importorskip("matplotlib")
    done = run("cost.py", "--quick", "--threads", 1, "--docs", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| tiny, all | 20 |" in (tmp_path / "cost.md").read_text(encoding="utf-8")
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "script, arguments, message",
    [
        ("cost.py", ["--quick", "--docs"], "--quick measures nothing worth keeping"),
        ("cost.py", ["--threads", "0"], "--threads must be at least 1"),
        ("gpu.py", ["--tiny", "--device", "cpu", "--docs"], "--tiny measures nothing worth"),
        ("gpu.py", ["--device", "cpu"], "pass --tiny"),
        ("gpu.py", ["--rows", "0"], "at least 1"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_runs(script, arguments, message):
    done = run(script, *arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_gpu_script_says_so():
    done = run("gpu.py")
    assert done.returncode == 2
    assert "no CUDA GPU" in done.stderr


def test_the_gpu_script_runs_on_a_cpu_with_tiny_models(tmp_path):
    pytest.importorskip("triton", reason="Triton is not here")
    page = tmp_path / "gpu.md"
    page.write_text("before\n<!-- measured -->\nold\n<!-- /measured -->\nafter\n")
    arguments = ["--new-tokens", 3, "--repeats", 1, "--steps", 3, "--rows", 1, 2]
    done = run("gpu.py", "--tiny", "--device", "cpu", *arguments, "--docs", tmp_path)
    assert done.returncode == 0, done.stderr
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    for layers in ("last", "all"):
        for rows_ in (1, 2):
            lines = [line for line in text.splitlines() if f"| tiny, {layers} | {rows_} |" in line]
            alone, compiled, *eager = [line.split("|")[3:] for line in lines]
            assert float(alone[1].split()[0]) > 0  # microseconds of a step
            assert all(float(cell.split()[0]) > 0 for cell in compiled[:2])
            assert [cells[0].strip() for cells in eager] == list(gpu.DECODERS)
            assert all(float(cells[1].split()[0]) > 0 for cells in eager)
