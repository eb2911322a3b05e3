import pytest

from drawn import CELLS, picture
from revisit.evaluation.pictures.picture import describe, place, visible


def test_patches_are_those_that_words_came_from_each_once():
    drawn = picture()
    assert [(patch.image, patch.box) for patch in drawn.patches] == [
        (0, CELLS[6]),
        (0, CELLS[15]),
        (1, CELLS[0]),
    ]
    words = [[drawn.words[word].text for word in patch.words] for patch in drawn.patches]
    assert words == [["dog", "runs"], ["."], ["</", "script", "><", "b", ">"]]


def test_a_line_tells_the_patch_how_sure_it_is_and_what_greedy_would_have_said():
    drawn = picture()
    told = [describe(drawn, word.tokens[0]) for word in drawn.words]
    assert "image 1, vision token 33, which shows padding" in told[0]
    assert "row 2, column 3, 62% from the left, 38% from the top" in told[1]
    assert "fit 0.95 (divergence 0.05 nats), 3 candidates" in told[1]
    assert "greedy decoding would have said “sofa”" in told[1]
    assert "every patch fits alike" in told[3] and "fit 1" not in told[3]


def test_places_that_are_not_known_are_said_to_be():
    drawn = picture(boxes=None)
    assert not drawn.patches
    assert "vision token 7, place in the image not known" in describe(
        drawn, drawn.words[1].tokens[0]
    )


def test_boxes_of_another_prompt_are_refused():
    with pytest.raises(ValueError, match="chose vision token 32, but boxes are given for 3"):
        picture(boxes=[(0, CELLS[0])] * 3)
    with pytest.raises(ValueError, match="image 6 of 2"):
        picture(boxes=[(5, CELLS[0])] * 33)


def test_a_box_that_reaches_into_the_padding_is_cut_at_the_image():
    assert visible((-0.1, 0.2, 0.3, 1.4)) == (0.0, 0.2, 0.3, 1.0)
    assert visible((-0.3, 0.2, -0.1, 0.4)) is None
    assert place(picture(), picture().words[0].tokens[0]) is not None
