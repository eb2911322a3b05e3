"""The command line of lmms-eval, with a decoder on the model that it builds."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from revisit.lmms_eval.join import join, refuse_model
from revisit.lmms_eval.settings import NAMES, read_model_args

USAGE = f"""\
usage: python -m revisit.lmms_eval --model MODEL --model_args pretrained=...,SETTING=... --tasks ...

An evaluation of lmms-eval, with ReVisiT or another decoder on the model that it builds. Among the
model args: decoder={"|".join(NAMES)} (default: revisit), and the decoder's settings, such as
revisit_alpha=1e-5, revisit_layers=all, vcd_alpha=1. All else is lmms-eval's.
Exit status: 0 every evaluation has results, 1 one has none, 2 bad arguments.
"""


def main(argv: list[str] | None = None) -> int:
    """Run lmms-eval with these arguments (default: of this program); returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if find_spec("lmms_eval") is None:
        print(
            'lmms-eval is not installed: pip install lmms-eval==0.7.3 decord "filelock<4"',
            file=sys.stderr,
        )
        return 2
    flags = argv[1:] if argv[:1] == ["eval"] else argv
    if not flags or not flags[0].startswith("-") or "--tui" in flags:
        other = "" if not flags else f"\n`{' '.join(argv)}` is for lmms-eval itself."
        print(USAGE + other, file=sys.stderr)
        return 2
    if {"-h", "--help"} & set(flags):
        print(USAGE)
    from lmms_eval import __main__ as program

    failures: list[Exception] = []
    arguments, sys.argv = sys.argv, ["lmms-eval", *flags]
    try:
        with _with_decoders(program, failures):
            program.cli_evaluate()
    except Exception as error:  # with --verbosity DEBUG it lets them through
        traceback.print_exc()
        failures += [] if error in failures else [error]
    finally:
        sys.argv = arguments
    for failure in failures:
        print(f"revisit.lmms_eval: an evaluation failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


@contextmanager
def _with_decoders(program: Any, failures: list[Exception]) -> Iterator[None]:
    """Let lmms-eval's `program` use decoders, and name them in the `config` of its results.

    What its evaluations raise is appended to `failures`, since lmms-eval only logs it.
    """
    from lmms_eval.api.model import lmms
    from lmms_eval.loggers import EvaluationTracker

    evaluate, save = program.cli_evaluate_single, EvaluationTracker.save_results_aggregated
    build = lmms.create_from_arg_string.__func__

    def evaluated(args: Any) -> Any:
        try:
            _check(args)
            results = evaluate(args)
            if results[0] is None and int(os.environ.get("RANK", 0)) == 0:
                raise ValueError("lmms-eval returned no results")
            return results
        except Exception as error:
            failures.append(error)
            raise

    def built(cls: Any, arg_string: str, additional_config: dict[str, Any] | None = None) -> Any:
        decoding = read_model_args(arg_string)
        lm = build(cls, decoding.model_args, additional_config)
        if decoding.config is not None:
            join(lm, decoding.config)
        return lm

    def saved(tracker: Any, results: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        config = results["config"]
        config["decoder"] = read_model_args(config["model_args"]).record()
        save(tracker, results, *args, **kwargs)
        _check_saved(tracker)

    with ExitStack() as stack:
        for owner, name, new in (
            (program, "cli_evaluate_single", evaluated),
            (lmms, "create_from_arg_string", classmethod(built)),
            (EvaluationTracker, "save_results_aggregated", saved),
        ):
            stack.callback(setattr, owner, name, vars(owner)[name])
            setattr(owner, name, new)
        yield


def _check(args: Any) -> None:
    """Refuse what no decoder can run before anything is loaded, and name the decoder in `args`:
    `--use_cache` keeps answers by the model args.
    """
    from lmms_eval.models import get_model_manifest

    if args.tasks is None:
        raise ValueError("--tasks is missing: name what to evaluate, or `list` what there is")
    if args.tasks.startswith("list"):
        return
    decoding = read_model_args(args.model_args or "")
    if decoding.config is not None:
        refuse_model(get_model_manifest(args.model).model_id)
    args.model_args = decoding.written


def _check_saved(tracker: Any) -> None:
    """lmms-eval logs that it could not write its results, and goes on."""
    if not tracker.output_path:
        return
    folder = Path(tracker.output_path, tracker.general_config_tracker.model_name_sanitized)
    name = f"{getattr(tracker, 'date_id', None)}_results.json"
    if not (folder / name).is_file():
        raise ValueError(f"lmms-eval could not save its results in {folder}: its log says why")
