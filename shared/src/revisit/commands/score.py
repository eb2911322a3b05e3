"""`revisit score`: score a file of answers by the published rules."""

import json as to_json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from revisit.commands import CommandError, check_folder
from revisit.commands.flags import new_app

Save = Annotated[
    Path | None, Parameter(help="a JSON file for the metrics, and all that they are of")
]
Lemmatize = Annotated[
    Literal["nltk", "noun"],
    Parameter(
        help="nltk: the published pipeline, needs NLTK's data. noun: needs no data, reads every "
        "word as a noun"
    ),
]
Json = Annotated[bool, Parameter(help="print the metrics as JSON, fractions of 1")]

score = new_app("score", "Score a file of answers by the published rules of its benchmark.")


@score.command
def chair(
    *,
    cap_file: Annotated[Path, Parameter(help="captions: JSON Lines, or a JSON list")],
    image_id_key: Annotated[str, Parameter(help="key of the image id")] = "image_id",
    caption_key: Annotated[str, Parameter(help="key of the caption")] = "caption",
    coco_path: Annotated[
        Path | None,
        Parameter(
            help="folder of COCO 2014's annotations: every pair instances_*2014.json, "
            "captions_*2014.json in it is read"
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        Parameter(
            help="a JSON file of the images' objects; read where it exists, else made from "
            "--coco_path"
        ),
    ] = None,
    lemmatizer: Lemmatize = "nltk",
    save_path: Save = None,
    json: Json = False,
) -> None:
    """CHAIR of captions of COCO images: how many of the objects that they name are not in the
    image, and how many of the image's objects they name."""
    from revisit.evaluation.benchmarks.chair import score_file

    _check(save_path, [cap_file, *([cache] if cache else [])])
    result = score_file(cap_file, coco_path, lemmatizer, cache, image_id_key, caption_key)
    _finish(result, save_path, json)
    captions = result["captions"]
    sample = (captions["run"] or {}).get("images", [])
    if captions["count"] < len(sample):
        print(
            f"WARNING: {cap_file} has {captions['count']} of the {len(sample)} captions of its "
            f"run; {len(captions['run'].get('failed', []))} images could not be read",
            file=sys.stderr,
        )


@score.command
def pope(
    *,
    questions: Annotated[Path, Parameter(help="POPE's file of questions and labels")],
    answers: Annotated[Path, Parameter(help="question_id and answer, one a line")],
    save_path: Save = None,
    json: Json = False,
) -> None:
    """POPE: does the model say yes to objects that are not in the image?"""
    from revisit.evaluation.benchmarks.pope import score_file

    _check(save_path, [questions, answers])
    _finish(score_file(questions, answers), save_path, json)


@score.command
def amber(
    *,
    answers: Annotated[Path, Parameter(help="id and response: a JSON list, or JSON Lines")],
    amber_path: Annotated[
        Path,
        Parameter(help="folder of annotations.json, relation.json and safe_words.txt, or of data/"),
    ],
    lemmatizer: Lemmatize = "nltk",
    similarity: Annotated[
        Literal["exact", "spacy"],
        Parameter(
            help="spacy: words that name similar things count too, as published (needs spaCy and "
            "en_core_web_lg). exact: equal words alone"
        ),
    ] = "exact",
    similarity_table: Annotated[
        Path | None,
        Parameter(
            help="a JSON file of the similar words: read where it exists, so that no spaCy is "
            "needed, else written by --similarity spacy"
        ),
    ] = None,
    save_path: Save = None,
    json: Json = False,
) -> None:
    """AMBER: what captions name that is not in the image, and answers about existence, attributes
    and relations."""
    from revisit.evaluation.benchmarks.amber import score_file

    if similarity_table is not None and similarity != "spacy":
        raise CommandError("--similarity_table is of --similarity spacy: give that too")
    _check(save_path, [answers, amber_path])
    result = score_file(answers, amber_path, lemmatizer, similarity, similarity_table)
    _finish(result, save_path, json)
    answered = result["answered"]
    if answered["all"] < answered["items"]:
        print(
            f"Of AMBER's {answered['items']} items {answered['all']} are answered, of which "
            f"{answered['captions']} are captions",
            file=sys.stderr,
        )


@score.command
def mme(
    *,
    answers: Annotated[Path, Parameter(help="category, image, question and answer, one a line")],
    data_path: Annotated[Path, Parameter(help="folder of MME's categories, as published")],
    save_path: Save = None,
    json: Json = False,
) -> None:
    """MME: accuracy + accuracy+ of each category, 200 points at most."""
    from revisit.evaluation.benchmarks.mme import score_file

    _check(save_path, [answers, data_path])
    _finish(score_file(answers, data_path), save_path, json)


@score.command
def hallusionbench(
    *,
    answers: Annotated[
        Path,
        Parameter(
            help="category, subcategory, set_id, figure_id, question_id and answer: a JSON list, "
            "or JSON Lines"
        ),
    ],
    data_path: Annotated[Path, Parameter(help="HallusionBench.json")],
    save_path: Save = None,
    json: Json = False,
) -> None:
    """HallusionBench: questions, questions with all their figures, and figures answered right."""
    from revisit.evaluation.benchmarks.hallusionbench import score_file

    _check(save_path, [answers, data_path])
    result = score_file(answers, data_path)
    _finish(result, save_path, json)
    print(f"Judge: {result['judge']}", file=sys.stderr)


def _check(save_path: Path | None, inputs: Sequence[Path]) -> None:
    if save_path is not None:
        if save_path.resolve() in [path.resolve() for path in inputs]:
            raise CommandError(f"--save_path {save_path} would overwrite an input")
        check_folder("--save_path", save_path)


def _finish(result: dict[str, Any], save_path: Path | None, json: bool) -> None:
    """Write and print a result."""
    from revisit.evaluation.benchmarks.registry import BENCHMARKS
    from revisit.evaluation.files import write_json
    from revisit.evaluation.results.tables import score_rows, show

    if save_path is not None:
        write_json(save_path, result)
    if json:
        print(to_json.dumps(result["overall_metrics"]))
    else:
        unit = BENCHMARKS[result["benchmark"]].columns.unit
        show(unit, score_rows({"": result["overall_metrics"]}))
