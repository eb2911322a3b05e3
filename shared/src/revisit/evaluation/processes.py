"""Which of several processes this is, as `torchrun` and `accelerate launch` tell it."""

from collections.abc import Mapping
from typing import NamedTuple

from revisit.evaluation import EvaluationError


class Process(NamedTuple):
    """One of `count` processes that share the work."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    """Its number on its machine, which has a GPU for each."""

    def __str__(self) -> str:
        return f"process {self.rank} of {self.count}"


def this_process(environment: Mapping[str, str]) -> Process:
    """What RANK, WORLD_SIZE and LOCAL_RANK say; alone where they are not set.

    Raises:
        EvaluationError: they do not fit together.
    """
    told = {name: environment.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if told["WORLD_SIZE"] in (None, "1"):
        return Process()
    try:
        rank, count, local_rank = (int(value) for value in told.values() if value is not None)
        if 0 <= rank < count and local_rank >= 0:
            return Process(rank, count, local_rank)
    except ValueError:
        pass
    raise EvaluationError(
        f"the environment has {', '.join(f'{name}={value}' for name, value in told.items())}: for "
        "several processes all three are numbers, and RANK is below WORLD_SIZE, as torchrun sets "
        "them; for one process unset WORLD_SIZE"
    )
