"""Choose the scenes that `revisit web` shows, and write the captions of the demo's Qwen2.5-VL.

The rule, over the scenes of ``val`` by number, with the published default setting (layers all,
alpha 1e-5), which was chosen on no scene:

helps   the first four of which greedy decoding names two objects or more that are not there, and
        ReVisiT none, and no fewer of those that are
same    the first of which both name the same objects
fails   the first of which ReVisiT makes more errors: objects that are not there, or not named

It runs in an environment with a stock Transformers: `.nox/web/bin/python examples.py`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import revisit
from revisit import ReVisiTConfig
from revisit.evaluation.benchmarks import chair
from revisit.evaluation.benchmarks.objects.coco import image_id
from revisit.evaluation.benchmarks.objects.lemmas import LEMMATIZERS
from revisit.evaluation.benchmarks.objects.truth import ground_truth
from revisit.evaluation.images import open_image
from revisit.evaluation.pictures.picture import GREEDY, REVISIT
from revisit.evaluation.pictures.runs import Run

if TYPE_CHECKING:
    from revisit.commands.describe import Describer

COCO = Path(__file__).resolve().parent / "coco"
CONFIG = ReVisiTConfig(layers="all", alpha=1e-5)
HELPS = 4
BATCH, LONGEST = 20, 64  # images, and tokens of a caption that the rule looks at
LABELS = {"same": "same objects", "fails": "does worse"}

_WRONG, _FOUND, _TRUE = 2, 4, 5  # columns of a score's counts


def choose(greedy: chair.Score | Run, refined: chair.Score | Run) -> list[tuple[str, int]]:
    """The kinds and indices of the scenes that the rule chooses, in the order of the page."""
    before, after = greedy.counts, refined.counts
    better = (before[:, _WRONG] >= 2) & (after[:, _WRONG] == 0)
    helps = better & (after[:, _FOUND] >= before[:, _FOUND])
    worse = errors(after) > errors(before)
    pairs = zip(greedy.sentences, refined.sentences, strict=True)
    same = np.array([set(one["node_words"]) == set(two["node_words"]) for one, two in pairs])
    each = (("helps", helps, HELPS), ("same", same, 1), ("fails", worse, 1))
    return [
        (kind, int(index)) for kind, which, many in each for index in np.flatnonzero(which)[:many]
    ]


def errors(counts: Any) -> Any:
    """Of each caption, the objects that are not there, and those that are not named."""
    return counts[:, _WRONG] + counts[:, _TRUE] - counts[:, _FOUND]


def about(greedy: chair.Score, refined: chair.Score) -> str:
    """How often ReVisiT helps, in a sentence."""
    change = errors(refined.counts) - errors(greedy.counts)
    fewer, same, more = ((change < 0).sum(), (change == 0).sum(), (change > 0).sum())
    return (
        f"Made in advance with the published setting (layers all, alpha 1e-5). Of {len(change)} "
        f"scenes that chose no setting, ReVisiT makes fewer errors in {fewer}, as many in {same}, "
        f"more in {more}; the first of each kind are shown."
    )


def captions(
    describer: Describer, files: Mapping[int, Path], config: ReVisiTConfig | None
) -> dict[int, str]:
    """The model's caption of each image, by image id."""
    from revisit.commands.engines.description import QUESTION
    from revisit.commands.engines.transformers import chat_inputs

    model, processor = describer.model, describer.processor
    made: dict[int, str] = {}
    numbers = list(files)
    for start in range(0, len(numbers), BATCH):
        batch = numbers[start : start + BATCH]
        images = [[open_image(files[number]).image] for number in batch]
        inputs = chat_inputs(processor, images, [QUESTION] * len(batch))
        with revisit.attach(model, config) if config else nullcontext():
            output = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        texts = processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        made |= zip(batch, (text.strip() for text in texts), strict=True)
        print(f"{start + len(batch)} of {len(numbers)}", flush=True)
    return made


def example(describer: Describer, file: Path, truth: Collection[str], kind: str) -> dict[str, Any]:
    """An image and its captions, as the page shows them."""
    from revisit.commands.engines.description import picture

    image = open_image(file).image
    texts = {GREEDY: describer.describe(image, None), REVISIT: describer.describe(image, CONFIG)}
    title = f"scene {image_id(file.name)}"
    made = picture(describer.boxes, title, image, texts, truth)
    shown = made.as_json()
    del shown["images"]  # stands beside it
    wrong = sum(word.kind == "wrong" and word.last for word in made.shown[GREEDY])
    label = LABELS.get(kind, f"removes {wrong}")
    url = f"data:image/jpeg;base64,{base64.b64encode(file.read_bytes()).decode()}"
    names = {"title": title, "kind": kind, "label": label}
    return {**names, "truth": sorted(truth), "image": url, "picture": shown}


def main() -> None:
    import transformers

    from revisit.commands.describe import Describer, demo_model
    from revisit.commands.page import EXAMPLES

    transformers.logging.set_verbosity_error()
    describer = Describer(demo_model())
    lemmatize = LEMMATIZERS["noun"]()
    truth = ground_truth(COCO / "annotations", lemmatize)
    files = {image_id(file.name): file for file in sorted((COCO / "val2014").iterdir())}
    greedy = chair.score(captions(describer, files, None), truth, lemmatize)
    refined = chair.score(captions(describer, files, CONFIG), truth, lemmatize)
    chosen = choose(greedy, refined)
    numbers = list(files)
    page: dict[str, Any] = {
        "about": about(greedy, refined),
        "examples": [
            example(describer, files[numbers[at]], truth[numbers[at]], kind) for kind, at in chosen
        ],
    }
    text = json.dumps(page, ensure_ascii=False, separators=(",", ":"))
    Path(str(EXAMPLES)).write_text(text + "\n", encoding="utf-8")
    print(page["about"], [(each["title"], each["label"]) for each in page["examples"]])


if __name__ == "__main__":
    main()
