"""`revisit-chair` and `revisit-pope`: score a file of answers."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks import chair as chair_scorer
from revisit.evaluation.benchmarks import pope as pope_scorer
from revisit.evaluation.benchmarks.objects.lemmas import LEMMATIZERS
from revisit.evaluation.results.tables import scores_table
from revisit.evaluation.store import write_json


def chair(argv: Sequence[str] | None = None) -> int:
    """The console script `revisit-chair`. Returns 0, or 2 where the input is bad."""
    parser = argparse.ArgumentParser(
        prog="revisit-chair",
        description="Score captions of COCO images by CHAIR: how many of the objects that they "
        "name are not in the image, and how many of the image's objects they name.",
    )
    add = parser.add_argument
    add("--cap_file", type=Path, required=True, metavar="JSONL", help="captions, one JSON a line")
    add("--image_id_key", default="image_id", help="key of the image id (default: %(default)s)")
    add("--caption_key", default="caption", help="key of the caption (default: %(default)s)")
    add(
        "--coco_path",
        type=Path,
        metavar="FOLDER",
        help="annotations of COCO 2014: every pair instances_*2014.json, captions_*2014.json in "
        "the folder is read",
    )
    add(
        "--cache",
        type=Path,
        metavar="JSON",
        help="ground-truth objects; read where it exists, else made from --coco_path and written",
    )
    add("--save_path", type=Path, metavar="JSON", help="write metrics and every caption's objects")
    add(
        "--lemmatizer",
        choices=sorted(LEMMATIZERS),
        default="nltk",
        help="nltk: the published pipeline, needs NLTK's data. noun: needs no data, reads every "
        "word as a noun (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    return _score(
        parser.prog,
        args.save_path,
        [args.cap_file, args.cache],
        lambda: chair_scorer.score_file(
            args.cap_file,
            args.coco_path,
            args.lemmatizer,
            args.cache,
            args.image_id_key,
            args.caption_key,
        ),
    )


def pope(argv: Sequence[str] | None = None) -> int:
    """The console script `revisit-pope`. Returns 0, or 2 where the input is bad."""
    parser = argparse.ArgumentParser(
        prog="revisit-pope",
        description="Score the answers to POPE's questions: does the model say yes to objects "
        "that are not in the image?",
    )
    add = parser.add_argument
    add("--questions", type=Path, required=True, metavar="JSONL", help="POPE's file of questions")
    add("--answers", type=Path, required=True, metavar="JSONL", help="question_id and answer")
    add("--save_path", type=Path, metavar="JSON", help="write the metrics and what they are of")
    args = parser.parse_args(argv)
    return _score(
        parser.prog,
        args.save_path,
        [args.questions, args.answers],
        lambda: pope_scorer.score_file(args.questions, args.answers),
    )


def _score(
    program: str,
    save_path: Path | None,
    inputs: Sequence[Path | None],
    score: Callable[[], Mapping[str, Any]],
) -> int:
    try:
        if save_path and save_path.resolve() in [path.resolve() for path in inputs if path]:
            raise EvaluationError(f"--save_path {save_path} would overwrite an input")
        result = score()
        if save_path:
            write_json(save_path, result)
        print(f"percent, Len in words\n{scores_table({'': result['overall_metrics']})}")
        captions = result.get("captions", {})
        asked = (captions.get("run") or {}).get("images", [])
        if captions and captions["count"] < len(asked):
            print(
                f"WARNING: {captions['file']} has {captions['count']} of the {len(asked)} captions "
                f"of its run; {len(captions['run'].get('failed', []))} images could not be read",
                file=sys.stderr,
            )
    except EvaluationError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    return 0
