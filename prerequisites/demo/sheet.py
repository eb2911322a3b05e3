"""The demo's picture: images with two captions each, hallucinated and repeated words marked.

Where ReVisiT changed what is named, an object or the background, the word has a number, and the
same number stands in the image on the vision token that gave the word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from captions import WORDS

PICTURE = 300
WIDTH, MARGIN = 1000, 20
TOP = 82
LINE, TEXT = 30, 22

GRID = 8
"""Patches in a row of a picture, in both families; pictures are square: none is padded or cut."""
NAMING = {word.split()[0] for word in WORDS}
"""Words that name something, or begin to."""

PAPER, CARD_COLOUR = (244, 245, 248), (255, 255, 255)
INK, QUIET = (45, 49, 60), (120, 126, 140)
WRONG, RIGHT, AGAIN = (208, 38, 60), (28, 126, 72), (186, 110, 0)
BADGE = (38, 84, 190)

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Example:
    """An image, and titled captions of it as the scorer found them (`Score.sentences`).

    ``steps`` is the trace of the last caption: its tokens in order, as ``asking.py`` writes them.
    """

    image: Path
    captions: list[tuple[str, dict[str, Any]]]
    steps: list[dict[str, Any]]


def draw_sheet(examples: list[Example], path: Path) -> None:
    """Write the sheet of ``examples``, one below the other, as a PNG."""
    height = PICTURE + 2 * MARGIN
    sheet = Image.new("RGB", (WIDTH, TOP + len(examples) * (height + MARGIN)), PAPER)
    _legend(ImageDraw.Draw(sheet))
    for number, example in enumerate(examples):
        sheet.paste(_card(example, height), (MARGIN, TOP + number * (height + MARGIN)))
    sheet.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def _font(size: int) -> Font:
    return ImageFont.load_default(size=size)


def _legend(pen: ImageDraw.ImageDraw) -> None:
    font = _font(18)
    x, y = float(MARGIN), 16.0
    for text, colour, ruled in (
        ("in the image", RIGHT, False),
        ("not in the image", WRONG, True),
        ("said before", AGAIN, True),
    ):
        _word(pen, (x, y), text, colour, ruled, font)
        x += pen.textlength(text, font=font) + 28
    _badge(pen, (x + 8, y + 11), 1)
    pen.text((x + 26, y), "changed by ReVisiT: the vision token it is from", font=font, fill=INK)
    note = "The first images, by id, whose two captions name different objects."
    pen.text((MARGIN, y + 30), note, font=_font(16), fill=QUIET)


def _card(example: Example, height: int) -> Image.Image:
    card = Image.new("RGB", (WIDTH - 2 * MARGIN, height), CARD_COLOUR)
    pen = ImageDraw.Draw(card)
    with Image.open(example.image) as image:
        card.paste(image.convert("RGB").resize((PICTURE, PICTURE)), (MARGIN, MARGIN))
    changed = changed_words(example.captions[-1][1]["caption"], example.steps)
    for number, (_, patch) in enumerate(changed, 1):
        _place(pen, patch, number)
    left, y = PICTURE + 2 * MARGIN, MARGIN - 6
    for title, sentence in example.captions:
        pen.text((left, y), title, font=_font(17), fill=QUIET)
        last = sentence is example.captions[-1][1]
        badges = {start: n for n, (start, _) in enumerate(changed, 1)} if last else {}
        y = _paragraph(pen, (left, y + 26), card.width - MARGIN, sentence, badges) + 14
    return card


def changed_words(caption: str, steps: list[dict[str, Any]]) -> list[tuple[int, Any]]:
    """Where in the caption each word that ReVisiT changed to name something begins, and the patch
    (frame, row, column) that it came from."""
    found, cursor = [], 0
    for step in steps:
        if not step["text"]:
            continue
        start = caption.index(step["text"], cursor)
        cursor = start + len(step["text"])
        if step["changed"] and step["text"] in NAMING:
            found.append((start, step["patch"]))
    return found


def _place(pen: ImageDraw.ImageDraw, patch: tuple[int, int, int], number: int) -> None:
    """Frame the patch in the picture of a card, and number it."""
    side = PICTURE / GRID
    x, y = MARGIN + patch[2] * side, MARGIN + patch[1] * side
    pen.rectangle((x, y, x + side, y + side), outline=BADGE, width=3)
    _badge(pen, (x + side, y), number)


def _badge(pen: ImageDraw.ImageDraw, centre: tuple[float, float], number: int) -> None:
    x, y = centre
    pen.ellipse((x - 11, y - 11, x + 11, y + 11), fill=BADGE, outline=CARD_COLOUR, width=2)
    pen.text((x, y), str(number), font=_font(15), fill=CARD_COLOUR, anchor="mm")


def _paragraph(
    pen: ImageDraw.ImageDraw,
    at: tuple[int, int],
    right: int,
    sentence: dict[str, Any],
    badges: dict[int, int],
) -> int:
    """Write a caption between ``at`` and ``right``; returns the height below its last line.

    ``badges``: the number of the words that begin at these characters.
    """
    font = _font(TEXT)
    space = pen.textlength(" ", font=font)
    colours = _colours(sentence)
    x, y = float(at[0]), at[1]
    for match in re.finditer(r"\S+", sentence["caption"]):
        number = badges.get(match.start())
        length = pen.textlength(match[0], font=font)
        if x + length + (24 if number else 0) > right:
            x, y = float(at[0]), y + LINE
        if number:
            _badge(pen, (x + 11, y + 13), number)
            x += 26
        colour = colours[match.start()]
        _word(pen, (x, y), match[0], colour, colour in (WRONG, AGAIN), font)
        x += length + space
    return y + LINE


def _colours(sentence: dict[str, Any]) -> list[Colour]:
    """The colour of each character: object words stand out, the wrong and the repeated more."""
    caption = sentence["caption"]
    colours = [INK] * len(caption)
    wrong = {word for word, _ in sentence["hallucinated"]}
    cursor, said = 0, set()
    for word in sentence["words"]:
        match = re.compile(rf"\b{re.escape(word)}", re.IGNORECASE).search(caption, cursor)
        if match is None:
            raise ValueError(f"{word!r} is not in the caption {caption!r}")
        colour = WRONG if word in wrong else AGAIN if word in said else RIGHT
        cursor = match.end()
        colours[match.start() : cursor] = [colour] * len(match[0])
        said.add(word)
    return colours


def _word(
    pen: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    colour: Colour,
    ruled: bool,
    font: Font,
) -> None:
    pen.text(at, text, font=font, fill=colour)
    if ruled:
        width = pen.textlength(text.rstrip(".,"), font=font)
        below = at[1] + LINE - 4
        pen.line((at[0], below, at[0] + width, below), fill=colour, width=2)
