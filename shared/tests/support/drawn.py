"""Captions to draw: patches at known positions of two images."""

from PIL import Image

from revisit.core.trace import TraceStep
from revisit.evaluation.pictures.picture import GREEDY, REVISIT, Picture
from revisit.evaluation.pictures.words import join, split

PIECES = ["A", " dog", " runs", ".", " sofa", " </script><b>"]
CELLS = [
    (column / 4, row / 4, (column + 1) / 4, (row + 1) / 4)
    for row in (0, 1, 2, 3)
    for column in range(4)
]
PADDING = (0.0, -0.5, 0.25, -0.25)
BLUE, GREEN = (30, 60, 160), (30, 130, 60)


def decode(tokens):
    return "".join(PIECES[token] for token in tokens).strip()


def step(token, vision_token, *, plain=None, candidates=3, divergence=0.05):
    plain = token if plain is None else plain
    row, column = divmod(vision_token, 4)
    return TraceStep(
        vision_token, 4, 0, (0, row, column), candidates, divergence, plain, token, token
    )


def picture(title="photo.jpg", truth=None, greedy="A sofa, a dog.", **changes):
    """“A dog runs. </script><b>”, and a greedy caption. ReVisiT changed dog; dog and runs came
    from the third patch of the second row, the last words from the second image."""
    steps = [
        step(0, 32),
        step(1, 6, plain=4),
        step(2, 6),
        step(3, 15, candidates=1, divergence=0.0),
        step(5, 16),
    ]
    boxes = [(image, box) for image in (0, 1) for box in CELLS] + [(0, PADDING)]
    fits = {1: [0.9 if at == 6 else at / 100 for at in range(len(boxes))]}
    words = join([step.token for step in steps], steps, decode, fits)
    contents = {
        "images": [Image.new("RGB", (320, 160), BLUE), Image.new("RGB", (160, 320), GREEN)],
        "captions": {GREEDY: split(greedy), REVISIT: words},
        "boxes": boxes,
    }
    return Picture(title, truth=truth, **contents | changes)
