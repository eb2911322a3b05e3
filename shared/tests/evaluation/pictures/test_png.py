import numpy as np
import pytest
from PIL import Image

from drawn import picture
from revisit.evaluation import EvaluationError
from revisit.evaluation.pictures.png import write_png

pytest.importorskip("matplotlib")

YELLOW = (255, 212, 0)
BLUE = (30, 60, 160)


def test_the_patch_is_outlined_where_it_lies(tmp_path):
    drawn = picture()
    dog = drawn.words[1]
    write_png(picture(words=[dog]), tmp_path / "dog.png")
    pixels = np.asarray(Image.open(tmp_path / "dog.png").convert("RGB")).astype(int)
    (tops, lefts), (rows, columns) = (
        (abs(pixels - colour).sum(2) < 60).nonzero() for colour in (BLUE, YELLOW)
    )
    width, height = lefts.max() - lefts.min() + 1, tops.max() - tops.min() + 1
    assert width / height == pytest.approx(2, abs=0.1)
    box = (
        (columns.min() - lefts.min()) / width,
        (rows.min() - tops.min()) / height,
        (columns.max() - lefts.min()) / width,
        (rows.max() - tops.min()) / height,
    )
    assert box == pytest.approx((0.5, 0.25, 0.75, 0.5), abs=0.04)


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(EvaluationError, match=r"nothing to draw of photo\.jpg"):
        write_png(picture(words=[]), tmp_path / "none.png")
    with pytest.raises(EvaluationError, match="cannot write"):
        write_png(picture(), tmp_path / "missing" / "out.png")
