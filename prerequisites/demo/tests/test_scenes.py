import io

import numpy as np
import pytest

from captions import (
    HABIT,
    HABITUAL,
    WORDS,
    caption,
    conversation,
    described,
    named_things,
    references,
    yes_or_no,
)
from revisit.evaluation.benchmarks.objects.lemmas import LEMMATIZERS
from revisit.evaluation.benchmarks.objects.lexicon import OBJECT_OF, OBJECTS
from revisit.evaluation.benchmarks.objects.truth import object_words
from scenes import (
    BACKGROUNDS,
    GROUPS,
    SIZE,
    THINGS,
    Scene,
    Thing,
    coverage,
    draw,
    sample_scene,
)

pytestmark = pytest.mark.usefixtures("font")


def objects_of(text: str) -> set[str]:
    words, _ = object_words(LEMMATIZERS["noun"]()(text))
    return {OBJECT_OF[word] for word in words}


def truth(scene: Scene) -> set[str]:
    return {item.thing.name for item in scene.placed}


SCENES = [(split, index) for split in ("train", "dev", "val") for index in range(60)]


def test_things_are_coco_objects_and_at_least_24() -> None:
    names = [thing.name for thing in THINGS]
    assert len(set(names)) == len(names) >= 24
    assert set(names) <= set(OBJECTS)
    assert len({thing.category_id for thing in THINGS}) == len(THINGS)
    assert not any(word[0] in "aeiou" for word in WORDS), "captions say a, never an"


def things_of(scene: Scene) -> list[Thing]:
    return [item.thing for item in scene.placed]


def test_captions_and_references_name_exactly_the_things_of_the_scene() -> None:
    for split, index in SCENES:
        scene = sample_scene(split, index)
        for seed in range(3):
            text = caption(things_of(scene), scene.background, np.random.default_rng(seed))
            assert objects_of(text) == truth(scene) == set(named_things(text)), text
            assert named_things(text) == [thing.name for thing in things_of(scene)]
            assert text.endswith(
                f" a {WORDS[len(THINGS) + list(BACKGROUNDS).index(scene.background)]}."
            )
        texts = references(scene)
        assert len(texts) == 5
        for text in texts:
            assert objects_of(text) == truth(scene), text


def test_the_describer_adds_what_habit_adds_and_nothing_else() -> None:
    seconds = {first.name: second.name for first, second in HABITUAL}
    missing = added = 0
    rng = np.random.default_rng(0)
    for index in range(1500):
        scene = sample_scene("train", index)
        named = [thing.name for thing in described(scene, rng)]
        extra = [name for name in named if name not in truth(scene)]
        expected = [seconds.get(name) for name in truth(scene)]
        absent = {name for name in expected if name and name not in truth(scene)}
        assert set(extra) <= absent
        assert set(named) - set(extra) == truth(scene)
        assert named == [thing.name for thing in THINGS if thing.name in named]
        missing, added = missing + len(absent), added + len(extra)
    assert added / missing == pytest.approx(HABIT, abs=0.08)


def test_questions_are_answered_truly_and_as_often_by_yes_as_by_no() -> None:
    rng = np.random.default_rng(0)
    partners = {a.name: b.name for pair in GROUPS for a, b in (pair, pair[::-1])}
    yes = pulled = denied = 0
    for index in range(1000):
        scene = sample_scene("train", index)
        question, answer = yes_or_no(scene, rng)
        (name,) = named_things(question)
        assert question == f"Is there a {name} in the image?"
        assert answer == ("Yes" if name in truth(scene) else "No")
        yes += answer == "Yes"
        denied += answer == "No"
        pulled += answer == "No" and partners[name] in truth(scene)
    assert yes / 1000 == pytest.approx(0.5, abs=0.05)
    assert pulled / denied > 0.2


def test_a_conversation_has_one_caption_before_or_after_two_questions() -> None:
    rng = np.random.default_rng(0)
    scene = sample_scene("train", 0)
    places = set()
    for _ in range(20):
        answers = [answer for _, answer in conversation(scene, rng)]
        captions = [i for i, answer in enumerate(answers) if answer not in ("Yes", "No")]
        assert len(answers) == 3 and len(captions) == 1
        places.add(captions[0])
    assert places == {0, 2}


def test_held_out_scenes_break_every_group_up_and_training_scenes_rarely_do() -> None:
    pairs = [tuple(thing.name for thing in group) for group in GROUPS]
    for split, index in SCENES:
        names = truth(sample_scene(split, index))
        if split != "train":
            assert not any(set(pair) <= names for pair in pairs)
    complete = partial = 0
    for index in range(400):
        names = truth(sample_scene("train", index))
        complete += sum(set(pair) <= names for pair in pairs)
        partial += sum(pair[0] in names and pair[1] not in names for pair in pairs)
    assert complete > 2 * partial > 0


def test_a_scene_is_the_same_again_and_no_two_splits_share_one() -> None:
    assert [sample_scene(*key) for key in SCENES] == [sample_scene(*key) for key in SCENES]
    layouts = {(scene.placed, scene.background) for scene in (sample_scene(*key) for key in SCENES)}
    assert len(layouts) == len(SCENES)


def test_the_same_scene_is_drawn_the_same() -> None:
    def jpeg() -> bytes:
        file = io.BytesIO()
        draw(sample_scene("val", 7)).save(file, "JPEG", quality=85)
        return file.getvalue()

    assert jpeg() == jpeg()


def test_boxes_lie_inside_the_picture_and_hold_what_is_drawn() -> None:
    for split, index in SCENES[::6]:
        scene = sample_scene(split, index)
        assert draw(scene).size == (SIZE, SIZE)
        shown = coverage(scene, 32)
        for item in scene.placed:
            x, y, width, height = item.box
            assert min(x, y) >= 0 and max(x + width, y + height) <= SIZE
            cells = np.argwhere(shown == THINGS.index(item.thing))
            assert len(cells) > 4
            rows, columns = (cells + 0.5).T * SIZE / 32
            assert y - 4 <= rows.min() and rows.max() <= y + height + 4
            assert x - 4 <= columns.min() and columns.max() <= x + width + 4


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match=r"'test'.*train, dev, val"):
        sample_scene("test", 0)
