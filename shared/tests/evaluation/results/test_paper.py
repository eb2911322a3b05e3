import numpy as np
import pytest

from revisit.evaluation.benchmarks.chair import COLUMNS
from revisit.evaluation.results.paper import paper_figures, tables
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


def test_every_row_has_figures_of_its_benchmark():
    for table in tables():
        assert table["source"] in ("notes", "paper")
        for row in table["rows"]:
            figures = row["figures"]
            assert figures and all(isinstance(value, float) for value in figures.values())
            assert table["benchmark"] != "chair" or figures.keys() <= set(COLUMNS.metrics)


def test_a_figure_is_within_or_outside_the_interval_of_the_sample():
    for wrong, verdict in ((7, "within"), (60, "outside")):
        (line,) = [
            line
            for line in paper_figures([result(qwen(), wrong)])
            if line.metric == "CHAIRi" and line.table == "CHAIR (v3)"
        ]
        assert line.published == 7.04 and line.value == pytest.approx(100 * wrong / 93)
        low, high = line.interval
        assert (low < 7.04 < high) == (line.verdict == "within") and line.verdict == verdict


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
    lines = paper_figures([result(qwen(**more))])
    assert lines and all(line.verdict.startswith("not the same setting: ") for line in lines)
    assert any(named in line.verdict for line in lines)


def test_an_ablation_is_compared_with_its_row():
    lines = paper_figures([result(qwen(revisit_selection="random"))])
    v3 = [(line.metric, line.published) for line in lines if line.table == "CHAIR (v3)"]
    assert v3 == [("F1", 17.63)]


def test_other_decoders_and_benchmarks_have_no_row():
    other = {"decoder": "vcd", "model": {"name": "llava-v1.5-7b"}, "question": QUESTION}
    assert paper_figures([result(other)]) == []
    assert paper_figures([result(qwen())._replace(benchmark="amber")]) == []
