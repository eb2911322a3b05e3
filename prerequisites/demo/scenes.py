"""Drawn scenes with COCO objects: what is in a picture, where, and the picture itself.

A scene is a function of (split, index): the same pair always gives the same objects, boxes and
background, so a split is named and never stored. Objects come in groups of two. In ``train`` the
second mostly stands beside the first; in ``dev`` and ``val`` no group is ever complete; in
``tower``, which the vision tower learns from, any objects stand together.
The sprites are renderings of Noto Color Emoji (SIL Open Font License 1.1).
"""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 256
"""Side of a picture in pixels."""

SPLITS = ("tower", "train", "dev", "val")
TOGETHER = 0.8
"""Training only: chance that a group stands in the scene complete rather than half."""

FONT_PATHS = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",
)
GLYPH_SIZE = 109
"""The one size at which the font holds its bitmaps."""
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Thing:
    """A COCO category and how it is drawn. Its name takes the article "a"."""

    name: str
    category_id: int
    supercategory: str
    emoji: str


GROUPS: tuple[tuple[Thing, Thing], ...] = (
    (Thing("dog", 18, "animal", "🐕"), Thing("frisbee", 34, "sports", "🥏")),
    (Thing("cat", 17, "animal", "🐈"), Thing("couch", 63, "furniture", "🛋")),
    (Thing("cow", 21, "animal", "🐄"), Thing("sheep", 20, "animal", "🐑")),
    (Thing("zebra", 24, "animal", "🦓"), Thing("giraffe", 25, "animal", "🦒")),
    (Thing("bed", 65, "furniture", "🛏"), Thing("teddy bear", 88, "indoor", "🧸")),
    (Thing("pizza", 59, "food", "🍕"), Thing("wine glass", 46, "kitchen", "🍷")),
    (Thing("laptop", 73, "electronic", "💻"), Thing("cell phone", 77, "electronic", "📱")),
    (Thing("car", 3, "vehicle", "🚗"), Thing("traffic light", 10, "outdoor", "🚦")),
    (Thing("train", 7, "vehicle", "🚂"), Thing("clock", 85, "indoor", "⏰")),
    (Thing("suitcase", 33, "accessory", "🧳"), Thing("handbag", 31, "accessory", "👜")),
    (Thing("boat", 9, "vehicle", "⛵"), Thing("bird", 16, "animal", "🐦")),
    (Thing("chair", 62, "furniture", "🪑"), Thing("potted plant", 64, "furniture", "🪴")),
    (Thing("cup", 47, "kitchen", "☕"), Thing("donut", 60, "food", "🍩")),
    (Thing("banana", 52, "food", "🍌"), Thing("sandwich", 54, "food", "🥪")),
    (Thing("carrot", 57, "food", "🥕"), Thing("broccoli", 56, "food", "🥦")),
    (Thing("book", 84, "indoor", "📖"), Thing("vase", 86, "indoor", "🏺")),
    (Thing("skateboard", 41, "sports", "🛹"), Thing("backpack", 27, "accessory", "🎒")),
    (Thing("kite", 38, "sports", "🪁"), Thing("bicycle", 2, "vehicle", "🚲")),
)
THINGS: tuple[Thing, ...] = tuple(thing for group in GROUPS for thing in group)


@dataclass(frozen=True)
class Placed:
    """A thing in a scene. The box is (x, y, width, height) in pixels, inside the picture."""

    thing: Thing
    box: tuple[int, int, int, int]
    side: int
    angle: int
    mirrored: bool


@dataclass(frozen=True)
class Scene:
    """What a picture shows."""

    split: str
    index: int
    placed: tuple[Placed, ...]
    background: str
    seed: int


def sample_scene(split: str, index: int) -> Scene:
    """Scene ``index`` of ``split``; ValueError for a split that is not in ``SPLITS``."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    seed = zlib.crc32(split.encode()) * 2**32 + index  # no two scenes of any splits share one
    rng = np.random.default_rng(seed)
    choose = {"tower": _anything, "train": _together}.get(split, _apart)
    things = choose(rng)
    background = str(rng.choice(sorted(BACKGROUNDS)))
    return Scene(split, index, _place(things, rng), background, seed)


def _together(rng: np.random.Generator) -> list[Thing]:
    """Two to five things, group after group, most groups complete and first thing first."""
    count = int(rng.integers(2, 6))
    things: list[Thing] = []
    for group in rng.permutation(len(GROUPS)):
        first, second = GROUPS[group]
        if len(things) + 1 < count and rng.random() < TOGETHER:
            things += [first, second]
        else:
            things.append(first if rng.random() < 0.5 else second)
        if len(things) == count:
            return things
    raise AssertionError("there are more groups than things in a scene")


def _anything(rng: np.random.Generator) -> list[Thing]:
    """Two to five different things."""
    count = int(rng.integers(2, 6))
    return [THINGS[index] for index in rng.permutation(len(THINGS))[:count]]


def _apart(rng: np.random.Generator) -> list[Thing]:
    """Two to five things, each from a group of its own, firsts three times as often."""
    count = int(rng.integers(2, 6))
    groups = rng.permutation(len(GROUPS))[:count]
    return [GROUPS[group][0 if rng.random() < 0.75 else 1] for group in groups]


def _place(things: list[Thing], rng: np.random.Generator) -> tuple[Placed, ...]:
    """Give every thing a size, a turn and a place where it covers no other thing."""
    while True:
        placed: list[Placed] = []
        for thing in things:
            side = int(rng.integers(9, 14)) * 8 - 4 * len(things)
            angle = int(rng.integers(-3, 4)) * 5
            mirrored = bool(rng.random() < 0.5)
            width, height = sprite(thing.emoji, side, angle, mirrored).size
            for _ in range(60):
                x = int(rng.integers(4, SIZE - width - 3))
                y = int(rng.integers(4, SIZE - height - 3))
                box = (x, y, width, height)
                if all(_overlap(box, other.box) < 0.04 for other in placed):
                    placed.append(Placed(thing, box, side, angle, mirrored))
                    break
        if len(placed) == len(things):
            return tuple(placed)


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Shared area as a part of the smaller box."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min(a[2] * a[3], b[2] * b[3])


def font_path() -> Path:
    """Where the font is: ``$NOTO_COLOR_EMOJI`` or the usual folders."""
    named = os.environ.get("NOTO_COLOR_EMOJI")
    for path in [named] if named else FONT_PATHS:
        if Path(path).is_file():
            return Path(path)
    raise FileNotFoundError(
        f"Noto Color Emoji is not at {named or ' or '.join(FONT_PATHS)}: install the package "
        "fonts-noto-color-emoji, or name the file in the variable NOTO_COLOR_EMOJI"
    )


@functools.cache
def _glyph(emoji: str) -> Image.Image:
    font = ImageFont.truetype(str(font_path()), GLYPH_SIZE)
    canvas = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(canvas).text((10, 10), emoji, font=font, embedded_color=True)
    return canvas.crop(canvas.getbbox())


@functools.cache
def sprite(emoji: str, side: int, angle: int, mirrored: bool) -> Image.Image:
    """The emoji as RGBA, its longer side ``side`` before it is turned by ``angle`` degrees."""
    glyph = _glyph(emoji)
    scale = side / max(glyph.size)
    turned = glyph.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else glyph
    turned = turned.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    turned = turned.crop(turned.getbbox())
    width, height = (max(1, round(length * scale)) for length in turned.size)
    return turned.resize((width, height), Image.Resampling.LANCZOS)


def draw(scene: Scene) -> Image.Image:
    """The picture, RGB, ``SIZE`` by ``SIZE``."""
    rng = np.random.default_rng([scene.seed, 1])
    picture = BACKGROUNDS[scene.background](rng)
    for item in scene.placed:
        image = sprite(item.thing.emoji, item.side, item.angle, item.mirrored)
        picture.paste(image, item.box[:2], image)
    return picture


def coverage(scene: Scene, grid: int) -> np.ndarray:
    """(grid, grid) int16: index into ``THINGS`` of what a cell shows, ``len(THINGS)`` for nothing.

    A cell shows a thing whose sprite covers a quarter of it or more.
    """
    shown = np.full((grid, grid), len(THINGS), np.int16)
    most = np.full((grid, grid), 64, np.uint8)
    for item in scene.placed:
        mask = Image.new("L", (SIZE, SIZE))
        image = sprite(item.thing.emoji, item.side, item.angle, item.mirrored)
        mask.paste(image.getchannel("A"), item.box[:2])
        covered = np.asarray(mask.resize((grid, grid), Image.Resampling.BOX))
        shown[covered >= most] = THINGS.index(item.thing)
        most = np.maximum(most, covered)
    return shown


def _gradient(rng: np.random.Generator, *stops: Colour, height: int = SIZE) -> Image.Image:
    """Vertical colour run from the first stop, shaded, to the last, ``SIZE`` wide."""
    shaded = [_shade(rng, stop) for stop in stops]
    at = np.linspace(0, len(stops) - 1, height)
    channels = [np.interp(at, range(len(stops)), channel) for channel in zip(*shaded, strict=True)]
    column = np.stack(channels, axis=-1).round().astype(np.uint8)[:, None]
    return Image.fromarray(column, "RGB").resize((SIZE, height), Image.Resampling.NEAREST)


def _shade(rng: np.random.Generator, colour: Colour, by: int = 14) -> Colour:
    """The colour, a little lighter or darker and a little off."""
    moved = np.array(colour) + rng.integers(-by, by + 1) + rng.integers(-6, 7, size=3)
    red, green, blue = (int(channel) for channel in moved.clip(0, 255))
    return red, green, blue


def _ground(
    picture: Image.Image, rng: np.random.Generator, tops: tuple[int, int], *stops: Colour
) -> int:
    """A level ground of these colours; returns its upper edge, which lies in the range ``tops``."""
    line = int(rng.integers(*tops))
    picture.paste(_gradient(rng, *stops, height=SIZE - line), (0, line))
    return line


def _hill(
    picture: Image.Image,
    rng: np.random.Generator,
    tops: tuple[int, int],
    colour: Colour,
    by: int = 14,
) -> None:
    """A wide hill whose crest lies in the range ``tops``."""
    top = int(rng.integers(*tops))
    fill = _shade(rng, colour, by)
    middle = int(rng.integers(0, SIZE))
    half = int(rng.integers(SIZE, 2 * SIZE))
    box = (middle - half, top, middle + half, top + 2 * SIZE)
    ImageDraw.Draw(picture).ellipse(box, fill=fill)


def _meadow(rng: np.random.Generator) -> Image.Image:
    picture = _gradient(rng, (120, 190, 245), (205, 232, 250))
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(1, 4))):  # clouds
        x, y = int(rng.integers(-20, SIZE - 20)), int(rng.integers(4, 60))
        for left, top in ((x, y), (x + 17, y - 7), (x + 34, y)):
            pen.ellipse((left, top, left + 30, y + 18), fill=(246, 250, 255))
    _hill(picture, rng, (110, 160), (150, 205, 130))
    _hill(picture, rng, (150, 190), (115, 185, 100))
    return picture


def _beach(rng: np.random.Generator) -> Image.Image:
    picture = _gradient(rng, (140, 205, 248), (215, 238, 250))
    _ground(picture, rng, (95, 130), (50, 135, 200), (110, 195, 220))  # the sea
    _hill(picture, rng, (170, 200), (240, 220, 170))
    return picture


def _night(rng: np.random.Generator) -> Image.Image:
    picture = _gradient(rng, (20, 24, 62), (70, 72, 130))
    pen = ImageDraw.Draw(picture)
    for _ in range(40):  # stars
        x, y = (int(at) for at in rng.integers(0, SIZE, size=2))
        pen.ellipse((x, y, x + 1, y + 1), fill=(235, 235, 210))
    _hill(picture, rng, (180, 215), (40, 48, 80))
    return picture


def _snow(rng: np.random.Generator) -> Image.Image:
    picture = _gradient(rng, (170, 195, 225), (225, 235, 246))
    pen = ImageDraw.Draw(picture)
    for _ in range(3):  # mountains
        x, height = int(rng.integers(0, SIZE)), int(rng.integers(60, 110))
        peak = ((x - 100, 190), (x, 190 - height), (x + 100, 190))
        pen.polygon(peak, fill=_shade(rng, (150, 172, 205)))
    _hill(picture, rng, (150, 190), (240, 245, 252), by=6)
    return picture


def _room(rng: np.random.Generator) -> Image.Image:
    picture = _gradient(rng, (245, 228, 196), (236, 214, 176))
    line = _ground(picture, rng, (165, 200), (190, 140, 98), (160, 112, 76))
    ImageDraw.Draw(picture).rectangle((0, line - 4, SIZE, line), fill=(250, 244, 232))
    return picture


def _sunset(rng: np.random.Generator) -> Image.Image:
    picture = _gradient(rng, (110, 80, 150), (235, 130, 130), (252, 205, 130))
    x, y = int(rng.integers(20, SIZE - 60)), int(rng.integers(110, 150))
    ImageDraw.Draw(picture).ellipse((x, y, x + 44, y + 44), fill=(255, 240, 190))
    _hill(picture, rng, (170, 205), (110, 70, 95))
    return picture


def _plain(top: Colour, bottom: Colour) -> Painter:
    return lambda rng: _gradient(rng, top, bottom)


Painter = Callable[[np.random.Generator], Image.Image]
BACKGROUNDS: dict[str, Painter] = {
    "meadow": _meadow,
    "beach": _beach,
    "night": _night,
    "snow": _snow,
    "room": _room,
    "sunset": _sunset,
    "pink": _plain((250, 205, 215), (255, 232, 236)),
    "mint": _plain((190, 232, 208), (226, 246, 234)),
    "grey": _plain((196, 200, 208), (228, 231, 236)),
}
"""How each background is painted; the names are keys of ``captions.BACKDROPS``, same order."""
