"""The decoder and its settings, as items of lmms-eval's `--model_args`."""

import json
import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from revisit.config import OTHERS, DecoderConfig, ReVisiTConfig

# What these decoders need as `second_inputs`.
_SECOND_INPUTS = {
    "ritual": "a second, transformed image of each prompt",
    "code": "a second prompt with a description in place of each image",
    "icd": "a second prompt with an instruction for each",
}
CONFIGS: dict[str, type[DecoderConfig]] = {"revisit": ReVisiTConfig, **OTHERS}
"""The decoders, as `decoder=` and the prefixes of their settings name them."""

NAMES = ("greedy", "revisit", *(name for name in OTHERS if name not in _SECOND_INPUTS))
"""The values of `decoder=`; "greedy" leaves the model as lmms-eval built it."""

# An item of ours, up to the next comma that is not inside its list.
_ITEM = re.compile(rf"(?:^|,)\s*(decoder|(?:{'|'.join(CONFIGS)})_\w*)\s*=\s*(\[[^]]*]|[^,]*)")


@dataclass(frozen=True)
class Decoding:
    """The decoder that model args choose.

    Attributes:
        name: of the decoder, one of `NAMES`.
        config: what `revisit.enable` takes; None for "greedy".
        model_args: the model args for the model itself, as they were written.
        written: all model args as they were written, with `decoder=` among them.
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


def read_model_args(model_args: str) -> Decoding:
    """Take `decoder=NAME` and `NAME_setting=VALUE` out of model args.

    The default of `decoder` is ReVisiT. The settings have the names and defaults of
    `revisit.config`, except that ReVisiT decodes a prompt without an image plainly: benchmarks have
    questions without an image. Layers may be a list, `revisit_layers=[0,2,4]`.

    Args:
        model_args: `key=value` items with commas between them, as lmms-eval takes them.

    Raises:
        ValueError: a decoder or setting that is not known, is another decoder's, or is out of
            range; the message says what there is.
    """
    items = {key: value.strip() for key, value in _ITEM.findall(model_args)}
    rest = _ITEM.sub("", model_args).lstrip(", ")
    written = model_args
    if "decoder" not in items:
        written = ",".join(filter(None, [model_args, "decoder=revisit"]))
    name = items.pop("decoder", "revisit")
    if name in _SECOND_INPUTS:
        raise ValueError(
            f"decoder={name} needs {_SECOND_INPUTS[name]}, which the models of lmms-eval do not "
            "make"
        )
    if name not in NAMES:
        raise ValueError(f"decoder={name}: there are {', '.join(NAMES)}")
    return Decoding(name, _config(name, items), rest, written)


def _config(name: str, items: dict[str, str]) -> DecoderConfig | None:
    """The settings of decoder `name` from its items; None for "greedy"."""
    kind = CONFIGS.get(name)
    defaults = {f"{name}_{each.name}": each.default for each in fields(kind)} if kind else {}
    defaults.pop("revisit_trace", None)  # nobody would read it
    if unknown := sorted(items.keys() - defaults.keys()):
        has = f"has {', '.join(defaults)}" if defaults else "has no settings"
        raise ValueError(
            f"{', '.join(unknown)}: decoder={name} {has}; another decoder is asked for by "
            f"decoder={'|'.join(NAMES)}"
        )
    if kind is None:
        return None
    settings: dict[str, Any] = {"no_vision": "plain"} if kind is ReVisiTConfig else {}
    for key, written in items.items():
        settings[key.removeprefix(f"{name}_")] = _value(key, written, defaults[key])
    try:
        return kind(**settings)
    except ValueError as error:
        raise ValueError(f"model args of decoder={name}: {error}") from error


def _value(key: str, written: str, default: Any) -> Any:
    """A value of the default's type; layers may also be a list."""
    try:
        if key.endswith("_layers"):
            return json.loads(written) if written.startswith("[") else written
        return type(default)(written)
    except ValueError:
        wanted = {float: "a number", int: "an integer"}.get(type(default), "a list such as [0,2,4]")
        raise ValueError(f"{key}={written}: must be {wanted}") from None
