import pytest

from revisit.evaluation import EvaluationError
from revisit.evaluation.process import Process, this_process


@pytest.mark.parametrize(
    ("environment", "process"),
    [
        ({}, Process()),
        ({"WORLD_SIZE": "1", "RANK": "0"}, Process()),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Process(5, 8, 1)),
    ],
)
def test_the_environment_tells_which_process_this_is(environment, process):
    assert this_process(environment) == process


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"RANK": "one", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "2"},
    ],
)
def test_an_environment_that_does_not_fit_together_is_refused(environment):
    with pytest.raises(EvaluationError, match="RANK is below WORLD_SIZE"):
        this_process(environment)
