"""Flags from typed settings, by cyclopts; and what a command line may say that cyclopts does not
read by itself."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, make_dataclass
from inspect import isfunction
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from cyclopts import (
    App,
    CycloptsError,
    Group,
    MissingArgumentError,
    Parameter,
    Token,
    UnknownCommandError,
    UnusedCliTokensError,
)
from cyclopts.argument import Argument
from cyclopts.config import Dict
from docstring_parser import parse

from revisit.commands import CommandError
from revisit.config import OTHERS, PUBLISHED, DecoderConfig, Number, ReVisiTConfig

DECODERS: dict[str, type[DecoderConfig]] = {"revisit": ReVisiTConfig, **OTHERS}
_FLAGS = ("layers", "alpha", "divergence", "selection")  # of ReVisiT's settings
FLATTENED = Parameter(name="*")
"""Of a dataclass whose fields are flags by their names."""


def read_layers(text: str) -> str | tuple[int, ...]:
    """The layers that "last" or "0,2,5" names; the config says what is wrong with others."""
    words = text.replace(",", " ").split()
    if words and all(word.isdecimal() for word in words):
        return tuple(int(word) for word in words)
    return " ".join(words)


def _to_layers(hint: object, tokens: Sequence[Token]) -> str | tuple[int, ...]:
    return read_layers(tokens[-1].value)  # the last one counts


def _to_number(hint: object, tokens: Sequence[Token]) -> Number:
    return Number(tokens[-1].value)


def new_app(name: str, summary: str) -> App:
    """A program whose flags may be repeated (the last one counts) and have no `--no-` form."""
    return App(
        name=name,
        help=summary,
        help_format="plaintext",
        default_parameter=Parameter(negative=(), allow_repeating=True, name_transform=str),
    )


def explain(error: CycloptsError) -> str | ImportError:
    """What is wrong with a command line, and what to do.

    For a name that is no command cyclopts imports them all, to find the one that was meant:
    ImportError is what one of them lacks.
    """
    try:
        message = str(error)
    except ImportError as lacking:
        return lacking
    if isinstance(error, UnknownCommandError):
        return message
    if isinstance(error, MissingArgumentError) and error.keyword is None and error.argument:
        about = error.argument.parameter.help
        message = f"{error.argument.name} is missing{f': {about}' if about else ''}."
    elif isinstance(error, UnusedCliTokensError):
        message = f"no flag takes {' '.join(error.unused_tokens or [])}."
    return f"{message} --help explains the flags."


def decoder_flags(names: Iterable[str], defaults: Mapping[str, Any] | None = None) -> type:
    """A dataclass of the settings of these decoders, made from their dataclasses.

    `defaults` replaces some: `{"revisit_layers": "all"}`.

    ReVisiT's flags are `--layers` and `--alpha` or, by their published names,
    `--early_exit_layers` and `--relative_top`; those of other decoders begin with the decoder.
    """
    flags = []
    for name in names:
        config = DECODERS[name]
        hints = get_type_hints(config)
        meanings = {each.arg_name: each.description for each in parse(config.__doc__ or "").params}
        for field in fields(config):
            if name == "revisit" and field.name not in _FLAGS:
                continue
            layers, number = field.name == "layers", hints[field.name] is float
            parameter = Parameter(
                name=_names(name, field.name),
                help=" ".join((meanings[field.name] or "").split()),
                group=Group(f"Decoder {name}", sort_key=10),
                converter=_to_layers if layers else _to_number if number else None,
                n_tokens=1 if layers else None,
                metavar="LAYERS" if layers else None,
            )
            hint = str | tuple[int, ...] if layers else hints[field.name]
            key = f"{name}_{field.name}"
            default = (defaults or {}).get(key, field.default)
            flags.append((key, Annotated[hint, parameter], default))
    settings = make_dataclass("DecoderFlags", flags, frozen=True)
    settings.__module__ = __name__  # of a class of `types`, its default, cyclopts takes no fields
    return settings


def to_config(name: str, flags: Any) -> DecoderConfig | None:
    """The settings of a decoder from its flags; None for greedy decoding.

    Raises:
        ValueError: a setting is outside its range.
    """
    if name == "greedy":
        return None
    prefix = f"{name}_"
    settings = {
        key.removeprefix(prefix): value
        for key, value in asdict(flags).items()
        if key.startswith(prefix)
    }
    return DECODERS[name](**settings)


def _names(decoder: str, setting: str) -> tuple[str, ...]:
    if decoder != "revisit":
        return (f"--{decoder}_{setting}",)
    published = (flag for flag, name in PUBLISHED.items() if name == setting)
    return (f"--{setting}", *(f"--{flag}" for flag in published))


def prepare(app: App, argv: Sequence[str]) -> list[str]:
    """The command line as cyclopts reads it.

    `--config FILE.yaml` is taken out, and read for the flags that the command line lacks. `--flag
    true` becomes `--flag=true`, and the words behind a flag of layers become one. Of a flag of
    several words only the last occurrence stays, as of any other.

    Raises:
        CommandError: the file of `--config` cannot be read.
    """
    groups = _grouped(argv)
    for group in groups:
        if group[0].partition("=")[0] == "--config":
            _, *words = group[0].split("=", 1) + group[1:]
            app.config = _config(words)
            group[:] = words[1:]
    arguments = _arguments(app, [word for group in groups for word in group])
    several: dict[int, list[str]] = {}
    for group in groups:
        flag, *words = group or [""]
        if _plain(flag.partition("=")[0]) == "--use-revisit" and "--use-revisit" not in arguments:
            group[:] = flag, *words = _decoder(group)
        argument = arguments.get(_plain(flag.partition("=")[0]))
        if argument is None:
            continue
        if argument.parameter.consume_multiple:
            several.setdefault(id(argument), []).clear()
            several[id(argument)] = group
        if argument.parameter.converter is _to_layers and words:
            end = next((n for n, word in enumerate(group) if n > 1 and not _layers(word)), None)
            group[:end] = [f"{flag}={','.join(group[1:end])}"]
        elif argument.hint is bool and words and words[0].lower() in ("true", "false"):
            group[:2] = [f"{flag}={words[0].lower()}"]
    return [word for group in groups for word in group]


def _decoder(group: Sequence[str]) -> list[str]:
    """`--use_revisit true` or `false` as `--decoder`, so that of both flags the last one counts."""
    _, *words = group[0].split("=") + list(group[1:])
    value = words[0] if words else "true"
    if value.lower() not in ("true", "false"):
        raise CommandError(f"--use_revisit {value}: it is neither true nor false")
    return [f"--decoder={'revisit' if value.lower() == 'true' else 'greedy'}", *words[1:]]


def _grouped(argv: Sequence[str]) -> list[list[str]]:
    """The words up to the first flag, then each flag with the words behind it."""
    groups: list[list[str]] = [[]]
    for word in argv:
        if word.startswith("--"):
            groups.append([])
        groups[-1].append(word)
    return [group for group in groups if group]


def _arguments(app: App, words: Sequence[str]) -> dict[str, Argument]:
    """The flags of the command that the words begin with."""
    *_, command = app.parse_commands(list(words))[1]
    if not isfunction(command.default_command):  # --help, --version, or no command
        return {}
    found = command.assemble_argument_collection()
    return {_plain(name): argument for argument in found for name in argument.names}


def _plain(flag: str) -> str:
    return flag.replace("_", "-")


def _layers(word: str) -> bool:
    return word.replace(",", "").isdecimal()


def _config(words: Sequence[str]) -> Dict:
    """The flags in the file that is named first, as `prepare` leaves those of a command line."""
    import yaml

    if not words:
        raise CommandError("--config: name a YAML file of flags and their values")
    file = words[0]
    try:
        read = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        wrong = "" if isinstance(read, dict) else "it holds no names with values"
    except (OSError, ValueError, yaml.YAMLError) as error:
        wrong = str(error).partition("\n")[0]
    if wrong:
        raise CommandError(f"--config {file}: name a YAML file of flags and their values; {wrong}")
    flags = {
        name: ",".join(map(str, value)) if _whole_numbers(value) else value
        for name, value in read.items()
    }
    if type(chosen := flags.pop("use_revisit", None)) is bool:
        flags.setdefault("decoder", "revisit" if chosen else "greedy")
    return Dict(flags, source=file, use_commands_as_keys=False)


def _whole_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(each) is int for each in value)
