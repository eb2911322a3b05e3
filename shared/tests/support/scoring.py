"""What the tasks of these tests ask of a document and of an answer, as lmms-eval calls it."""

import io

from PIL import Image


def images(doc):
    """The images of a document: its own bytes, a file, or none."""
    image = doc["image"]
    if image is None:
        return []
    if isinstance(image, str):
        image = Image.open(image)
    if isinstance(image, dict):
        image = Image.open(io.BytesIO(image["bytes"]))
    return [image.convert("RGB")]


def named(doc, results):
    """The share of the reference's longer words that a caption has."""
    words = {word.strip(".,").lower() for word in doc["answer"].split() if len(word) > 3}
    said = {word.strip(".,").lower() for word in results[0].split()}
    return {"named": len(words & said) / len(words)}


def right(doc, results):
    """Whether an answer begins with the right word."""
    return {"right": float(results[0].strip().lower().startswith(doc["answer"]))}
