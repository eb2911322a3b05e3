"""The flags of an evaluation: what they are, what those left out mean, and how they are checked."""

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from revisit.config import OTHERS, PUBLISHED, DecoderConfig, OtherConfig, from_published
from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks.objects.lemmas import LEMMATIZERS
from revisit.evaluation.processes import this_process

_DEFAULT = " (default: %(default)s)"

SPLITS = ("random", "popular", "adversarial")
"""POPE's question files: how the objects were chosen that are not in the image."""

# What the settings of the other decoders mean, by their names there.
_MEANINGS = {
    "vcd": {"alpha": "how much the image is held against the image with noise"},
    "ritual": {"alpha": "weight of the logits for the transformed image"},
    "m3id": {"gamma": "how fast the model forgets the image"},
    "dola": {"layers": "the candidates: all, low, high, or indices of hidden states"},
}
_SHARED_MEANINGS = {
    "beta": "tokens less than beta times as probable as the likeliest are left out",
    "relative_top": "tokens less than so many times as probable as the likeliest are left out",
    "noise_step": "0 to 999: how much noise the second image has",
    "seed": "of the second images; --seed is that of the draw of images",
}


def caption_parser(description: str, gpu_dtype: str) -> argparse.ArgumentParser:
    """The parser of a program that captions; `gpu_dtype` is what its help calls the default on a
    GPU."""
    return _make_parser(
        f"{description} Captions go to a JSON Lines file, image by image; the same command "
        "continues a run that was cut short.",
        _add_captioning,
        gpu_dtype,
    )


def question_parser(description: str, gpu_dtype: str) -> argparse.ArgumentParser:
    """The same of a program that asks POPE's questions."""
    parser = _make_parser(
        f"{description} Answers go to JSON Lines files, one by one, and are scored; the same "
        "command continues a run that was cut short.",
        _add_questions,
        gpu_dtype,
    )
    parser.set_defaults(max_new_tokens=64)  # the scorer reads the first sentence
    return parser


def _make_parser(
    description: str, add_data: Callable[[Any], None], gpu_dtype: str
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=f"{description} Started by torchrun or accelerate launch, several processes "
        "share the work."
    )
    add_data(parser.add_argument_group("what"))
    _add_decoding(parser.add_argument_group("how the model decodes"))
    _add_revisit(parser.add_argument_group("ReVisiT"))
    for name in OTHERS:
        _add_other(parser.add_argument_group(f"--decoder {name}"), name)
    _add_place(parser.add_argument_group("where it runs"), gpu_dtype)
    _add_sweep(parser.add_argument_group("many runs"))
    return parser


def settle(
    args: argparse.Namespace, results: Path | None, gpu_dtype: str, gpus: int, prefix: str = ""
) -> None:
    """Check together what the parser read flag by flag, and fill in what was left out.

    Then `early_exit_layers` is a name or a list of int, `relative_top` a float, the other decoders'
    settings are what their configs take, `output_path` is set, `device` and `dtype` are those in
    force (`dtype` may be `"auto"`), and `process` tells which of several processes this is.

    Args:
        results: the folder of the family's results, where `--output_path` is left out; None: a
            folder of the model's name, in results/ of the working folder.
        gpu_dtype: the dtype on a GPU, where `--dtype` is left out.
        gpus: how many GPUs there are.
        prefix: of the name of the folder there.

    Raises:
        EvaluationError: flags that do not fit together or do not fit this machine.
    """
    args.process = this_process(os.environ)
    _settle_place(args, gpu_dtype, gpus)
    folders = {"greedy": "plain", "revisit": _settle_revisit(args)}
    folders |= {name: _settle_other(args, name) for name in OTHERS}
    if args.output_path is None:
        folder = results or Path("results") / Path(args.model_path).resolve().name
        args.output_path = folder / f"{prefix}{folders[args.decoder]}-seed{args.seed}"


def decoding_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for the fork's `model.generate`, from settled flags.

    Those of `plain_arguments`; with ReVisiT also `use_revisit, early_exit_layers, relative_top,
    revisit_divergence`, and `revisit_selection` where it is not the default (so that other decoding
    also runs on an unpatched release). The decoders of `other_decoder` are no arguments.
    """
    revisit = {"use_revisit": True, **_revisit_flags(args)}
    return plain_arguments(args) | (revisit if args.decoder == "revisit" else {})


def plain_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `model.generate` of any release, from settled flags.

    Always `max_new_tokens, do_sample, num_beams`; `repetition_penalty` where it is given; with
    sampling also `temperature, top_p, top_k`.
    """
    names = ["max_new_tokens", "do_sample", "num_beams"]
    if args.repetition_penalty is not None:
        names.append("repetition_penalty")
    if args.do_sample:
        names += ["temperature", "top_p", "top_k"]
    return {name: getattr(args, name) for name in names}


def chosen_decoder(args: argparse.Namespace) -> DecoderConfig | None:
    """What `revisit.enable` takes for `--decoder`, from settled flags; None for greedy decoding."""
    if args.decoder == "revisit":
        return from_published(**_revisit_flags(args))
    return other_decoder(args)


def other_decoder(args: argparse.Namespace) -> OtherConfig | None:
    """What `revisit.enable` takes for `--decoder`, from settled flags; None for greedy decoding
    and for ReVisiT, which `decoding_arguments` asks for."""
    if args.decoder not in OTHERS:
        return None
    return OTHERS[args.decoder](**_other_flags(args, args.decoder))


def decoder_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What a record says of the decoder, from settled flags, beside `decoding_arguments`."""
    if args.decoder not in OTHERS:
        return {}
    chosen = _other_flags(args, args.decoder)
    return {"decoder": args.decoder} | {
        f"{args.decoder}_{name}": value for name, value in chosen.items()
    }


def _revisit_flags(args: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(args, name) for name in PUBLISHED if name in args}
    if args.revisit_selection == "min":  # records had no such name before it was a flag
        del given["revisit_selection"]
    return given


def _other_flags(args: argparse.Namespace, decoder: str) -> dict[str, Any]:
    return {name: getattr(args, f"{decoder}_{name}") for name in _defaults(decoder)}


def _defaults(decoder: str) -> dict[str, Any]:
    """The settings of another decoder than ReVisiT, and their defaults."""
    return {field.name: field.default for field in fields(OTHERS[decoder])}


def _settle_revisit(args: argparse.Namespace) -> str:
    """Settle ReVisiT's flags; returns its folder's name, with numbers as they were written."""
    layers = _words(args.early_exit_layers)
    words = ["revisit", *layers, str(args.relative_top), args.revisit_divergence]
    named = "-".join(words + [args.revisit_selection] * (args.revisit_selection != "min"))
    args.relative_top = float(args.relative_top)
    args.early_exit_layers = _layers(layers)
    try:
        from_published(**_revisit_flags(args))
    except ValueError as error:
        raise EvaluationError(f"--early_exit_layers, --relative_top: {error}") from error
    return named


def _settle_other(args: argparse.Namespace, decoder: str) -> str:
    """The same for another decoder."""
    written = _other_flags(args, decoder)
    words = {name: _words(given) for name, given in written.items()}
    for name, default in _defaults(decoder).items():
        value = _layers(words[name]) if name == "layers" else type(default)(*words[name])
        setattr(args, f"{decoder}_{name}", value)
    try:
        OTHERS[decoder](**_other_flags(args, decoder))
    except ValueError as error:
        raise EvaluationError(f"--decoder {decoder}: {error}") from error
    return "-".join([decoder, *(word for some in words.values() for word in some)])


def _layers(words: list[str]) -> str | list[int]:
    try:
        return [int(word) for word in words]
    except ValueError:
        return " ".join(words)


def _words(given: str | list[str]) -> list[str]:
    text = given if isinstance(given, str) else " ".join(given)
    return text.replace(",", " ").split()


def _settle_place(args: argparse.Namespace, gpu_dtype: str, gpus: int) -> None:
    if args.device is None:
        args.device = "cuda" if gpus else "cpu"
    if args.process.world_size > 1 and args.device == "cuda":
        args.device = f"cuda:{args.process.local_rank}"
    if args.process.world_size > 1 and args.device == "auto":
        raise EvaluationError(
            "--device auto spreads one model over all GPUs, and there are several processes: give "
            "each a GPU (leave out --device), or start one process"
        )
    here = ["cpu", "auto", *["cuda"][:gpus], *(f"cuda:{index}" for index in range(gpus))]
    if args.device not in here:
        raise EvaluationError(
            f"--device {args.device}: PyTorch finds no such device here, only {', '.join(here)}"
        )
    if args.dtype is None:
        args.dtype = gpu_dtype if gpus and args.device != "cpu" else "float32"


def _add_data(group: Any) -> None:
    group.add_argument(
        "--model_path", "--model", required=True, help="folder of the model, or its hub id"
    )
    group.add_argument(
        "--data_path", type=Path, required=True, help="folder of COCO's images (val2014)"
    )


def _add_captioning(group: Any) -> None:
    _add_data(group)
    add = group.add_argument
    add(
        "--anno_path",
        type=Path,
        help="annotations of COCO (the folder, or an instances file): checked before the run to "
        "cover the images",
    )
    add(
        "--output_path",
        type=Path,
        help="captions file (.jsonl or .json), or a folder for captions.jsonl (default: a folder "
        "named by decoding and seed, in the family's folder of results/)",
    )
    add(
        "--lemmatizer",
        choices=sorted(LEMMATIZERS),
        help="score the captions by CHAIR too, into chair.json beside them, with words read so: as "
        "published (nltk: needs NLTK's data), or all as nouns (noun) (default: no scoring)",
    )
    add(
        "--question",
        default="Please describe this image in detail.",
        help="what the model is asked" + _DEFAULT,
    )
    add("--num_eval_samples", type=_whole(1), default=500, help="images to draw" + _DEFAULT)
    add("--seed", type=_whole(0), default=42, help="of the draw and of sampling" + _DEFAULT)


def _add_questions(group: Any) -> None:
    _add_data(group)
    add = group.add_argument
    add("--pope_path", type=Path, required=True, help="folder of POPE's question files")
    add(
        "--splits",
        choices=SPLITS,
        nargs="+",
        default=list(SPLITS),
        help="which of them, one after another (default: all)",
    )
    add(
        "--one_word",
        **_SWITCH,
        help='ask for one word: behind each question stands "Please answer this question with one '
        'word." (default: the question alone)',
    )
    add(
        "--output_path",
        type=Path,
        help="a folder, which gets a folder for each split with answers.jsonl and pope.json in it "
        "(default: one named by decoding and seed, in the family's folder of results/)",
    )
    add("--seed", type=_whole(0), default=42, help="of sampling" + _DEFAULT)


def _add_decoding(group: Any) -> None:
    add = group.add_argument
    add(
        "--decoder",
        choices=["greedy", "revisit", *OTHERS],
        default="greedy",
        help="what decodes; greedy is the model's own scores, also with --do_sample or --num_beams"
        + _DEFAULT,
    )
    add("--max_new_tokens", type=_whole(1), default=512, help="longest answer" + _DEFAULT)
    add("--do_sample", **_SWITCH, help="sample tokens")
    add("--temperature", type=_real("]", 0), default=1.0, help="with --do_sample" + _DEFAULT)
    add("--top_p", type=_real("]", 0, 1), default=1.0, help="with --do_sample; 1 is off" + _DEFAULT)
    add("--top_k", type=_whole(0), default=0, help="with --do_sample; 0 is off" + _DEFAULT)
    add("--num_beams", type=_whole(1), default=1, help="above 1, beam search" + _DEFAULT)
    add(
        "--repetition_penalty",
        type=_real("]", 0),
        help="1 is off (default: what the checkpoint's generation_config.json says)",
    )


def _add_revisit(group: Any) -> None:
    add = group.add_argument
    add(
        "--use_revisit",
        dest="decoder",
        type=lambda text: "revisit" if _bool(text) else "greedy",
        nargs="?",
        const="true",
        default=argparse.SUPPRESS,
        metavar="{true,false}",
        help="the same as --decoder revisit, or with false as --decoder greedy; of the two flags "
        "the last one counts",
    )
    add(
        "--early_exit_layers",
        nargs="+",
        default="last",
        metavar="LAYERS",
        help="last, all, low, high, or indices of hidden states, as 0,2,5 or 0 2 5" + _DEFAULT,
    )
    add(
        "--relative_top",
        type=_as_written(_real("[", 0, 1)),  # it names the folder of the results
        default="1e-5",
        help="alpha: the vocabulary of a step are the tokens with a probability of at least alpha "
        "times the largest" + _DEFAULT,
    )
    add(
        "--revisit_divergence",
        choices=["ag", "js"],
        default="ag",
        help="ag: what the published implementation computes. js: what the paper's text names"
        + _DEFAULT,
    )
    add(
        "--revisit_selection",
        choices=["min", "max", "random"],
        default="min",
        help="the vision token of a step: min diverges least; max and random are the paper's "
        "ablations" + _DEFAULT,
    )


def _add_other(group: Any, decoder: str) -> None:
    """A flag for each setting, read as text: it names the folder of the results."""
    meanings = _SHARED_MEANINGS | _MEANINGS[decoder]
    for name, default in _defaults(decoder).items():
        layers: dict[str, Any] = {"nargs": "+", "metavar": "LAYERS"} if name == "layers" else {}
        group.add_argument(
            f"--{decoder}_{name}",
            default=str(default),
            type=_as_written(type(default)),
            help=meanings[name] + _DEFAULT,
            **layers,
        )


def _add_place(group: Any, gpu_dtype: str) -> None:
    add = group.add_argument
    add("--batch_size", type=_whole(1), default=1, help="images asked about at once" + _DEFAULT)
    add(
        "--device",
        help="cpu, cuda, cuda:N, or auto to spread the model over the GPUs (default: the first "
        "GPU, or the CPU where there is none; of several processes each takes one of its own)",
    )
    add(
        "--dtype",
        choices=["auto", "float32", "float16", "bfloat16"],
        help="of the weights; auto is the one that the checkpoint's config.json names (default: "
        f"{gpu_dtype} on a GPU, float32 on the CPU)",
    )


def _add_sweep(group: Any) -> None:
    group.add_argument(
        "--sweep",
        nargs="+",
        metavar="NAME=VALUE,VALUE",
        help="run every combination with one model, greedy decoding first, each in its folder in "
        "--output_path, and print one table. Names: layers, alpha, divergence, selection of "
        "ReVisiT, or the settings of the --decoder that is given; seed; decoder. A list of layers "
        "is written 0-10-20",
    )


def _whole(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= {minimum}")
        return int(text)

    return parse


def _real(left: str, low: float, high: float = math.inf) -> Callable[[str], float]:
    # `left` opens the interval: "[" has `low` in it, "]" has not.
    def number(text: str) -> float:
        value = float(text)
        if not low <= value <= high or (left == "]" and value == low) or math.isinf(value):
            raise argparse.ArgumentTypeError(f"{text} is not in {left}{low}, {high}]")
        return value

    return number


def _as_written(check: Callable[[str], object]) -> Callable[[str], str]:
    def number(text: str) -> str:
        check(text)
        return text

    return number


def _bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


# `--use_revisit` alone, or followed by true or false: a script can pass a variable.
_SWITCH: dict[str, Any] = {"type": _bool, "nargs": "?", "const": True, "default": False}
