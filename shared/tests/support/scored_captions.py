"""Captions scored by `revisit score chair`, with the record of a run that made them."""

import json

from revisit.commands.main import main


def score_captions(folder, name, captions, objects, record=None):
    """The path of the result; `captions` and `objects` are by image id."""
    file, cache, out = (
        folder / f"{name}{ending}" for ending in (".jsonl", "-objects.json", ".json")
    )
    lines = [json.dumps({"image_id": image, "caption": text}) for image, text in captions.items()]
    file.write_text("\n".join(lines))
    if record is not None:
        (folder / f"{name}.jsonl.run.json").write_text(json.dumps(record))
    cache.write_text(json.dumps({"objects": {str(image): each for image, each in objects.items()}}))
    flags = ["--cap_file", file, "--cache", cache, "--save_path", out, "--lemmatizer", "noun"]
    assert main(["score", "chair", *map(str, flags)]) == 0
    return out
