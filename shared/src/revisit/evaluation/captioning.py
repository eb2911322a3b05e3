"""The command-line program that captions a sample of COCO images, for every model family.

A family's script stays thin: it says how to load its model and how to caption a batch::

    from revisit.evaluation.captioning import decoding_arguments, main

    class Llava:
        def __init__(self, args):
            self.model = ...  # args.model_path, args.device, args.dtype
            self.question = args.question
            self.decoding = decoding_arguments(args, self.model)
            self.settings = {"conversation": "llava_v1"}

        def caption(self, images):
            ...
            output = self.model.generate(input_ids, images=..., **self.decoding)
            return [text for text in ...]

    if __name__ == "__main__":
        raise SystemExit(main(Llava, description="Caption COCO images with LLaVA-1.5."))

Everything else is here: the flags, their checks, the sample of images, batches, the progress
bar, resuming, images that cannot be read, and the record of what made the captions.
"""

import argparse
import hashlib
import math
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from tqdm import tqdm

import revisit
from revisit.config import ReVisiTConfig
from revisit.evaluation import EvaluationError
from revisit.evaluation.captions import CaptionStore
from revisit.evaluation.coco import check_covered, image_id, sample_images

# Files of a model folder that decide what the model says.
_MODEL_FILES = {".bin", ".jinja", ".json", ".model", ".pt", ".safetensors", ".txt"}


class Captioner(Protocol):
    """A loaded model with the decoding settings of the command line applied."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the captions and is no flag: prompt template, revision of a hub model...

        Values are JSON values. A rerun whose captioner has other settings is refused.
        """

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        """One caption for each RGB image, in order; at most `--batch_size` images at once.

        The random generators of torch are seeded before each call: draw from no other.
        An exception ends the run; the captions of earlier batches are kept.
        """


def main(
    load: Callable[[argparse.Namespace], Captioner],
    description: str,
    defaults: Mapping[str, Any] | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Caption a sample of images as the command line says, and return the exit status.

    `load(args)` is called once, after everything that can be checked without the model has
    been; not at all where every caption is there already. In `args`, `model_path` is the str
    given; `device` is "cpu", "cuda", "cuda:N" or "auto" (Transformers' `device_map="auto"`);
    `dtype` is "float32", "float16" or "bfloat16"; `question` a str; `seed` an int; the
    decoding flags are best read through `decoding_arguments(args)`. An `OSError` or `ValueError`
    of `load` ends the program with its message, so say there what is wrong with the checkpoint
    or with a flag that only the model can judge (a layer out of its range).
    `defaults` replaces defaults of flags: `{"early_exit_layers": "all"}`.

    Status: 0 when every image that can be read has its caption (those that cannot be are
    counted on the last line and listed in the run record), 1 when the model failed on a batch,
    2 for bad arguments or input or a full disk, 130 on Ctrl-C. Whatever it is, the captions made
    so far are in the file, and the same command goes on from there.
    """
    parser = _parser(description)
    parser.set_defaults(**(defaults or {}))
    args = parser.parse_args(argv)
    try:
        _check_revisit(args)
        return _run(load, args)
    except EvaluationError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130


def decoding_arguments(args: argparse.Namespace, model: Any = None) -> dict[str, Any]:
    """Keyword arguments for the fork's `model.generate`, from the parsed flags.

    Given the model, a layer that it does not have is a `ValueError` now, not at the first image.

    Always `max_new_tokens, do_sample, num_beams`; `repetition_penalty` where it is given; with
    sampling also `temperature, top_p, top_k`; with ReVisiT also `use_revisit, early_exit_layers,
    relative_top, revisit_divergence` (so that other decoding also runs on an unpatched release).
    """
    names = ["max_new_tokens", "do_sample", "num_beams"]
    if args.repetition_penalty is not None:
        names.append("repetition_penalty")
    if args.do_sample:
        names += ["temperature", "top_p", "top_k"]
    if args.use_revisit:
        names += ["use_revisit", "early_exit_layers", "relative_top", "revisit_divergence"]
        if model is not None:
            from revisit.generation import published_layers

            published_layers(model, args.early_exit_layers)
    return {name: getattr(args, name) for name in names}


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=f"{description} Captions go to a JSON Lines file, image by image; the same "
        "command continues a run that was cut short."
    )
    default = " (default: %(default)s)"
    add = parser.add_argument_group("what").add_argument
    add("--model_path", required=True, help="folder of the model, or its hub id")
    add("--data_path", type=Path, required=True, help="folder of COCO's images")
    add(
        "--anno_path",
        type=Path,
        help="annotations of COCO (the folder, or an instances file): checked before the run to "
        "cover the images",
    )
    add(
        "--output_path",
        type=Path,
        required=True,
        help="captions file (.jsonl or .json), or a folder for captions.jsonl",
    )
    add(
        "--question",
        default="Please describe this image in detail.",
        help="what the model is asked" + default,
    )
    add("--num_eval_samples", type=_whole(1), default=500, help="images to draw" + default)
    add("--seed", type=_whole(0), default=42, help="of the draw and of sampling" + default)
    add = parser.add_argument_group("how the model decodes").add_argument
    add("--max_new_tokens", type=_whole(1), default=512, help="longest caption" + default)
    add("--do_sample", **_SWITCH, help="sample tokens")
    add("--temperature", type=_real("]", 0), default=1.0, help="with --do_sample" + default)
    add("--top_p", type=_real("]", 0, 1), default=1.0, help="with --do_sample; 1 is off" + default)
    add("--top_k", type=_whole(0), default=0, help="with --do_sample; 0 is off" + default)
    add("--num_beams", type=_whole(1), default=1, help="above 1, beam search" + default)
    add(
        "--repetition_penalty",
        type=_real("]", 0),
        help="1 is off (default: what the checkpoint's generation_config.json says)",
    )
    add = parser.add_argument_group("ReVisiT").add_argument
    add("--use_revisit", **_SWITCH, help="decode by ReVisiT")
    add(
        "--early_exit_layers",
        nargs="+",
        default="last",
        metavar="LAYERS",
        help="last, all, low, high, or indices of hidden states, as 0,2,5 or 0 2 5" + default,
    )
    add(
        "--relative_top",
        type=_real("[", 0, 1),
        default=1e-5,
        help="alpha: the vocabulary of a step are the tokens with a probability of at least alpha "
        "times the largest" + default,
    )
    add(
        "--revisit_divergence",
        choices=["ag", "js"],
        default="ag",
        help="ag: what the published implementation computes. js: what the paper's text names"
        + default,
    )
    add = parser.add_argument_group("where it runs").add_argument
    add("--batch_size", type=_whole(1), default=1, help="images captioned at once" + default)
    add(
        "--device",
        help="cpu, cuda, cuda:N, or auto to spread the model over the GPUs (default: the first "
        "GPU, or the CPU where there is none)",
    )
    add(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        help="of the weights (default: float16 on a GPU, float32 on the CPU)",
    )
    return parser


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


def _bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


# `--use_revisit` alone, or followed by true or false: a script can pass a variable.
_SWITCH: dict[str, Any] = {"type": _bool, "nargs": "?", "const": True, "default": False}


def _check_revisit(args: argparse.Namespace) -> None:
    given = args.early_exit_layers
    words = given.split() if isinstance(given, str) else " ".join(given).replace(",", " ").split()
    try:
        numbers = [int(word) for word in words]
    except ValueError:
        args.early_exit_layers = " ".join(words)
    else:
        args.early_exit_layers = numbers
    try:
        ReVisiTConfig(
            layers=args.early_exit_layers,
            alpha=args.relative_top,
            divergence=args.revisit_divergence,
        )
    except ValueError as error:
        raise EvaluationError(f"--early_exit_layers, --relative_top: {error}") from error


def _run(load: Callable[[argparse.Namespace], Captioner], args: argparse.Namespace) -> int:
    sample = sample_images(args.data_path, args.num_eval_samples, args.seed)
    if args.anno_path is not None:
        check_covered([image_id(name) for name in sample], args.anno_path)
    _place(args)
    settings = _settings(args)
    is_file = args.output_path.suffix in (".jsonl", ".json")
    path = args.output_path if is_file else args.output_path / "captions.jsonl"
    with CaptionStore(path) as store:
        store.agree("settings", settings)
        # A rerun goes on with the sample it began, whatever was added to the folder or lost.
        sample = store.record.setdefault("images", sample)
        if len(sample) < args.num_eval_samples:
            print(
                f"note: {args.data_path} holds {len(sample)} images, fewer than "
                f"--num_eval_samples {args.num_eval_samples}: all are captioned",
                file=sys.stderr,
            )
        store.record["failed"] = []
        if any(image_id(name) not in store.captions for name in sample):
            try:
                captioner = load(args)
            except (OSError, ValueError) as error:
                raise EvaluationError(f"cannot load {args.model_path}: {error}") from error
            store.agree("captioner", captioner.settings)
            try:
                _caption(captioner, sample, store, args)
            except EvaluationError:
                raise
            except Exception as error:
                traceback.print_exc()
                print(
                    f"stopped by {type(error).__name__}: {error}\n"
                    f"{len(store.captions)} of {len(sample)} captions are in {path}; the same "
                    "command continues (out of memory: with a smaller --batch_size)",
                    file=sys.stderr,
                )
                return 1
        _report(store, sample)
    return 0


def _place(args: argparse.Namespace) -> None:
    import torch

    gpus = torch.cuda.device_count()
    if args.device is None:
        args.device = "cuda" if gpus else "cpu"
    here = ["cpu", "auto", *["cuda"][:gpus], *(f"cuda:{index}" for index in range(gpus))]
    if args.device not in here:
        raise EvaluationError(
            f"--device {args.device}: PyTorch finds no such device here, only {', '.join(here)}"
        )
    if args.dtype is None:
        args.dtype = "float16" if gpus and args.device != "cpu" else "float32"


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What decides the captions, as far as the command line says it."""
    settings: dict[str, Any] = {
        "model": _fingerprint(args.model_path),
        "dtype": args.dtype,
        "question": args.question,
        "data_path": str(args.data_path.resolve()),
        "num_eval_samples": args.num_eval_samples,
        "seed": args.seed,
        **decoding_arguments(args),
        **{f"{name} version": version(name) for name in ("torch", "transformers")},
        "revisit version": revisit.__version__,
    }
    if args.do_sample:
        settings["batch_size"] = args.batch_size  # rows of a batch share a stream of draws
    return settings


def _fingerprint(model_path: str) -> dict[str, str | None]:
    """Name and digest of a model folder: names, sizes, first and last MiB of its files."""
    folder = Path(model_path)
    if not folder.is_dir():
        return {"name": model_path, "sha256": None}
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in _MODEL_FILES and path.is_file():
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder)}\n{size}\n".encode())
            with path.open("rb") as file:
                digest.update(file.read(2**20))
                file.seek(max(2**20, size - 2**20))
                digest.update(file.read())
    return {"name": folder.resolve().name, "sha256": digest.hexdigest()}


def _caption(
    captioner: Captioner, sample: Sequence[str], store: CaptionStore, args: argparse.Namespace
) -> None:
    """Caption the images of the sample that have no caption yet.

    A batch is the same `batch_size` neighbours of the sample, with the same seed, in every run:
    where a rerun finds half of one done it decodes all of it again, and gets what one run gets.
    """
    import torch

    run = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "model_path": args.model_path,
        "device": args.device,
        "batch_size": args.batch_size,
        "python": platform.python_version(),
        "captions": 0,
        "seconds": 0.0,
    }
    store.record.setdefault("runs", []).append(run)
    with tqdm(total=len(sample), initial=len(store.captions), unit="image") as progress:
        for start in range(0, len(sample), args.batch_size):
            names = sample[start : start + args.batch_size]
            missing = [name for name in names if image_id(name) not in store.captions]
            if not missing:
                continue
            images, errors = _open(names, args.data_path)
            for name in missing:
                if name in errors:
                    progress.write(f"{name} cannot be read: {errors[name]}", file=sys.stderr)
                    entry = {"image_id": image_id(name), "file": name, "error": errors[name]}
                    store.record["failed"].append(entry)
            if any(name in images for name in missing):
                torch.manual_seed(_batch_seed(args.seed, names))
                began = time.perf_counter()
                captions = captioner.caption(list(images.values()))
                run["seconds"] += time.perf_counter() - began
                for name, caption in zip(images, captions, strict=True):
                    if name in missing:
                        store.append(image_id(name), caption)
                        run["captions"] += 1
            store.save_record()
            progress.update(len(missing))


def _open(names: Iterable[str], folder: Path) -> tuple[dict[str, Image.Image], dict[str, str]]:
    """By name, the RGB images that can be read, and what is wrong with the others."""
    images, errors = {}, {}
    for name in names:
        try:
            with Image.open(folder / name) as image:
                images[name] = image.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            errors[name] = str(error)
    return images, errors


def _batch_seed(seed: int, names: Sequence[str]) -> int:
    digest = hashlib.sha256(f"{seed}\n{names}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _report(store: CaptionStore, sample: Sequence[str]) -> None:
    store.save_record()
    print(f"{len(store.captions)} of {len(sample)} captions in {store.path}")
    if failed := store.record["failed"]:
        print(
            f"WARNING: {len(failed)} images could not be read and have no caption; they are listed "
            f"in {store.record_path}, and the same command tries them again",
            file=sys.stderr,
        )
