"""Functions of these tests' tasks, which lmms-eval calls with a document and an answer."""

import io

from PIL import Image


def images(doc):
    """The images of a document: from bytes, a file, or none."""
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
    caption = {word.strip(".,").lower() for word in results[0].split()}
    return {"named": len(words & caption) / len(words)}


def right(doc, results):
    """Whether an answer begins with the right word."""
    return {"right": float(results[0].strip().lower().startswith(doc["answer"]))}
