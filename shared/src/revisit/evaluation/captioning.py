"""The program that captions a sample of COCO images and scores them, for every model family.

A family's script stays thin: it says how to load its model and how to caption a batch::

    from revisit.evaluation.captioning import main
    from revisit.evaluation.flags import decoding_arguments, other_decoder

    class Llava:
        def __init__(self, args):
            self.model = ...  # args.model_path, args.device, args.dtype
            self.question = args.question
            self.decoding = decoding_arguments(args)
            if (config := other_decoder(args)) is not None:
                revisit.enable(self.model, config)
            self.settings = {"conversation": "llava_v1"}

        def caption(self, images):
            ...
            output = self.model.generate(input_ids, images=..., **self.decoding)
            return [text for text in ...]

    if __name__ == "__main__":
        raise SystemExit(main(Llava, "Caption COCO images with LLaVA-1.5.", ...))

Everything else is here: the sample of images, batches, the progress bar, resuming, images that
cannot be read, the record of what made the captions, and the order: what scoring needs is looked
for first, and scoring comes last.
"""

import argparse
import hashlib
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from tqdm import tqdm

from revisit import __version__
from revisit.evaluation import EvaluationError, chair
from revisit.evaluation.captions import CaptionStore
from revisit.evaluation.coco import check_covered, image_id, sample_images
from revisit.evaluation.flags import decoder_settings, decoding_arguments, make_parser, settle
from revisit.evaluation.lemmas import LEMMATIZERS

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


Load = Callable[[argparse.Namespace], Captioner]
"""Loads a model as settled flags say: in them `model_path` is the str given; `device` is "cpu",
"cuda", "cuda:N" or "auto" (Transformers' `device_map="auto"`); `dtype` a torch dtype's name;
`question` a str; `seed` an int; the decoding flags are best read by `decoding_arguments(args)` and
`other_decoder(args)`.

An `OSError` or `ValueError` ends the program with its message: say there what is wrong with the
checkpoint, or with a flag that only the model can judge (a layer out of its range).
"""


def main(
    load: Load,
    description: str,
    *,
    results: Path,
    own_dtype: Callable[[str], str],
    gpu_dtype: str = "auto",
    defaults: Mapping[str, Any] | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Caption a sample of images as the command line says, score it where asked to.

    Args:
        load: called once, after everything that can be checked without the model has been; not at
            all where every caption is there already.
        results: the folder that gets a folder for each setting, where `--output_path` is left out.
        own_dtype: from `model_path`, the dtype that `--dtype auto` means. Raises as `load` does.
        gpu_dtype: what `--dtype` is on a GPU where it is left out.
        defaults: replaces defaults of other flags: `{"early_exit_layers": "all"}`.

    Returns:
        The exit status: 0 when every image that can be read has its caption (those that cannot be
        are counted on the last line and listed in the run record), 1 when the model failed on a
        batch, 2 for bad arguments or input or a full disk, 130 on Ctrl-C. Whatever it is, the
        captions made so far are in the file, and the same command goes on from there.
    """
    import torch

    parser = make_parser(description, gpu_dtype)
    parser.set_defaults(**(defaults or {}))
    args = parser.parse_args(argv)
    try:
        settle(args, results, gpu_dtype, torch.cuda.device_count())
        if args.lemmatizer is not None:
            LEMMATIZERS[args.lemmatizer]()
        status = _run(load, own_dtype, args)
        return status if status or args.lemmatizer is None else _score(args)
    except EvaluationError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130


def _run(load: Load, own_dtype: Callable[[str], str], args: argparse.Namespace) -> int:
    sample = sample_images(args.data_path, args.num_eval_samples, args.seed)
    if args.anno_path is not None:
        check_covered([image_id(name) for name in sample], args.anno_path)
    if args.dtype == "auto":
        with _loading(args.model_path):
            args.dtype = own_dtype(args.model_path)
    settings = _settings(args)
    with CaptionStore(args.output_path) as store:
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
            with _loading(args.model_path):
                captioner = load(args)
            store.agree("captioner", captioner.settings)
            try:
                _caption(captioner, sample, store, args)
            except EvaluationError:
                raise
            except Exception as error:
                _report_stop(error, store, sample)
                return 1
        _report(store, sample)
    return 0


@contextmanager
def _loading(model_path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise EvaluationError(f"cannot load {model_path}: {error}") from error


def _score(args: argparse.Namespace) -> int:
    return chair.main(
        [
            *("--cap_file", str(args.output_path), "--coco_path", str(args.anno_path)),
            *("--save_path", str(args.output_path.with_name("chair.json"))),
            *("--lemmatizer", args.lemmatizer),
        ]
    )


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
        **decoder_settings(args),
        **{f"{name} version": version(name) for name in ("torch", "transformers")},
        "revisit version": __version__,
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

    run = _new_run(args)
    store.record.setdefault("runs", []).append(run)
    with tqdm(total=len(sample), initial=len(store.captions), unit="image") as progress:
        for start in range(0, len(sample), args.batch_size):
            names = sample[start : start + args.batch_size]
            missing = [name for name in names if image_id(name) not in store.captions]
            if not missing:
                continue
            images, errors = _open(names, args.data_path)
            for name in [name for name in missing if name in errors]:
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


def _new_run(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "model_path": args.model_path,
        "device": args.device,
        "batch_size": args.batch_size,
        "python": platform.python_version(),
        "captions": 0,
        "seconds": 0.0,
    }


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


def _report_stop(error: Exception, store: CaptionStore, sample: Sequence[str]) -> None:
    traceback.print_exc()
    print(
        f"stopped by {type(error).__name__}: {error}\n"
        f"{len(store.captions)} of {len(sample)} captions are in {store.path}; the same command "
        "continues (out of memory: with a smaller --batch_size)",
        file=sys.stderr,
    )


def _report(store: CaptionStore, sample: Sequence[str]) -> None:
    store.save_record()
    print(f"{len(store.captions)} of {len(sample)} captions in {store.path}")
    if failed := store.record["failed"]:
        print(
            f"WARNING: {len(failed)} images could not be read and have no caption; they are listed "
            f"in {store.record_path}, and the same command tries them again",
            file=sys.stderr,
        )
