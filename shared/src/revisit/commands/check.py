"""`revisit check`: what ReVisiT finds in a model, and whether it decodes it exactly."""

import json as to_json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from revisit.commands import CommandError


def check(
    model: Annotated[str, Parameter(help="a checkpoint's folder, or a hub id")],
    /,
    *,
    random: Annotated[bool, Parameter(help="random weights: a config.json is enough")] = False,
    trust_remote_code: Annotated[
        bool, Parameter(help="run the code that the checkpoint brings")
    ] = False,
    json: Annotated[bool, Parameter(help="print one JSON object")] = False,
) -> int:
    """Say what ReVisiT finds in a model, and compare one generation with the dense float64
    computation: exact, or what to pass. Exits with 1 where it is not exact."""
    from revisit.transformers.check import inspect, load
    from revisit.transformers.checkpoint import check_files

    try:
        if not (random and Path(model).is_dir()):  # random weights need no files of weights
            check_files(model)
        loaded = load(model, random=random, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever a broken checkpoint makes Transformers raise
        raise CommandError(f"{model} cannot be loaded: {error}") from error
    try:
        found, exact = inspect(loaded)
    except Exception as error:  # a model that `generate` cannot use so
        raise CommandError(f"{model} cannot be checked: {error!r}") from error
    if json:
        print(to_json.dumps(found | {"exact": exact}, indent=1))
    else:
        for name, value in found.items():
            print(f"{name:14}{value}")
    return 0 if exact else 1
