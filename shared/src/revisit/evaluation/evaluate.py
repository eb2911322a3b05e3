"""Runs from their data to their scores, for every benchmark, decoder and engine.

What can be checked without the model is checked first; the model is loaded once, and not at all
where every answer is there already; scoring comes last.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from revisit.config import ReVisiTConfig
from revisit.evaluation import EvaluationError
from revisit.evaluation.answering import Outcome, answer_tasks
from revisit.evaluation.benchmarks.benchmark import Section
from revisit.evaluation.captioner import Captioner, Load, loading
from revisit.evaluation.files import write_json
from revisit.evaluation.record import common_settings
from revisit.evaluation.results.tables import compare, grid, notes, score_rows, show
from revisit.evaluation.run import Dtype, Run
from revisit.evaluation.shards import open_store

_LOG = logging.getLogger("revisit")


def evaluate(runs: Sequence[Run], load: Load, own_dtype: Callable[[str], str]) -> int:
    """Each run in turn, and the tables of several.

    Args:
        runs: of one model and benchmark, with a settled place.
        load: called once, at most.
        own_dtype: from a model's path, the dtype that "auto" means. Raises as `load` does.

    Returns:
        The exit status: 0 when nothing is missing; 1 when the model failed on a batch, or images
        cannot be read or used (they are counted in a warning and listed in the run record); 2 when
        answers cannot be scored. Whatever it is, the answers made so far are in the file, and the
        same runs go on from there. No other run is begun after one that failed.

    Raises:
        EvaluationError: bad input, or a full disk.
    """
    scored = runs[0].benchmark.scored
    if len(runs) > 1 and not scored:
        _LOG.warning("no table will compare these runs, since their answers are not scored")
    load, worst = _loaded_once(load, runs), 0
    for number, run in enumerate(runs, 1):
        if len(runs) > 1:
            print(f"{number} of {len(runs)}: {run.output_path}", flush=True)
        sections = run.benchmark.sections(run.seed)
        status, whole = _evaluate_one(run, sections, load, own_dtype)
        if status > 1 or (status and not whole):
            return status
        worst = max(worst, status)
    if len(runs) > 1 and whole and scored:  # the process that ends last has the scores
        for section in sections:
            comparison = compare([result_file(run, section.name) for run in runs])
            print(f"\n{section.name}" if section.name else "")
            show(comparison.title, grid(comparison.rows, comparison.columns))
            print(f"\n{below}" if (below := notes(comparison.rows)) else "")
    return worst


def plan(run: Run, own_dtype: Callable[[str], str]) -> dict[str, Any]:
    """The plan of a run as JSON values: its files, its settings, its questions and images.

    Raises `EvaluationError` as `evaluate` does, before it loads a model.
    """
    sections = run.benchmark.sections(run.seed)
    common = common_settings(_with_dtype(run, own_dtype))
    return {
        str(answers_file(run, section.name)): {
            "settings": {**common, **section.settings},
            "tasks": [task._asdict() for task in section.tasks],
        }
        for section in sections
    }


def answers_file(run: Run, section: str) -> Path:
    """The file of a section's answers.

    Raises `EvaluationError` where `output_path` is a file and there may be several sections.
    """
    if run.output_path.suffix not in (".jsonl", ".json"):
        return run.output_path / section / run.benchmark.form.file
    if section:
        raise EvaluationError(
            f"--output_path {run.output_path}: each of the question files gets a folder, so give "
            "a folder"
        )
    return run.output_path


def result_file(run: Run, section: str) -> Path:
    """The file of a section's result."""
    return answers_file(run, section).with_name(f"{run.benchmark.name}.json")


def _evaluate_one(
    run: Run, sections: Sequence[Section], load: Load, own_dtype: Callable[[str], str]
) -> Outcome:
    files = [answers_file(run, section.name) for section in sections]
    run = _with_dtype(run, own_dtype)
    common = common_settings(run)
    worst, whole = 0, False
    for section, path in zip(sections, files, strict=True):
        with open_store(path, run.benchmark.form, run.process) as store:
            store.agree("settings", {**common, **section.settings})
            tasks = run.benchmark.resume(section, store.record, path)
            status, whole = answer_tasks(load, tasks, store, run)
        if status and not whole:
            return Outcome(status, whole)
        if whole:
            worst = max(worst, status, _score(run, section, path))
    return Outcome(worst, whole)


def _with_dtype(run: Run, own_dtype: Callable[[str], str]) -> Run:
    if run.place.dtype != "auto":
        return run
    with loading(run.model_path):
        return replace(run, place=replace(run.place, dtype=cast(Dtype, own_dtype(run.model_path))))


def _score(run: Run, section: Section, answers: Path) -> int:
    if not run.benchmark.scored:
        return 0
    try:
        result = run.benchmark.score(section, answers)
    except EvaluationError as error:
        _LOG.error("%s", error)
        return 2
    write_json(result_file(run, section.name), result)
    show(run.benchmark.columns.unit, score_rows({str(answers): result["overall_metrics"]}))
    return 0


def _loaded_once(load: Load, runs: Sequence[Run]) -> Load:
    """`load` for all `runs`: it loads the model at the first call, and checks that the captioner
    can decode as each of them says; later calls change how that captioner decodes."""
    captioner: Captioner | None = None
    current: Run | None = None

    def load_or_change(run: Run) -> Captioner:
        nonlocal captioner, current
        if captioner is None:
            # An engine may have to know of ReVisiT's layers from its start on.
            first = next((each for each in runs if isinstance(each.decoder, ReVisiTConfig)), run)
            captioner = load(replace(run, decoder=first.decoder))
            current = first if len(runs) == 1 else None
            for each in runs if len(runs) > 1 else ():
                captioner.decode(each)
        if current is None or (run.decoder, run.seed) != (current.decoder, current.seed):
            captioner.decode(run)
        current = run
        return captioner

    return load_or_change
