"""Without lmms-eval its tests are skipped; each evaluation runs once."""

import importlib.util
import os
import sys
from functools import partial

import pytest

if not importlib.util.find_spec("lmms_eval"):
    collect_ignore = ["test_join.py", "test_launch.py", "test_tasks.py"]
else:
    # Before Transformers and datasets are loaded: nothing is looked for elsewhere.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with the tasks; lmms-eval reads them alone, and none of its thousands."""
    from lmms_eval import __main__ as program

    import float32
    import scenes_data

    float32.register()
    program.TaskManager = partial(program.TaskManager, include_defaults=False)
    os.environ["LMMS_EVAL_DATASETS_CACHE"] = str(tmp_path_factory.mktemp("datasets"))
    folder = tmp_path_factory.mktemp("tasks")
    scenes_data.write_tasks(folder)
    return folder


@pytest.fixture(scope="session")
def evaluated(folder, tmp_path_factory):
    """The answers of the launcher's evaluation with some settings, batch size and model."""
    from evaluations import Evaluation, arguments
    from revisit.lmms_eval.launch import main

    done = {}

    def evaluate(settings="", **options):
        key = (settings, *options.items())
        if key not in done:
            output = tmp_path_factory.mktemp("results")
            assert main(arguments(folder, output, settings, **options)) == 0
            done[key] = Evaluation.read(output)
        return done[key]

    return evaluate


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Where `plain` keeps its answers for later evaluations."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def plain(folder, cache, tmp_path_factory):
    """The answers of lmms-eval alone."""
    from lmms_eval.cli.dispatch import main

    from evaluations import Evaluation, arguments

    output = tmp_path_factory.mktemp("results")
    argv = sys.argv
    sys.argv = ["lmms-eval", *arguments(folder, output, "", "--use_cache", str(cache))]
    try:
        main()
    finally:
        sys.argv = argv
    return Evaluation.read(output)
