"""The benchmarks measure what they say, and run."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cases
import cost
import gpu
import measuring
import published
from revisit import ReVisiTConfig
from revisit.core.columns import Cache
from revisit.core.step import constrain

ALPHA = ReVisiTConfig().alpha
ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "shared/tests/core/golden/step.json").read_text())


@pytest.mark.parametrize("golden", GOLDEN, ids=range(len(GOLDEN)))
def test_the_dense_implementation_gives_the_published_steps(golden):
    logits, states, head = (
        torch.tensor(golden[name]) for name in ("logits", "vision_states", "lm_head")
    )
    log_alpha = torch.tensor(golden["alpha"]).log().item()
    refined = published.step(logits, published.prefill(states, head), log_alpha)
    kept = refined.isfinite().nonzero().squeeze(1)
    assert kept.tolist() == golden["vocabulary"]
    assert refined[kept].tolist() == pytest.approx(golden["refined_on_vocabulary_ag"], abs=1e-4)


@pytest.mark.parametrize("candidates", [1, 10, 300])
def test_v_cons_has_the_size_asked_for_and_drifts_by_the_share_asked_for(candidates):
    steps = cases.drift(2000, candidates, 20, share=0.2)
    kept = [set(constrain(logits, ALPHA).tolist()) for logits in steps]
    assert len(kept) == 20
    assert {len(tokens) for tokens in kept} == {candidates}
    for before, after in itertools.pairwise(kept):
        assert len(after - before) == max(1, round(0.2 * candidates))
    # Frequent tokens come back: fewer are needed than if every new token were a first one.
    if candidates > 1:
        assert len(set.union(*kept)) < candidates + 19 * round(0.2 * candidates)


def test_peak_memory_counts_what_is_alive_at_a_time_and_views_once():
    def work():
        first = torch.ones(100_000)
        view = first[:50_000]
        del first
        second = view * 2
        second += 1
        del view, second
        torch.zeros(60_000)

    assert measuring.peak_bytes(work) == pytest.approx(4 * 150_000, abs=100)


def test_ways_take_turns_and_what_has_no_memory_is_left_out():
    order = []

    def fails():
        order.append("fails")
        raise torch.cuda.OutOfMemoryError

    ways = {"one": lambda: order.append("one"), "fails": fails, "two": lambda: order.append("two")}
    took = measuring.by_turns(ways, 2)
    assert order == ["one", "fails", "two", "one", "two", "one", "two"]
    assert {name: len(seconds) for name, seconds in took.items()} == {"one": 2, "two": 2}


def run(script, *arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_quick_benchmark_prints_every_line_and_writes_page_and_plot(tmp_path):
    pytest.importorskip("matplotlib")
    done = run("cost.py", "--quick", "--threads", 1, "--docs", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "bfloat16 (" in done.stdout.splitlines()[0]
    page = (tmp_path / "cost.md").read_text(encoding="utf-8")
    rows = ["| tiny, last | 2 |", "| tiny, all | 20 |", "| tokens in V_cons | 20 |"]
    for line in [*rows, "- On a CPU: ", "- Memory: ", "- Rows are taken one after another: "]:
        assert line in done.stdout and line in page
    assert "| steps of the generation so far |" in page
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")


def test_a_summary_replaces_what_stands_between_the_marks_of_a_page(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- cost -->\nold\n<!-- /cost -->\nafter\n")
    measuring.put(page, "cost", "new")
    assert page.read_text() == "before\n<!-- cost -->\nnew\n<!-- /cost -->\nafter\n"
    with pytest.raises(SystemExit, match="lacks the marks <!-- other -->"):
        measuring.put(page, "other", "new")


def test_rows_are_unlike_and_always_the_same():
    case = cases.TINY[0]._replace(states=40)
    head = cases.lm_head(case.vocabulary, case.width, torch.float32)
    made = [cost.unlike_rows(case, head, Cache(head, 0), 8, 20) for _ in range(2)]
    counts, again = ([len(each.columns.states) for each in sessions] for sessions, _ in made)
    assert counts == again and min(counts) >= 20 and max(counts) <= 60 and len(set(counts)) > 4
    assert torch.equal(made[0][1][3], made[1][1][3])
    kept = {len(constrain(row, ALPHA)) for row in made[0][1][0]}
    assert len(kept) > 4 and min(kept) >= 10 and max(kept) <= 30


REFUSED = {
    "--quick measures nothing worth keeping": ("cost.py", "--quick", "--docs"),
    "--threads must be at least 1": ("cost.py", "--threads", 0),
    "--tiny measures nothing worth": ("gpu.py", "--tiny", "--device", "cpu", "--docs"),
    "pass --tiny": ("gpu.py", "--device", "cpu"),
    "at least 1": ("gpu.py", "--rows", 0),
    "no CUDA GPU": ("gpu.py",),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_measured_is_refused_before_anything_runs(message):
    if message == "no CUDA GPU" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run(*REFUSED[message])
    assert done.returncode == 2
    assert message in done.stderr


def test_the_gpu_script_runs_on_a_cpu_with_tiny_models(tmp_path):
    pytest.importorskip("triton", reason="Triton is not here")
    page = tmp_path / "gpu.md"
    page.write_text("before\n<!-- measured -->\nold\n<!-- /measured -->\nafter\n")
    done = run("gpu.py", "--tiny", "--device", "cpu", "--rows", 1, 2, "--docs", tmp_path)
    assert done.returncode == 0, done.stderr
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    for layers in ("last", "all"):
        for rows in (1, 2):
            lines = [line for line in text.splitlines() if f"| tiny, {layers} | {rows} |" in line]
            alone, compiled, *eager = [line.split("|")[3:] for line in lines]
            assert float(alone[1].split()[0]) > 0  # microseconds of a step
            assert all(float(cell.split()[0]) > 0 for cell in compiled[:2])
            assert [cells[0].strip() for cells in eager] == list(gpu.DECODERS)
            assert all(float(cells[1].split()[0]) > 0 for cells in eager)
