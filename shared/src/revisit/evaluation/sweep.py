"""A grid of settings, decoded with one model: `--sweep alpha=1e-5,1e-3 layers=last,all`.

Each combination is a run, in the folder that its settings name, and continues as such. Greedy
decoding comes first: the table compares the others with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import product
from typing import Any, get_type_hints

from revisit.config import DecoderConfig, Number, ReVisiTConfig
from revisit.evaluation import EvaluationError
from revisit.evaluation.run import DECODERS, Run, decoder_name

_SWEPT = ("layers", "alpha", "divergence", "selection")  # of ReVisiT's settings


def combinations(
    run: Run, words: Sequence[str], decoders: Mapping[str, DecoderConfig | None]
) -> list[Run]:
    """The runs of a sweep.

    Args:
        run: without a sweep.
        words: NAME=VALUE,VALUE; a list of layers is written 0-10-20.
        decoders: each decoder with its settings where they are not swept.

    Raises:
        EvaluationError: a word that is not as above, a name that the decoder does not have, a value
            out of its range, or something named twice.
    """
    axes = _axes(words)
    seeds = [_read(int, "seed", text) for text in axes.pop("seed", [str(run.seed)])]
    grid: list[DecoderConfig | None] = [None]
    for each in _grid(run.decoder, axes, decoders):
        if each not in grid:
            grid.append(each)
    return [replace(run, decoder=decoder, seed=seed) for decoder in grid for seed in seeds]


def _grid(
    decoder: DecoderConfig | None,
    axes: Mapping[str, Sequence[str]],
    decoders: Mapping[str, DecoderConfig | None],
) -> list[DecoderConfig | None]:
    """The decoder of each combination."""
    if "decoder" in axes:
        if len(axes) > 1:
            raise EvaluationError("--sweep: with decoder=... only seed=..., settings are of one")
        if unknown := [name for name in axes["decoder"] if name not in DECODERS]:
            raise EvaluationError(f"--sweep decoder={unknown[0]}: there are {', '.join(DECODERS)}")
        return [decoders[name] for name in axes["decoder"]]
    if not axes:
        return [decoder]
    base = decoder or decoders["revisit"]  # greedy decoding has no settings
    assert base is not None
    names = [field.name for field in fields(base) if field.name != "seed"]
    if isinstance(base, ReVisiTConfig):
        names = [name for name in names if name in _SWEPT]
    if unknown := sorted(axes.keys() - set(names)):
        raise EvaluationError(
            f"--sweep {unknown[0]}: {decoder_name(base)} has {', '.join(names) or 'no settings'}; "
            "besides there are seed and decoder"
        )
    hints = get_type_hints(type(base))
    grid: list[DecoderConfig | None] = []
    for texts in product(*axes.values()):
        pairs = list(zip(axes, texts, strict=True))
        values = {name: _read(hints[name], name, text) for name, text in pairs}
        try:
            grid.append(replace(base, **values))
        except ValueError as error:
            words = " ".join(f"{name}={text}" for name, text in pairs)
            raise EvaluationError(f"--sweep {words}: {error}") from error
    return grid


def _read(hint: Any, name: str, text: str) -> Any:
    """A setting's value, of its type."""
    try:
        if name == "layers":
            words = text.split("-")
            return [int(word) for word in words] if words[0].isdecimal() else text
        return {float: Number, int: int}.get(hint, str)(text)
    except ValueError as error:
        raise EvaluationError(f"--sweep {name}={text}: {error}") from error


def _axes(words: Sequence[str]) -> dict[str, list[str]]:
    """The values of each name that is swept."""
    axes: dict[str, list[str]] = {}
    for word in words:
        name, equals, listed = word.partition("=")
        values = listed.split(",")
        if not (name and equals and all(values)):
            raise EvaluationError(f"--sweep {word}: say NAME=VALUE,VALUE, as alpha=1e-5,1e-3")
        if name in axes or len(set(values)) < len(values):
            raise EvaluationError(f"--sweep {word}: name each setting and each value once")
        axes[name] = values
    return axes
