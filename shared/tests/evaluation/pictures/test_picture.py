import pytest

from drawn import CELLS, picture
from revisit.evaluation.pictures.picture import GREEDY, REVISIT, visible
from revisit.evaluation.pictures.words import split


def test_patches_of_words_are_listed_once_in_the_order_of_the_words():
    drawn = picture()
    assert drawn.patches == [(0, CELLS[6]), (1, CELLS[0])]
    looks = {word.text: word.look.patch for word in drawn.shown[REVISIT] if word.look}
    assert looks == {"dog": 0, "runs": 0, "script": 1, "b": 1}  # neither "A" nor the marks


def test_a_sentence_names_the_patch_its_fit_and_the_word_of_greedy_decoding():
    sentences = {word.text: word.look.sentence for word in picture().shown[REVISIT] if word.look}
    assert sentences["dog"] == (
        "“dog”, one of 3 plausible tokens, fits the patch in row 2, column 3 of image 1 best: 0.95 "
        "of 1, by layer 4. Greedy decoding would have said “sofa”."
    )
    assert "Greedy" not in sentences["runs"]


def test_a_word_with_no_other_candidate_is_quiet():
    words = picture().captions[REVISIT]
    step = words[1].tokens[0].step._replace(candidates=1)
    alone = words[1]._replace(tokens=(words[1].tokens[0]._replace(step=step),))
    shown = picture(captions={REVISIT: [alone]}).shown[REVISIT]
    assert shown[0].look is None


PADDED = [(0, (-0.5, -0.5, -0.1, -0.1))] * 33


@pytest.mark.parametrize(
    ("boxes", "phrase"),
    [
        (None, "fits vision token 7, whose place in the image is not known, best"),
        (PADDED, "fits vision token 7 of image 1, which shows padding"),
    ],
    ids=["not known", "padding"],
)
def test_a_token_without_a_patch_is_named_in_the_sentence(boxes, phrase):
    drawn = picture(boxes=boxes)
    assert not drawn.patches
    look = drawn.shown[REVISIT][1].look
    assert phrase in look.sentence and look.patch is None


def test_boxes_of_another_prompt_are_refused():
    with pytest.raises(ValueError, match="chose vision token 6, but boxes are given for 3"):
        _ = picture(boxes=[(0, CELLS[0])] * 3).patches
    with pytest.raises(ValueError, match="image 6 of 2"):
        _ = picture(boxes=[(5, CELLS[0])] * 33).patches


def test_a_box_that_reaches_into_the_padding_is_cut_at_the_image():
    assert visible((-0.1, 0.2, 0.3, 1.4)) == (0.0, 0.2, 0.3, 1.0)
    assert visible((-0.3, 0.2, -0.1, 0.4)) is None


def test_only_changes_of_words_that_name_something_are_shown():
    """Another article or mark of greedy decoding is not shown."""
    words = picture().captions[REVISIT]
    token = words[1].tokens[0]
    article = words[0]._replace(tokens=(token._replace(instead=" the"),))
    mark = words[3]._replace(tokens=(token._replace(instead=" and"),))
    shown = picture(captions={REVISIT: [article, words[1], mark]}).shown[REVISIT]
    assert [word.instead for word in shown] == ["", "sofa", ""]


@pytest.mark.parametrize(
    ("greedy", "refined", "truth", "sentence"),
    [
        (
            "A wine glass, a dog, a wine glass and a vase.",
            "A dog.",
            ["dog"],
            "Greedy decoding names “wine glass” and “vase”, which are not in the image. With "
            "ReVisiT every object that is named is there.",
        ),
        ("A vase.", "A dog.", ["dog"], "Greedy decoding names “vase”, which is not in the image."),
        ("A dog.", "A puppy.", ["dog"], "Neither names an object that is not there."),
        ("A dog.", "A cat.", ["dog"], "by greedy decoding nothing; with ReVisiT “cat”."),
        ("A cat, a cup.", "A cat.", ["dog"], "decoding “cat”, “cup”; with ReVisiT “cat”."),
        ("A cat.", "A dog.", None, "ReVisiT changed no word of greedy decoding's."),
    ],
)
def test_the_summary_names_the_wrong_words_of_both_captions(greedy, refined, truth, sentence):
    captions = {GREEDY: split(greedy), REVISIT: split(refined)}
    assert sentence in picture(captions=captions, truth=truth).summary


def test_words_while_they_come_have_no_patches():
    drawn = picture(truth=["dog"])
    words = drawn.words_json()[1]["words"]
    assert [word["look"] for word in words] == [None] * len(words)
    assert [word["text"] for word in words] == [word.text for word in drawn.shown[REVISIT]]
    assert picture(captions={GREEDY: []}).words_json() == [{"name": GREEDY, "words": []}]
