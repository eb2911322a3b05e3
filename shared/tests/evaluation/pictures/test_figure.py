"""The figure, pixel by pixel."""

import numpy as np
import pytest
from PIL import Image, ImageColor

from drawn import CELLS, GREEN, picture
from revisit.evaluation import EvaluationError
from revisit.evaluation.pictures.figure import write_figure
from revisit.evaluation.pictures.templates import HUES, LIGHT

pytest.importorskip("matplotlib")


def pixels(path, colour, near=40):
    found = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return np.abs(found - ImageColor.getrgb(colour)).sum(2) < near


@pytest.mark.parametrize("ending", [".png", ".PDF", ".svg"])
def test_a_figure_is_the_same_every_day(tmp_path, ending):
    files = [tmp_path / f"{name}{ending}" for name in ("one", "two")]
    for file in files:
        write_figure([picture(truth=["dog"])], file, "A note.")
    one, two = (file.read_bytes() for file in files)
    assert one == two and len(one) > 5000
    begin = {".png": b"\x89PNG", ".PDF": b"%PDF", ".svg": b"<?xml"}[ending]
    assert one.startswith(begin)


def test_the_patch_of_a_word_and_the_word_have_its_colour(tmp_path):
    write_figure([picture()], tmp_path / "out.png")
    hue = pixels(tmp_path / "out.png", HUES[0])
    _, columns = hue.nonzero()
    width = hue.shape[1]
    image = (0.02 * width, 0.32 * width)  # where the image lies
    left, _, right, _ = CELLS[6]
    at = [image[0] + each * (image[1] - image[0]) for each in (left, right)]
    box = columns[(columns < image[1])]
    assert box.min() >= at[0] - 25 and box.max() == pytest.approx(at[1], abs=8)
    assert (columns > image[1]).sum() > 100  # the underline, and its number


def test_words_that_are_not_there_are_red_and_struck_and_only_they(tmp_path):
    write_figure([picture(truth=["dog", "couch"])], tmp_path / "true.png")
    write_figure([picture(truth=["couch"])], tmp_path / "false.png")
    assert not pixels(tmp_path / "true.png", LIGHT["wrong"]).any()
    red = pixels(tmp_path / "false.png", LIGHT["wrong"])
    assert red.sum(1).max() > 3 * np.median(red.sum(1)[red.sum(1) > 0])  # the line through them


def test_pictures_stand_one_below_the_other(tmp_path):
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    write_figure([picture()], one)
    write_figure(
        [picture(), picture("other", images=[Image.new("RGB", (80, 240), GREEN)] * 2)], two
    )
    with Image.open(one) as first, Image.open(two) as second:
        assert first.width == second.width and second.height > 2 * first.height


def test_a_long_caption_is_broken_into_lines_inside_the_figure(tmp_path):
    write_figure([picture(greedy="incomprehensibilities " * 30)], tmp_path / "out.png")
    ink = pixels(tmp_path / "out.png", LIGHT["ink"], 200)
    assert not ink[:, -10:].any()


def test_a_dollar_is_no_formula(tmp_path):
    write_figure([picture("$x^{$", greedy="costs $5 and $6_")], tmp_path / "out.svg")


def test_a_figure_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match="cannot write"):
        write_figure([picture()], tmp_path / "missing" / "out.png")
    with pytest.raises(EvaluationError, match=r"ends in \.pdf, \.png, \.svg"):
        write_figure([picture()], tmp_path / "out.gif")
