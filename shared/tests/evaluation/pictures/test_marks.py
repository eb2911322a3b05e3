from revisit.evaluation.benchmarks.chair import score
from revisit.evaluation.benchmarks.objects.lemmas import LEMMATIZERS
from revisit.evaluation.pictures.marks import kinds, mark


def marked(caption, objects, lemmatize=None):
    (sentence,) = score({1: caption}, {1: objects}, lemmatize or LEMMATIZERS["noun"]()).sentences
    found = mark(sentence)
    return [(caption[m.start : m.end], m.kind) for m in found.marks], found.unplaced


def test_words_are_right_wrong_or_repeated():
    caption = "A dog and a dogged man. Two Dogs, a puppy, a cat and a cat's dish."
    assert marked(caption, ["dog", "person"]) == (
        [
            *(("dog", "right"), ("man", "right"), ("Dogs", "again"), ("puppy", "again")),
            *(("cat", "wrong"), ("cat", "wrong")),
        ],
        [],
    )


def test_two_words_that_name_one_object_are_one_mark():
    caption = "Hot dogs and wine glasses beside a baby elephant and a hot-dog dog."
    assert marked(caption, ["hot dog", "dog"])[0] == [
        *(("Hot dogs", "right"), ("wine glasses", "wrong")),
        *(("baby elephant", "wrong"), ("dog", "right")),
    ]


def test_a_word_that_a_tagger_reads_out_of_another_is_marked_or_listed():
    assert marked("He is skiing.", ["person"], lambda _: ["he", "be", "ski"]) == (
        [("skiing", "wrong")],
        [],
    )
    assert marked("They went.", ["dog"], lambda _: ["dog"]) == ([], [("dog", "right")])


def test_words_are_marked_by_what_the_image_shows():
    words = ["A", " wine", " glass", ",", " a", " dog", ",", " a", " dog", "."]
    assert kinds(words, ["dog"]) == [
        *(None, "wrong", "wrong", None, None, "right", None, None, "again", None)
    ]
    assert kinds([], ["dog"]) == []
