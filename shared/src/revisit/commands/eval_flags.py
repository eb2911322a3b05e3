"""The flags of `revisit-eval`, made from the dataclasses of a run."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from revisit.config import DecoderConfig, ReVisiTConfig
from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks.benchmark import Benchmark
from revisit.evaluation.benchmarks.registry import BENCHMARKS
from revisit.evaluation.run import DECODERS, FLAGS, Generation, Number, Place

_REVISIT = ("layers", "alpha", "divergence", "selection")  # of its settings, those with a flag


@dataclass(frozen=True)
class Flags:
    """A command line, parsed."""

    program: str
    kind: type[Benchmark]
    values: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        return self.values[name]

    def benchmark(self) -> Benchmark:
        """What is asked."""
        return self.kind(**self._of(self.kind))

    def generation(self) -> Generation:
        """How an answer is generated."""
        return Generation(**self._of(Generation))

    def place(self) -> Place:
        """Where the model runs, as the user says it."""
        return Place(**self._of(Place))

    def decoders(self) -> dict[str, DecoderConfig | None]:
        """Each decoder as its flags set it."""
        return {
            name: None if kind is None else self._decoder(name, kind)
            for name, kind in DECODERS.items()
        }

    def _decoder(self, name: str, kind: type[Any]) -> DecoderConfig:
        prefix = f"{name}_"
        chosen = {key: value for key, value in self.values.items() if key.startswith(prefix)}
        try:
            config: DecoderConfig = kind(**{k.removeprefix(prefix): v for k, v in chosen.items()})
        except ValueError as error:
            raise EvaluationError(f"--decoder {name}: {error}") from error
        return config

    def _of(self, kind: type[Any]) -> dict[str, Any]:
        return {field.name: self.values[field.name] for field in fields(kind)}


def parse(argv: Sequence[str], program: str, layers: str = "last") -> Flags:
    """Read a command line: a benchmark, and its flags."""
    first = argparse.ArgumentParser(prog=program, description="Evaluate a model that reads images.")
    first.add_argument("benchmark", choices=sorted(BENCHMARKS))
    kind = BENCHMARKS[first.parse_args(argv[:1]).benchmark]
    parser = argparse.ArgumentParser(
        prog=f"{program} {kind.name}",
        description=f"{(kind.__doc__ or '').splitlines()[0]} The same command continues a run that "
        "was cut short. Started by torchrun or accelerate launch, several processes share it.",
    )
    add = parser.add_argument
    add("--model_path", "--model", required=True, help="folder of the model, or its hub id")
    add("--output_path", type=Path, help="folder of the answers, or a file (.jsonl) of captions")
    add("--seed", type=int, default=42, help="of the draw of images and of sampling")
    add("--decoder", choices=list(DECODERS), default="greedy", help="what decodes")
    add(
        "--use_revisit",
        dest="decoder",
        type=lambda text: "revisit" if _switch(text) else "greedy",
        nargs="?",
        const="true",
        default=argparse.SUPPRESS,
        metavar="{true,false}",
        help="--decoder revisit, or with false greedy; of the two flags the last one counts",
    )
    add("--sweep", nargs="+", metavar="NAME=VALUE,VALUE", help="run every combination; one table")
    _add(parser.add_argument_group("what"), kind)
    _add(parser.add_argument_group("how answers are generated"), Generation)
    _add(parser.add_argument_group("where it runs"), Place)
    for name, decoder in DECODERS.items():
        if decoder is not None:
            _add(parser.add_argument_group(f"--decoder {name}"), decoder, name)
    parser.set_defaults(max_new_tokens=kind.max_new_tokens, revisit_layers=[layers])
    found = vars(parser.parse_args(argv[1:]))
    for name in [name for name in found if name.endswith("_layers")]:
        found[name] = _layers(found[name])
    return Flags(parser.prog, kind, found)


def _add(group: Any, kind: type[Any], decoder: str = "") -> None:
    """A flag for each field of a dataclass."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        if decoder == "revisit" and field.name not in _REVISIT:
            continue
        name = f"{decoder}_{field.name}" if decoder else field.name
        names = [f"--{name}"]
        if kind is ReVisiTConfig:
            names = [f"--{field.name}", f"--{FLAGS[field.name]}"]
        group.add_argument(
            *names,
            dest=name,
            help=_meaning(kind, field.name).replace("%", "%%"),
            **({"required": True} if field.default is MISSING else {"default": field.default}),
            **({"nargs": "+"} if field.name == "layers" else _reading(hints[field.name])),
        )


def _reading(hint: Any) -> dict[str, Any]:
    """How argparse reads a value of a type."""
    if type(None) in get_args(hint):
        (hint,) = (each for each in get_args(hint) if each is not type(None))
    if get_origin(hint) is tuple:
        return {**_reading(get_args(hint)[0]), "nargs": "+"}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if hint is bool:
        return {"type": _switch, "nargs": "?", "const": True, "metavar": "{true,false}"}
    return {"type": {float: _number, int: int, Path: Path}.get(hint, str)}


def _number(text: str) -> Number:
    return Number(text)


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def _layers(words: str | Sequence[Any]) -> Any:
    text = words if isinstance(words, str) else " ".join(map(str, words))
    found = text.replace(",", " ").split()
    try:
        return [int(word) for word in found]
    except ValueError:
        return " ".join(found)


def _meaning(kind: type[Any], field: str) -> str:
    """What the docstrings of a dataclass, and of those it extends, say of a field."""
    for each in kind.__mro__:
        found = re.search(rf"^ +{field}: (.+(?:\n {{12,}}.+)*)", each.__doc__ or "", re.MULTILINE)
        if found:
            return " ".join(found[1].split())
    return ""
