"""Skipped where vLLM is not installed; models are made once, and engines are shared."""

import importlib.util
import os

import pytest

if not importlib.util.find_spec("vllm"):
    collect_ignore_glob = ["test_*.py"]
else:
    # Before PyTorch is loaded. The engine runs in this process, where tests can look into it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

FAMILIES = ("qwen", "llava")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A folder with a tiny model, by family."""
    import vllm_models

    parent = tmp_path_factory.mktemp("models")
    return {family: vllm_models.make(family, parent / family) for family in FAMILIES}


@pytest.fixture(scope="session")
def references(folders):
    """What Transformers generates, by family."""
    import vllm_models

    return {family: vllm_models.Reference(folder) for family, folder in folders.items()}


@pytest.fixture(scope="session")
def started(folders):
    """Starts an engine, or gives the one that was started with the same options."""
    import vllm_engines

    running = {}

    def start(family, layers="last", **options):
        key = (family, str(layers), str(sorted(options.items())))
        if key not in running:
            running[key] = vllm_engines.start(folders[family], layers, **options)
        return running[key]

    return start


@pytest.fixture(scope="session")
def server(folders, tmp_path_factory):
    """The address of a server of the tiny Qwen2.5-VL, all layers, on this machine."""
    import vllm_server

    log = tmp_path_factory.mktemp("server") / "log"
    with vllm_server.served(folders["qwen"], log) as address:
        yield address
