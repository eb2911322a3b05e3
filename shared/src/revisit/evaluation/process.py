"""One of several processes that share a run, as `torchrun` and `accelerate launch` start them."""

from collections.abc import Mapping
from typing import NamedTuple

from revisit.evaluation import EvaluationError


class Process(NamedTuple):
    """One of `world_size` processes that share the work."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Its number on its machine, which has a GPU for each."""

    def __str__(self) -> str:
        return f"process {self.rank} of {self.world_size}"


def this_process(environment: Mapping[str, str]) -> Process:
    """The process that RANK, WORLD_SIZE and LOCAL_RANK name; one alone where they are not set.

    Raises:
        EvaluationError: they do not fit together.
    """
    found = {name: environment.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if found["WORLD_SIZE"] in (None, "1"):
        return Process()
    try:
        rank, world_size, local_rank = (int(value or "") for value in found.values())
        if 0 <= rank < world_size and local_rank >= 0:
            return Process(rank, world_size, local_rank)
    except ValueError:
        pass
    raise EvaluationError(
        f"the environment has {', '.join(f'{name}={value}' for name, value in found.items())}: for "
        "several processes all three are numbers, and RANK is below WORLD_SIZE, as torchrun sets "
        "them; for one process unset WORLD_SIZE"
    )
