"""The program that captions a sample of COCO images and scores them, for every model family.

A family's script says how to load its model and how to make the model's inputs::

    from revisit.commands.engines.transformers import TransformersCaptioner
    from revisit.evaluation.captioning import main
    from revisit.evaluation.flags import decoding_arguments, other_decoder

    class LlavaCaptioner(TransformersCaptioner):
        def __init__(self, args):
            model = ...  # args.model_path, args.device, args.dtype
            super().__init__(model, tokenizer, other_decoder(args), decoding_arguments(args), {})

        def inputs(self, images, questions):
            ...

    if __name__ == "__main__":
        raise SystemExit(main(LlavaCaptioner, "Caption COCO images with LLaVA-1.5.", ...))

`revisit.evaluation.answering` has the rest of the run. Here is the sample of images, and the order:
what scoring needs is looked for first, and scoring comes last.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from revisit.evaluation import EvaluationError
from revisit.evaluation.answering import (
    Load,
    Outcome,
    Task,
    answer_tasks,
    common_settings,
    exit_status,
    settle_dtype,
)
from revisit.evaluation.benchmarks import chair
from revisit.evaluation.benchmarks.objects.coco import (
    check_covered,
    fingerprints,
    image_id,
    sample_images,
)
from revisit.evaluation.benchmarks.objects.lemmas import LEMMATIZERS
from revisit.evaluation.captions import CAPTIONS
from revisit.evaluation.flags import caption_parser, settle
from revisit.evaluation.parts import open_store
from revisit.evaluation.sweep import combinations, loaded_once, run_all


def main(
    load: Load,
    description: str,
    *,
    results: Path | None,
    own_dtype: Callable[[str], str],
    gpu_dtype: str = "auto",
    defaults: Mapping[str, Any] | None = None,
    argv: Sequence[str] | None = None,
    program: str | None = None,
) -> int:
    """Caption a sample of images as the command line says, score it where asked to.

    Args:
        load: called once, after everything that can be checked without the model has been; not at
            all where every caption is there already.
        results: the folder that gets a folder for each setting, where `--output_path` is left out;
            None: one of the model's name in results/ of the working folder.
        own_dtype: from `model_path`, the dtype that `--dtype auto` means. Raises as `load` does.
        gpu_dtype: what `--dtype` is on a GPU where it is left out.
        defaults: replaces defaults of other flags: `{"early_exit_layers": "all"}`.
        program: what it is called, where that is not the name of the script.

    Returns:
        The exit status: 0 when every image has its caption, 1 when the model failed on a batch, or
        images cannot be read or used (they are counted on the last line and listed in the run
        record), 2 for bad arguments or input or a full disk, 130 on Ctrl-C. Whatever it is, the
        captions made so far are in the file, and the same command goes on from there.
    """
    import torch

    parser = caption_parser(description, gpu_dtype)
    parser.prog = program or parser.prog
    parser.set_defaults(**(defaults or {}))
    given = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(given)

    def run() -> int:
        if args.lemmatizer is not None and args.anno_path is None:
            raise EvaluationError(
                "--lemmatizer: the scorer needs the annotations; give --anno_path"
            )
        runs = combinations(parser, given) if args.sweep else [args]
        for each in runs:
            settle(each, args.output_path or results, gpu_dtype, torch.cuda.device_count())
            if each.output_path.suffix not in (".jsonl", ".json"):
                each.output_path /= "captions.jsonl"
        if args.lemmatizer is not None:
            LEMMATIZERS[args.lemmatizer]()
        return run_all(runs, partial(_run_and_score, loaded_once(load, runs), own_dtype), _scores)

    return exit_status(parser.prog, run)


def _run_and_score(
    load: Load, own_dtype: Callable[[str], str], args: argparse.Namespace
) -> Outcome:
    outcome = _run(load, own_dtype, args)
    if args.lemmatizer is None or not outcome.whole:
        return outcome
    return outcome._replace(status=max(outcome.status, _score(args)))


def _scores(args: argparse.Namespace) -> dict[str, Path]:
    return {} if args.lemmatizer is None else {"": args.output_path.with_name("chair.json")}


def _run(load: Load, own_dtype: Callable[[str], str], args: argparse.Namespace) -> Outcome:
    sample = sample_images(args.data_path, args.num_eval_samples, args.seed)
    if args.anno_path is not None:
        check_covered([image_id(name) for name in sample], args.anno_path)
    settle_dtype(args, own_dtype)
    settings = common_settings(args)
    settings |= {"question": args.question, "num_eval_samples": args.num_eval_samples}
    with open_store(args.output_path, CAPTIONS, args.process) as store:
        store.agree("settings", settings)
        # A rerun goes on with the sample it began, whatever was added to the folder or lost.
        sample = store.record.setdefault("images", sample)
        if args.anno_path is not None:
            source = fingerprints(args.anno_path)
            chair.check_run(store.record, [], source, args.output_path)
            store.record.setdefault("annotations", source)
        if len(sample) < args.num_eval_samples:
            print(
                f"note: {args.data_path} holds {len(sample)} images, fewer than "
                f"--num_eval_samples {args.num_eval_samples}: all are captioned",
                file=sys.stderr,
            )
        tasks = [Task(image_id(name), name, args.question) for name in sample]
        return answer_tasks(lambda: load(args), tasks, store, args)


def _score(args: argparse.Namespace) -> int:
    return chair.main(
        [
            *("--cap_file", str(args.output_path), "--coco_path", str(args.anno_path)),
            *("--save_path", str(_scores(args)[""])),
            *("--lemmatizer", args.lemmatizer),
        ]
    )
