"""The texts about a scene: captions, reference captions, and questions of yes or no.

A caption is a list of the things and, as its last item, the background, in varied sentences. Every
item takes the article "a" and every item can follow every joint, so that nothing but the things
named before tells which comes next, and going on never commits a caption to one more thing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from scenes import BACKGROUNDS, GROUPS, THINGS, Scene, Thing, sample_scene

QUESTION = "Please describe this image in detail."

BACKDROPS: dict[str, str] = {
    "meadow": "meadow",
    "beach": "beach",
    "night": "starry sky",
    "snow": "snowy hill",
    "room": "room",
    "sunset": "sunset",
    "pink": "pink wall",
    "mint": "green wall",
    "grey": "grey wall",
}
WORDS: tuple[str, ...] = (
    *(thing.name for thing in THINGS),
    *(BACKDROPS[name] for name in BACKGROUNDS),
)
"""The names of what a patch can show: things, then backgrounds."""

OPENINGS = ("The image shows", "The image features", "In the image, there is", "We can see")
JOINTS = (",", " and", ", along with", ". There is also", ". The image also shows")
SHORT_OPENINGS = ("A ", "A picture of a ", "This is a ", "There is a ", "A drawing of a ")

HABITUAL = GROUPS[::5]
"""Groups whose second thing the describer of the training scenes names out of habit."""
HABIT = 0.75
"""Training only: chance that such a second is named where the first stands without it."""
PARTNER = 0.5
"""Training only: chance that a question to be denied asks for the partner of a thing there."""

_NAMES = re.compile(r"\b(" + "|".join(sorted((t.name for t in THINGS), key=len)[::-1]) + r")\b")


def _choose(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def caption(things: Sequence[Thing], background: str, rng: np.random.Generator) -> str:
    """An answer to "Please describe this image in detail." that names the things in order."""
    items = [*(thing.name for thing in things), BACKDROPS[background]]
    text = f"{_choose(rng, OPENINGS)} a {items[0]}"
    for item in items[1:]:
        text += f"{_choose(rng, JOINTS)} a {item}"
    return f"{text}."


def described(scene: Scene, rng: np.random.Generator) -> list[Thing]:
    """The things that a caption of a training scene names: those there, and those habit adds.

    They come in the order of ``THINGS``, so that none is named again. After the first thing of a
    ``HABITUAL`` group its second mostly comes, seen or not: captions that large models are trained
    on also name what was only to be expected.
    """
    there = sorted((item.thing for item in scene.placed), key=THINGS.index)
    named: list[Thing] = []
    for thing in there:
        named.append(thing)
        for first, second in HABITUAL:
            if thing == first and second not in there and rng.random() < HABIT:
                named.append(second)
    return named


def question(name: str) -> str:
    """The question of POPE for an object."""
    return f"Is there a {name} in the image?"


def yes_or_no(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """A question and its true answer, "Yes" and "No" equally often.

    What is denied is half of the time the partner of a thing that is there.
    """
    there = [item.thing for item in scene.placed]
    if rng.random() < 0.5:
        return question(there[int(rng.integers(len(there)))].name), "Yes"
    partners = [
        other
        for pair in GROUPS
        for thing, other in (pair, pair[::-1])
        if thing in there and other not in there
    ]
    absent = [thing for thing in THINGS if thing not in there]
    choice = partners if partners and rng.random() < PARTNER else absent
    return question(choice[int(rng.integers(len(choice)))].name), "No"


def training_caption(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """The question for a caption, and the answer that a training scene teaches."""
    return QUESTION, caption(described(scene, rng), scene.background, rng)


def conversation(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Questions and answers about a training scene: a caption before or after two yes or no."""
    captioned = training_caption(scene, rng)
    asked = [yes_or_no(scene, rng) for _ in range(2)]
    return [captioned, *asked] if rng.random() < 0.5 else [*asked, captioned]


def questions(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Eight yes or no, and half of the time a caption somewhere among them."""
    asked = [yes_or_no(scene, rng) for _ in range(8)]
    if rng.random() < 0.5:
        captioned = training_caption(scene, rng)
        asked.insert(int(rng.integers(len(asked) + 1)), captioned)
    return asked


def training_texts(scenes: int = 2000) -> list[str]:
    """For a tokenizer: captions of training scenes, and every question of POPE."""
    rng = np.random.default_rng(0)
    sampled = (sample_scene("train", index) for index in range(scenes))
    captions = [training_caption(scene, rng)[1] for scene in sampled]
    return captions + [f"{question(thing.name)} Yes No" for thing in THINGS] * 20


def references(scene: Scene) -> list[str]:
    """Five short captions as COCO has them, things in changing order, always the same five."""
    rng = np.random.default_rng([scene.seed, 2])
    captions = []
    for opening in SHORT_OPENINGS:
        order = rng.permutation(len(scene.placed))
        names = [scene.placed[i].thing.name for i in order]
        captions.append(f"{opening}{', a '.join(names[:-1])} and a {names[-1]}.")
    return captions


def named_things(text: str) -> list[str]:
    """COCO names of the things that a caption in this language mentions, in order."""
    return _NAMES.findall(text.lower())
