"""`docs/models.md`: what the tests know of each family, release by release."""

from collections.abc import Mapping, Sequence
from typing import Any

from families import FAMILIES, Broken, Exact, Family, Refused

# Tried in vLLM (shared/tests/vllm); of the others nothing is known.
IN_VLLM = {"llava": "yes", "qwen2_5_vl": "yes"}

HEAD = """# Models

This page lists every model type that Transformers maps to image-text-to-text. The tests write it
(`REVISIT_WRITE_MODELS=1` and the session `stock`), so it reports what they measured, on tiny models
with random weights:

- **exact**: the tokens, scores and chosen vision tokens of a generation equal a dense float64
  computation on the hidden states that Transformers reports, for `layers="last"` and `"all"`, alone
  and in a padded batch.
- **exact with**: the same, if you pass the argument that is named.
- **refused**: an error gives the reason before anything is generated.
- **not built**: the tests have no tiny model of it, so nothing is known. If a part were found
  wrongly, there would be an error; ReVisiT never falls back to plain decoding silently.
- **broken**: this release of Transformers fails to run the model, with or without ReVisiT.

The text decoder, final norm, LM head (tied, biased, scaled, capped, in half precision) and vision
token ids are found from the model and its config, never by its name. The LM head is compared with
the model's logits before anything is decoded. Every family refuses an LM head that is quantized or
offloaded, or that does more than multiply by its weight (an adapter that is not merged, a forward
hook, another `forward`), unless you pass its weights (`lm_head=revisit.LMHead(...)`). Models spread
over several GPUs are not tested.

The columns are the tested releases. ReVisiT was run on Transformers 4.31.0, 4.45.2, 4.49 to 4.57
and 5.0 to 5.24, and with LLaVA only on 4.36.2, 4.38.2, 4.42.4 and 4.44.2. These four releases
expand the single placeholder of an image themselves. There, with `vision_mask` over the expanded
prompt, LLaVA gives the same as on 4.57.

A trace has the vision token and layer for every model. The column *trace* says where it also has
the image and the patch (row and column); for some models only if the prompt has one plain image
([seeing.md](seeing.md) shows patches of more). `revisit check MODEL` tests a model that you name:
it reports what was found, and whether a generation is exact or what to pass. With `--random` it
needs only a `config.json`. The column *vLLM* says where a model was tried with vLLM
([vllm.md](vllm.md)).

| model type | {releases} | argument, remarks | trace | vLLM |
|---|{rules}|---|---|---|
"""


def location(trace: Sequence[Any], of_one_image: Sequence[Any]) -> str:
    """How traces locate a vision token: of a prompt with several images, and of one with one."""
    if all(step.patch is not None for step in trace):
        return "image, row, column"
    if all(step.patch is not None for step in of_one_image):
        return "row, column of one image"
    return "vision token"


def page(before: str, release: str, mapped: Sequence[str], traces: Mapping[str, str]) -> str:
    """The page with what this release's tests saw; other releases' columns stay as they are."""
    columns = _columns(before)
    columns[release] = {key: _state(FAMILIES[key]) for key in mapped}
    releases = sorted(columns, key=lambda name: [int(part) for part in name.split(".")])[::-1]
    newest = release == releases[0]
    # Remarks and traces are the newest release's, where it has the family.
    remarks = {key: [_remarks(FAMILIES[key]), traces.get(key, "")] for key in mapped}
    older = _remarks_before(before)
    remarks = {**older, **remarks} if newest else {**remarks, **older}
    lines = [
        f"| {key} | {' | '.join(columns[each].get(key, '') for each in releases)} | "
        f"{' | '.join(remarks[key])} | {IN_VLLM.get(key, '')} |"
        for key in sorted({key for column in columns.values() for key in column})
    ]
    rules = "|".join("---" for _ in releases)
    return HEAD.format(releases=" | ".join(releases), rules=rules) + "\n".join(lines) + "\n"


def _state(row: Family) -> str:
    if isinstance(row, Exact):
        return "exact with" if row.argument else "exact"
    names = {Refused: "refused", Broken: "broken"}
    return names.get(type(row), "not built")


def _remarks(row: Family) -> str:
    if isinstance(row, Exact):
        return "; ".join(filter(None, [row.argument, row.note]))
    return row.reason


def _cells(before: str) -> list[list[str]]:
    """The table of a page: its head and its rows."""
    lines = [line for line in before.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def _columns(before: str) -> dict[str, dict[str, str]]:
    head, *rows = _cells(before) or [[]]
    return {
        release: {row[0]: row[column] for row in rows if row[column]}
        for column, release in enumerate(head[1:-3], 1)
    }


def _remarks_before(before: str) -> dict[str, list[str]]:
    return {row[0]: row[-3:-1] for row in _cells(before)[1:]}
