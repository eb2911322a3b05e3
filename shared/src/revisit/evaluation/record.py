"""Entries of a run record: the settings that decide the answers, and the cost of each start."""

import hashlib
import platform
import re
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from revisit import __version__
from revisit.config import ReVisiTConfig
from revisit.evaluation.answer_files import VERSION
from revisit.evaluation.run import Run, decoder_settings

# Files of a model folder that decide its answers.
_MODEL_FILES = {".bin", ".jinja", ".json", ".model", ".pt", ".safetensors", ".txt"}


def common_settings(run: Run) -> dict[str, Any]:
    """The settings of a run that decide its answers, whatever the benchmark."""
    settings: dict[str, Any] = {
        "model": _fingerprint(run.model_path),
        "dtype": run.place.dtype or "the server's",
        "data_path": str(run.benchmark.data_path.resolve()),
        "seed": run.seed,
        **run.generation.arguments(),
        **decoder_settings(run.decoder),
        **{f"{name} version": version(name) for name in ("torch", "transformers")},
        VERSION: __version__,
    }
    drawn = isinstance(run.decoder, ReVisiTConfig) and run.decoder.selection == "random"
    if run.generation.do_sample or drawn:
        settings["batch_size"] = run.place.batch_size  # rows of a batch share a stream of draws
    return settings


def _fingerprint(model_path: str) -> dict[str, str | None]:
    """Name and digest of a model folder: names, sizes, first and last MiB of its files."""
    folder = Path(model_path)
    if not folder.is_dir():
        return {"name": model_path, "sha256": None}
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in _MODEL_FILES and path.is_file():
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder)}\n{size}\n".encode())
            with path.open("rb") as file:
                digest.update(file.read(2**20))
                file.seek(max(2**20, size - 2**20))
                digest.update(file.read())
    return {"name": folder.resolve().name, "sha256": digest.hexdigest()}


def new_start(run: Run, texts: str) -> dict[str, Any]:
    """An entry of the record's `runs`, with nothing counted yet.

    `tokens` are decoded in `seconds`, also those of answers that are there already; loading the
    model and reading the images take none of them. `texts` is the name of what is counted, such as
    captions.
    """
    import torch

    device, processes = run.place.device or "cpu", run.process.world_size
    _reset_peak(device)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "model_path": run.model_path,
        # Of several processes each has its GPU.
        "device": device.split(":")[0] if processes > 1 else device,
        "processor": _processor(device),
        "threads": torch.get_num_threads(),
        "process": run.process.rank,
        "processes": processes,
        "batch_size": run.place.batch_size,
        "python": platform.python_version(),
        "changed_images": {},  # a file's name -> what `open_image` did to its image
        texts: 0,
        "tokens": 0,
        "seconds": 0.0,
        "peak_bytes": 0,
        "peak_bytes_of": "GPU" if _gpus(device) else "process",
    }


def _gpus(device: str | None) -> list[str]:
    """The GPUs that the model is on."""
    import torch

    if device in ("cpu", None) or not torch.cuda.is_available():
        return []
    every = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return every if device == "auto" else [str(device)]


def _processor(device: str) -> str:
    """The names of the GPUs, or of the CPU."""
    import torch

    if gpus := _gpus(device):
        return ", ".join(map(torch.cuda.get_device_name, gpus))
    file = Path("/proc/cpuinfo")
    cpus = file.read_text() if file.exists() else ""
    model = re.search(r"^model name\s*: (.*)$", cpus, re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


def _reset_peak(device: str) -> None:
    """Let `peak_bytes` begin anew: earlier runs of a sweep were in this process too."""
    import torch

    for gpu in (gpus := _gpus(device)):
        torch.cuda.reset_peak_memory_stats(gpu)
    if not gpus and sys.platform == "linux":
        with suppress(OSError):  # where it may not be written, the peak is that of all runs
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_bytes(device: str | None) -> int:
    """The most memory since the run began: of tensors, on all GPUs together, or of the process on
    the CPU. On Windows it is the most since the process began, elsewhere what it has now."""
    import torch

    if gpus := _gpus(device):
        return sum(map(torch.cuda.max_memory_allocated, gpus))
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    memory = psutil.Process().memory_info()
    return 1024 * int(peak[1]) if peak else getattr(memory, "peak_wset", memory.rss)
