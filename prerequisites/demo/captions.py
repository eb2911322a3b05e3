"""What is said about a scene: training answers and reference captions, all of it true.

Every object word is one of the CHAIR lexicon and names a thing of the scene, and every thing of
the scene is named. The phrasing is drawn apart from the things, so that nothing but the things
named before tells which thing comes next.
"""

from __future__ import annotations

import re

import numpy as np

from scenes import THINGS, Placed, Scene

QUESTION = "Please describe this image in detail."

BACKDROPS: dict[str, tuple[str, ...]] = {
    "meadow": ("green hills under a blue sky", "a sunny green meadow and a clear blue sky"),
    "beach": ("a sandy beach and the blue sea", "the calm sea behind a bright sandy beach"),
    "night": ("a dark sky full of stars", "a quiet night with many stars in the sky"),
    "snow": ("mountains and a field of white snow", "white snow in front of cold mountains"),
    "room": ("a bright wall and a wooden floor", "a warm room with a wooden floor"),
    "sunset": ("a red sunset over a dark hill", "the setting sun in a colorful sky"),
    "pink": ("a plain pink wall", "nothing but a soft pink color"),
    "mint": ("a plain light green wall", "nothing but a soft green color"),
    "grey": ("a plain grey wall", "nothing but a soft grey color"),
}
PLACES = (
    ("in the top left corner", "at the top", "in the top right corner"),
    ("on the left side", "in the middle", "on the right side"),
    ("in the bottom left corner", "at the bottom", "in the bottom right corner"),
)
OPENINGS = ("The image features", "The image shows", "In the image, there is", "The scene features")
MORE = ("There is also", "In addition, there is", "We can also see", "The image also shows")
JOINS = (" and", ", along with", ", together with")
CLOSINGS = (
    "The background shows {}.",
    "In the background, there is {}.",
    "Everything stands in front of {}.",
)
SHORT_OPENINGS = ("", "a picture of ", "this is ", "there is ", "a drawing of ")

_BY_NOUN = {thing.noun: thing.name for thing in THINGS}
_NOUN = re.compile(r"\b(" + "|".join(sorted(_BY_NOUN, key=len, reverse=True)) + r")\b")


def _choose(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def with_article(noun: str) -> str:
    """The noun after "a" or "an"."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def phrase(item: Placed) -> str:
    """A thing and its place, such as "a dog on the left side"."""
    row, column = item.third
    return f"{with_article(item.thing.noun)} {PLACES[row][column]}"


def answer(scene: Scene, rng: np.random.Generator) -> str:
    """An answer to "Please describe this image in detail.", 20 to 60 words."""
    sentences: list[str] = []
    rest = list(scene.placed)
    while rest:
        opening = _choose(rng, MORE if sentences else OPENINGS)
        taken = 2 if len(rest) > 1 and rng.random() < 0.6 else 1
        named = [phrase(item) for item in rest[:taken]]
        sentences.append(f"{opening} {(_choose(rng, JOINS) + ' ').join(named)}.")
        rest = rest[taken:]
    backdrop = _choose(rng, BACKDROPS[scene.background])
    sentences.append(_choose(rng, CLOSINGS).format(backdrop))
    return " ".join(sentences)


def references(scene: Scene) -> list[str]:
    """Five short captions as COCO has them, things in changing order, always the same five."""
    rng = np.random.default_rng([scene.seed, 2])
    captions = []
    for opening in SHORT_OPENINGS:
        things = [scene.placed[i] for i in rng.permutation(len(scene.placed))]
        named = [
            phrase(item) if rng.random() < 0.4 else with_article(item.thing.noun) for item in things
        ]
        text = f"{opening}{', '.join(named[:-1])} and {named[-1]}"
        captions.append(f"{text[0].upper()}{text[1:]}.")
    return captions


def named_things(text: str) -> list[str]:
    """COCO names of the things that a caption in this language mentions, in order."""
    return [_BY_NOUN[noun] for noun in _NOUN.findall(text.lower())]
