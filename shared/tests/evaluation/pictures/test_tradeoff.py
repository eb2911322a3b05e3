"""The plot of quality against cost."""

import numpy as np
import pytest
from PIL import Image

from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks import chair, pope
from revisit.evaluation.pictures.tradeoff import write_tradeoff
from revisit.evaluation.results.tables import Row

CHAIR, POPE = chair.COLUMNS, pope.COLUMNS
METRICS = len(CHAIR.metrics)


def row(name, value, relative=(1.0,), gap=None):
    values = np.full((len(relative), METRICS), value)
    if gap is None:
        return Row(name, values, relative=np.array(relative))
    gaps = np.full((len(relative), METRICS), gap)
    interval = np.stack([gaps[0] - 0.05, gaps[0] + 0.02]) if len(relative) == 1 else None
    return Row(name, values, gaps, interval, np.array(relative))


UNCOSTED = Row("slow", np.full((1, METRICS), 0.1), uncosted="device cuda, the baseline's cpu")


def drawn_axes(monkeypatch, rows, path, kind=CHAIR):
    """The two axes of the figure that was written."""
    figure_module = pytest.importorskip("matplotlib.figure")
    kept = []

    class Kept(figure_module.Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            kept.append(self)

    monkeypatch.setattr(figure_module, "Figure", Kept)
    write_tradeoff(rows, kind, path)
    return kept[0].axes


def test_a_decoder_stands_at_its_cost_and_quality_with_the_interval_about_it(tmp_path, monkeypatch):
    path = tmp_path / "quality-against-cost.png"
    rows = [row("greedy", 0.5), row("vcd", 0.4, [2.0], -0.1), UNCOSTED]
    left, right = drawn_axes(monkeypatch, rows, path)
    assert left.get_ylabel() == "CHAIRs in % (lower is better)"
    assert right.get_ylabel() == "F1 in % (higher is better)"
    for axis in (left, right):
        points = {bar.get_label(): bar.lines[0].get_xydata()[0] for bar in axis.containers}
        assert points.keys() == {"greedy", "vcd"}
        assert points["greedy"] == pytest.approx([1, 50])
        assert points["vcd"] == pytest.approx([2, 40])
        (lines,) = axis.containers[1].lines[2]
        assert lines.get_segments()[0] == pytest.approx(np.array([[2, 35], [2, 42]]))
    pixels = np.asarray(Image.open(path).convert("L"))
    assert pixels.std() > 5


def test_over_several_samples_the_bar_is_the_standard_deviation(tmp_path, monkeypatch):
    spread = row("vcd", 0.4, [2.0, 3.0], -0.1)
    spread.gaps[:, :] = [[-0.1], [-0.3]]
    rows = [row("greedy", 0.5, [1.0, 1.0]), spread]
    left, _ = drawn_axes(monkeypatch, rows, tmp_path / "plot.svg", POPE)
    assert left.get_ylabel() == "Accuracy in % (higher is better)"
    (lines,) = left.containers[1].lines[2]
    sd = 100 * np.std([-0.1, -0.3], ddof=1)
    assert lines.get_segments()[0] == pytest.approx(np.array([[2.5, 40 - sd], [2.5, 40 + sd]]))


def test_a_plot_that_cannot_be_drawn_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    with pytest.raises(EvaluationError, match="no two costs to draw: device cuda, the baseline's"):
        write_tradeoff([row("greedy", 0.5), UNCOSTED], CHAIR, tmp_path / "plot.png")
    both = [row("greedy", 0.5), row("vcd", 0.4, [2.0], -0.1)]
    for name in ("plot.docx", "missing/plot.png"):
        with pytest.raises(EvaluationError, match="cannot write"):
            write_tradeoff(both, CHAIR, tmp_path / name)


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("revisit.evaluation.pictures.plots.find_spec", lambda name: None)
    with pytest.raises(EvaluationError, match=r'pip install "revisit-decoding\[pictures\]"'):
        write_tradeoff([row("greedy", 0.5)], CHAIR, tmp_path / "plot.png")
