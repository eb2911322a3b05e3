"""The demo's picture: images with two captions each, hallucinated words marked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

COLUMNS = 2
PICTURE = 256
CARD = (790, 300)
GAP = 20
TOP = 74
LINE = 20

PAPER, CARD_COLOUR = (244, 245, 248), (255, 255, 255)
INK, QUIET = (45, 49, 60), (130, 136, 150)
WRONG, RIGHT = (208, 38, 60), (28, 126, 72)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Example:
    """An image, and titled captions of it as the scorer found them (`Score.sentences`)."""

    image: Path
    captions: list[tuple[str, dict[str, Any]]]


def draw_sheet(examples: list[Example], path: Path) -> None:
    """Write the sheet of ``examples`` as a PNG."""
    rows = -(-len(examples) // COLUMNS)
    width = COLUMNS * CARD[0] + (COLUMNS + 1) * GAP
    height = TOP + rows * (CARD[1] + GAP)
    sheet = Image.new("RGB", (width, height), PAPER)
    _legend(ImageDraw.Draw(sheet))
    for number, example in enumerate(examples):
        row, column = divmod(number, COLUMNS)
        at = (GAP + column * (CARD[0] + GAP), TOP + row * (CARD[1] + GAP))
        sheet.paste(_card(example), at)
    sheet.save(path, optimize=True)


def _font(size: int) -> Font:
    return ImageFont.load_default(size=size)


def _legend(pen: ImageDraw.ImageDraw) -> None:
    pen.text((GAP, 14), "What the captions say", font=_font(24), fill=INK)
    x = float(GAP)
    for text, colour, marked in (
        ("objects in the image", RIGHT, False),
        ("objects that are not there", WRONG, True),
        ("(the first images whose two captions name different objects)", QUIET, False),
    ):
        _word(pen, (x, 46), text, colour, marked, _font(15))
        x += pen.textlength(text, font=_font(15)) + 24


def _card(example: Example) -> Image.Image:
    card = Image.new("RGB", CARD, CARD_COLOUR)
    pen = ImageDraw.Draw(card)
    margin = (CARD[1] - PICTURE) // 2
    with Image.open(example.image) as image:
        card.paste(image.convert("RGB").resize((PICTURE, PICTURE)), (margin, margin))
    left, y = PICTURE + 2 * margin, margin - 8
    for title, sentence in example.captions:
        pen.text((left, y), title, font=_font(13), fill=QUIET)
        y = _paragraph(pen, (left, y + 19), CARD[0] - margin, sentence) + 8
    return card


def _paragraph(
    pen: ImageDraw.ImageDraw, at: tuple[int, int], right: int, sentence: dict[str, Any]
) -> int:
    """Write a caption between ``at`` and ``right``; returns the height below its last line."""
    font = _font(15)
    space = pen.textlength(" ", font=font)
    wrong = {word for word, _ in sentence["hallucinated"]}
    colours = _colours(sentence["caption"], set(sentence["words"]), wrong)
    x, y = float(at[0]), at[1]
    for match in re.finditer(r"\S+", sentence["caption"]):
        colour = colours[match.start()]
        length = pen.textlength(match[0], font=font)
        if x + length > right:
            x, y = float(at[0]), y + LINE
        _word(pen, (x, y), match[0], colour, colour == WRONG, font)
        x += length + space
    return y + LINE


def _colours(caption: str, objects: set[str], wrong: set[str]) -> list[tuple[int, int, int]]:
    """The colour of each character: object words (and their plurals) stand out."""
    colours = [INK] * len(caption)
    for word in sorted(objects, key=len):
        for match in re.finditer(rf"\b{re.escape(word)}(s|es)?\b", caption, re.IGNORECASE):
            colour = WRONG if word in wrong else RIGHT
            colours[match.start() : match.end()] = [colour] * (match.end() - match.start())
    return colours


def _word(
    pen: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    colour: tuple[int, int, int],
    marked: bool,
    font: Font,
) -> None:
    pen.text(at, text, font=font, fill=colour)
    if marked:
        width = pen.textlength(text.rstrip(".,"), font=font)
        below = at[1] + 18
        pen.line((at[0], below, at[0] + width, below), fill=colour, width=2)
