"""Reading a whole checkpoint, with errors that say what is wrong with it."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors import SafetensorError
from transformers import PretrainedConfig
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from revisit.core.layers import resolve_layers

_HUB_TIMEOUT_S = 10.0

# Where a folder holds several of them, Transformers reads the first of these.
_WEIGHTS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)


def load_complete(
    load: Callable[..., Any], name: str, **kwargs: Any
) -> tuple[Any, dict[str, list[Any]]]:
    """Call `load`, a `from_pretrained`, and insist that every weight was there.

    `name`: a folder or a hub id. Returns the model and Transformers' loading info. Raises OSError
    (missing or unreadable) or ValueError (weights missing, or of another shape), each naming the
    file or the weights.
    """
    check_files(name)
    with reading(name):
        model, info = load(name, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
    if info["mismatched_keys"]:
        shapes = "".join(
            f"\n  {key}: {tuple(found)} in the files, {tuple(wanted)} by config.json"
            for key, found, wanted in info["mismatched_keys"]
        )
        raise ValueError(
            f"the weights of {name} do not have the shapes of its config.json; "
            f"fetch both from the same place:{shapes}"
        )
    if info["missing_keys"]:
        names = ", ".join(sorted(info["missing_keys"])[:5])
        raise ValueError(
            f"{len(info['missing_keys'])} weights are missing from the checkpoint {name}: {names}"
            f"{', ...' if len(info['missing_keys']) > 5 else ''}; fetch the checkpoint again"
        )
    return model, info


def own_dtype(name: str) -> str:
    """The dtype that the config.json of a checkpoint, a folder or a hub id, names: "bfloat16".

    It is what Transformers loads for `torch_dtype="auto"`. Raises OSError (missing or unreadable)
    or ValueError (no dtype is named).
    """
    config = _read_config(name)
    for part in (config, config.get("text_config") or {}):
        if dtype := part.get("dtype") or part.get("torch_dtype"):
            return str(dtype)
    raise ValueError(f"config.json of {name} names no dtype: choose float32, float16 or bfloat16")


def check_layers(name: str, layers: str | Sequence[int]) -> None:
    """Refuse a list of layers that the config.json of a checkpoint does not have.

    Where the config leaves the number of layers to its class, any list passes here, and the model
    checks it. Raises ValueError, and OSError as `own_dtype`.
    """
    if isinstance(layers, str):
        return
    config = _read_config(name)
    for part in (config.get("text_config") or {}, config):
        if count := part.get("num_hidden_layers"):
            resolve_layers(layers, count, tied=False)  # which matters to named layers alone
            return


def _read_config(name: str) -> dict[str, Any]:
    check_files(name)
    with reading(name):
        config, _ = PretrainedConfig.get_config_dict(name)
    return dict(config)


def check_files(name: str) -> None:
    """Look for the files that a checkpoint, a folder or a hub id, must have.

    Raises FileNotFoundError where the folder, or a shard that its index names, is not there, and
    OSError where the hub does not answer, or has no such model.
    """
    folder = Path(name)
    if not folder.is_dir():
        try:
            validate_repo_id(name)
        except ValueError:
            raise FileNotFoundError(
                f"no checkpoint at {name}: the folder does not exist; give the folder that holds "
                "config.json and the weights, or a hub id such as liuhaotian/llava-v1.5-7b"
            ) from None
        _check_hub(name)
        return
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no config.json in {name}: this is not a checkpoint's folder")
    weights = next((folder / file for file in _WEIGHTS if (folder / file).is_file()), folder)
    if weights.suffix == ".json":
        _check_shards(weights)


def _check_hub(name: str) -> None:
    """Ask the hub once: Transformers asks for each file, many times."""
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    try:
        HfApi().model_info(name, timeout=_HUB_TIMEOUT_S)
    except Exception as error:  # of the HTTP client that this release of the hub's has
        raise OSError(
            f"no folder {name} here, and the hub does not give a model of that name: {error}\n"
            "Check the name and the network, or download it first and give the folder."
        ) from error


def _check_shards(index: Path) -> None:
    try:
        shards = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(f"{index} is not an index of weights; fetch it again") from error
    missing = sorted(shard for shard in shards if not (index.parent / shard).is_file())
    if missing:
        raise FileNotFoundError(
            f"{index} names files that are not in the folder: {', '.join(missing)}; "
            "fetch the checkpoint again"
        )


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Errors of reading the checkpoint `name` become an OSError that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"cannot read the checkpoint {name}: {error}\nIf it is a folder, a file in it is "
            "damaged or missing: fetch the checkpoint again. If it is a hub id, check the name and "
            "the network, or download it first and give the folder."
        ) from error
