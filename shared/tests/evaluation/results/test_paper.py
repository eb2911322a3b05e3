import numpy as np
import pytest

from revisit.evaluation.benchmarks.chair import COLUMNS
from revisit.evaluation.results import paper
from revisit.evaluation.results.result import Result

QUESTION = "Please describe this image in detail."


def result(settings, wrong=7, words=93):
    """A result of 100 images, of 7 hallucinated words in 93 or so."""
    counts = np.zeros((100, 8), np.int64)
    counts[:, 0] = 1
    counts[:wrong, 1:3] = 1
    counts[:words, 3:6] = 1
    return Result("chair.json", "mine", "chair", COLUMNS, counts, [], {}, {}, settings, [])


def qwen(**more):
    settings = {"model": {"name": "Qwen/Qwen2.5-VL-7B-Instruct"}, "question": QUESTION}
    revisit = {"use_revisit": True, "early_exit_layers": "all", "relative_top": 1e-5}
    return settings | revisit | {"do_sample": False, "num_beams": 1} | more


def test_every_row_names_what_its_benchmark_measures():
    tables = paper.tables()
    assert {table["source"] for table in tables} <= {"notes", "paper"}
    figures = [row["figures"] for table in tables for row in table["rows"]]
    assert all(figures) and all(isinstance(v, float) for each in figures for v in each.values())
    chair = [t for t in tables if t["benchmark"] == "chair"]
    assert {name for t in chair for row in t["rows"] for name in row["figures"]} <= set(
        COLUMNS.metrics
    )


def test_a_figure_is_within_or_outside_the_interval_of_the_sample():
    (line,) = [
        line
        for line in paper.paper_figures([result(qwen())])
        if line.metric == "CHAIRi" and line.table == "CHAIR (v3)"
    ]
    assert line.published == 7.04 and line.value == pytest.approx(100 * 7 / 93)
    assert line.interval[0] < 7.04 < line.interval[1] and line.verdict == "within"
    (line,) = [
        line
        for line in paper.paper_figures([result(qwen(), wrong=60)])
        if line.metric == "CHAIRi" and line.table == "CHAIR (v3)"
    ]
    assert line.verdict == "outside"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"model": {"name": "tiny"}}, "model tiny, the paper's Qwen2.5-VL-7B-Instruct"),
        ({"question": "What is this?"}, "question What is this?"),
        ({"num_beams": 5}, "num_beams 5, the paper's 1"),
        ({"do_sample": True}, "do_sample True"),
        ({"revisit_selection": "max", "num_beams": 5}, "num_beams 5"),
    ],
)
def test_another_setting_is_named_in_place_of_a_verdict(more, named):
    lines = paper.paper_figures([result(qwen(**more))])
    assert lines and all(line.verdict.startswith("not the same setting: ") for line in lines)
    assert any(named in line.verdict for line in lines)


def test_an_ablation_is_set_beside_its_own_row():
    lines = paper.paper_figures([result(qwen(revisit_selection="random"))])
    v3 = [(line.metric, line.published) for line in lines if line.table == "CHAIR (v3)"]
    assert v3 == [("F1", 17.63)]


def test_other_decoders_and_benchmarks_have_no_row():
    other = {"decoder": "vcd", "model": {"name": "llava-v1.5-7b"}, "question": QUESTION}
    assert paper.paper_figures([result(other)]) == []
    assert paper.paper_figures([result(qwen())._replace(benchmark="amber")]) == []
