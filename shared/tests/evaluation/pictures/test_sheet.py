import numpy as np
import pytest
from PIL import Image

from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks.chair import score
from revisit.evaluation.benchmarks.objects.lemmas import LEMMATIZERS
from revisit.evaluation.pictures.sheet import Card, write_sheet
from revisit.evaluation.pictures.style import LIGHT

pytest.importorskip("matplotlib")

BLUE = (30, 60, 160)


def scored(caption, objects=("dog",)):
    found = score({1: caption}, {1: objects}, LEMMATIZERS["noun"]())
    return found.sentences[0]


def drawn(tmp_path, *cards, note=""):
    path = tmp_path / "sheet.png"
    write_sheet(cards, path, note)
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def rgb(name):
    return tuple(int(LIGHT[name][at : at + 2], 16) for at in (1, 3, 5))


def where(pixels, colour, within=40):
    """Left, top, right, bottom of what has a colour, and how many pixels have it."""
    rows, columns = (abs(pixels - colour).sum(2) < within).nonzero()
    return columns.min(), rows.min(), columns.max(), rows.max(), len(rows)


def card(caption="A dog.", changed=(), size=(320, 160)):
    return Card(Image.new("RGB", size, BLUE), [("greedy", scored(caption))], changed)


def test_the_patch_is_outlined_where_it_lies(tmp_path):
    box = (0.5, 0.25, 0.75, 0.5)
    pixels = drawn(tmp_path, card(changed=[(2, box)]))
    left, top, right, bottom, _ = where(pixels, BLUE)
    width, height = right - left + 1, bottom - top + 1
    assert width / height == pytest.approx(2, abs=0.03)
    part = pixels[top : bottom + 1, left : right + 1]
    part = part[int(0.3 * height) :]  # below the disc of the number
    found = where(part, rgb("on"), 60)
    assert found[0] / width == pytest.approx(box[0], abs=0.02)
    assert (found[3] + int(0.3 * height)) / height == pytest.approx(box[3], abs=0.03)


def test_the_number_stands_before_its_word_and_at_its_patch(tmp_path):
    plain = drawn(tmp_path, card())
    numbered = drawn(tmp_path, card(changed=[(2, (0.5, 0.25, 0.75, 0.5))]))
    yellow = (abs(numbered - rgb("on")).sum(2) < 60) & (abs(plain - rgb("on")).sum(2) >= 60)
    beside = yellow.copy()
    beside[:, : where(plain, BLUE)[2]] = False
    assert beside.sum() > 100 and (yellow & ~beside).sum() > 100


def test_hallucinated_and_repeated_words_are_marked(tmp_path):
    """More of each colour than the legend has."""
    plain = drawn(tmp_path, card("A dog runs."))
    wrong = drawn(tmp_path, card("A cat and a dog."))
    again = drawn(tmp_path, card("A dog and a dog."))
    count = {
        (name, colour): (abs(pixels - rgb(colour)).sum(2) < 60).sum()
        for name, pixels in (("plain", plain), ("wrong", wrong), ("again", again))
        for colour in ("wrong", "again")
    }
    assert count["wrong", "wrong"] > count["plain", "wrong"] + 50
    assert count["again", "again"] > count["plain", "again"] + 50
    assert count["again", "wrong"] == pytest.approx(count["plain", "wrong"], abs=5)


def ink_below(pixels, from_x):
    """The lowest row that anything but paper stands in, right of a column."""
    part = pixels[:, from_x:-40]
    return (abs(part - rgb("card")).sum(2) > 200).any(1).nonzero()[0].max()


def test_a_long_caption_makes_its_card_higher_and_stays_within(tmp_path):
    long = drawn(tmp_path, card("A dog and a cat. " * 40))
    short = drawn(tmp_path, card())
    assert long.shape[1] == short.shape[1] and long.shape[0] > short.shape[0] + 200
    right = where(long, BLUE)[2]
    assert ink_below(long, right + 10) < long.shape[0] - 30
    edge = long[100:-30, -38:-21]  # between the text and the card's edge
    assert (abs(edge - rgb("card")).sum(2) < 30).all()


def test_numbers_of_one_patch_stand_beside_each_other(tmp_path):
    box = (0.1, 0.25, 0.3, 0.5)
    one = drawn(tmp_path, card("A dog, a dog.", [(2, box)]))
    two = drawn(tmp_path, card("A dog, a dog.", [(2, box), (9, box)]))
    inside = np.s_[:, : where(one, BLUE)[2]]
    count = [(abs(each[inside] - rgb("on")).sum(2) < 60).sum() for each in (one, two)]
    assert count[1] > count[0] + 100


def test_a_sheet_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(EvaluationError, match="cannot write"):
        write_sheet([card()], tmp_path / "missing" / "sheet.png", "")
