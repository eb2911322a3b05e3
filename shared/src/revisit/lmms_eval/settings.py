"""The decoder and its settings, as items of lmms-eval's `--model_args`."""

import json
import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from revisit.config import OTHERS, DecoderConfig, ReVisiTConfig

# What these decoders are given in `second_inputs`.
_GIVEN = {
    "ritual": "a second, transformed image of each prompt",
    "code": "a second prompt with a description in place of each image",
    "icd": "a second prompt with an instruction for each",
}
CONFIGS: dict[str, type[DecoderConfig]] = {"revisit": ReVisiTConfig, **OTHERS}
"""The decoders, as `decoder=` and the prefixes of their settings name them."""

NAMES = ("greedy", "revisit", "vcd", "m3id", "dola")
"""What `decoder=` may be; "greedy" leaves the model as lmms-eval built it."""

# An item of ours, up to the next comma that is not inside its list.
_ITEM = re.compile(rf"(?:^|,)\s*(decoder|(?:{'|'.join(CONFIGS)})_\w*)\s*=\s*(\[[^]]*]|[^,]*)")


@dataclass(frozen=True)
class Decoding:
    """What model args ask for.

    Attributes:
        name: of the decoder, one of `NAMES`.
        config: what `revisit.enable` takes; None for "greedy".
        model_args: those that are the model's own, as they were written.
        written: all that were written, with `decoder=` among them.
    """

    name: str
    config: DecoderConfig | None
    model_args: str
    written: str

    def record(self) -> dict[str, Any]:
        """The decoder and all its settings, for the results."""
        settings = {} if self.config is None else asdict(self.config)
        settings.pop("trace", None)
        return {"name": self.name, **settings}


def take(model_args: str) -> Decoding:
    """Take `decoder=NAME` and `NAME_setting=VALUE` out of model args.

    Without `decoder` it is ReVisiT. The settings have the names and defaults of `revisit.config`,
    but that a prompt without an image is decoded plainly: benchmarks hold questions of text alone.
    Layers may be a list, `revisit_layers=[0,2,4]`.

    Args:
        model_args: `key=value` items with commas between them, as lmms-eval takes them.

    Raises:
        ValueError: a decoder or setting that is not known, is another decoder's, or is out of
            range; the message says what there is.
    """
    given = {key: value.strip() for key, value in _ITEM.findall(model_args)}
    rest = _ITEM.sub("", model_args).lstrip(", ")
    named = "decoder" in given
    name = given.pop("decoder", "revisit")
    written = model_args if named else ",".join(filter(None, [model_args, f"decoder={name}"]))
    if name in _GIVEN:
        raise ValueError(
            f"decoder={name} needs {_GIVEN[name]}, which the models of lmms-eval do not make"
        )
    if name not in NAMES:
        raise ValueError(f"decoder={name}: there are {', '.join(NAMES)}")
    if name == "greedy":
        _refuse_unknown(name, given, {})
        return Decoding(name, None, rest, written)
    return Decoding(name, _config(name, given), rest, written)


def _config(name: str, given: dict[str, str]) -> DecoderConfig:
    """The settings of decoder `name` from its items."""
    kind = CONFIGS[name]
    defaults = {f"{name}_{field.name}": field.default for field in fields(kind)}
    defaults.pop("revisit_trace", None)  # nobody would read it
    _refuse_unknown(name, given, defaults)
    chosen: dict[str, Any] = {"no_vision": "plain"} if kind is ReVisiTConfig else {}
    for key, written in given.items():
        chosen[key.removeprefix(f"{name}_")] = _value(key, written, defaults[key])
    try:
        return kind(**chosen)
    except ValueError as error:
        raise ValueError(f"model args of decoder={name}: {error}") from error


def _refuse_unknown(name: str, given: dict[str, str], known: dict[str, Any]) -> None:
    if unknown := sorted(given.keys() - known.keys()):
        there = f"has {', '.join(known)}" if known else "has no settings"
        raise ValueError(
            f"{', '.join(unknown)}: decoder={name} {there}; another decoder is asked for by "
            f"decoder={'|'.join(NAMES)}"
        )


def _value(key: str, written: str, default: Any) -> Any:
    """What was written, of the default's type; layers may also be a list."""
    try:
        if key.endswith("_layers"):
            return json.loads(written) if written.startswith("[") else written
        return type(default)(written)
    except ValueError:
        wanted = {float: "a number", int: "an integer"}.get(type(default), "a list such as [0,2,4]")
        raise ValueError(f"{key}={written}: must be {wanted}") from None
