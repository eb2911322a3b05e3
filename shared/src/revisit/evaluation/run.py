"""One evaluation as plain data: what is evaluated, how it decodes, where it runs and writes.

A command turns its flags into a `Run`; nothing else sees flags::

    run = Run(
        model_path="Qwen/Qwen2.5-VL-7B-Instruct",
        benchmark=Pope(data_path=Path("val2014"), pope_path=Path("pope")),
        decoder=VCDConfig(alpha=Number("0.50")),  # None is greedy decoding
        generation=Generation(max_new_tokens=64),
        place=Place(batch_size=8).settled(gpus=1, gpu_dtype="auto", process=process),
        process=process,  # this_process(os.environ)
    )
    run = run.writing_to(output_path=None, results=Path("results"))  # results/pope-vcd-0.50-...

The fields of `Generation`, `Place`, a `Benchmark` and a `DecoderConfig` are the flags: names,
types, defaults, and help in the docstrings. What is out of range raises when an object is made.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from revisit.config import OTHERS, PUBLISHED, DecoderConfig, ReVisiTConfig
from revisit.evaluation import EvaluationError
from revisit.evaluation.benchmarks.benchmark import Benchmark
from revisit.evaluation.benchmarks.checks import check_whole
from revisit.evaluation.process import Process

Dtype = Literal["auto", "float32", "float16", "bfloat16"]

FLAGS = {setting: flag for flag, setting in PUBLISHED.items()}
"""The settings of `ReVisiTConfig` -> their published names, which records have too."""

DECODERS: dict[str, type[Any] | None] = {"greedy": None, "revisit": ReVisiTConfig, **OTHERS}
"""The decoders by their names in flags and records."""

_ALWAYS_NAMED = ("layers", "alpha", "divergence")  # of ReVisiT's settings; others if not default


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How an answer is generated, by any decoder.

    Args:
        max_new_tokens: longest answer.
        do_sample: sample tokens.
        temperature: of sampling, above 0.
        top_p: of sampling, in ]0, 1]; 1 is off.
        top_k: of sampling; 0 is off.
        num_beams: above 1, beam search.
        repetition_penalty: above 0; 1 is off (default: what the checkpoint's
            generation_config.json says).

    Raises:
        EvaluationError: a setting is out of its range.
    """

    max_new_tokens: int = 512
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    num_beams: int = 1
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("top_k", 0), ("num_beams", 1)):
            check_whole(name, getattr(self, name), least)
        for name, most in (
            ("temperature", math.inf),
            ("top_p", 1),
            ("repetition_penalty", math.inf),
        ):
            value = getattr(self, name)
            if value is not None and not (0 < value <= most and math.isfinite(value)):
                raise EvaluationError(f"--{name} {value}: say a number in ]0, {most}]")

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `model.generate` of any release; records keep them.

        Always `max_new_tokens, do_sample, num_beams`; `repetition_penalty` unless None; with
        sampling also `temperature, top_p, top_k`.
        """
        names = ["max_new_tokens", "do_sample", "num_beams"]
        names += ["repetition_penalty"] if self.repetition_penalty is not None else []
        names += ["temperature", "top_p", "top_k"] if self.do_sample else []
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the model runs.

    Args:
        engine: Transformers, vLLM in this process, or a server that speaks OpenAI's protocol, such
            as `vllm serve`, where the model is the server's name for it.
        base_url: of the server, as http://localhost:8000/v1; for the engine openai.
        batch_size: how many tasks are answered at once.
        device: cpu, cuda, cuda:N, or auto to spread the model over the GPUs (default: the first
            GPU, or the CPU where there is none; each of several processes takes another GPU).
        dtype: of the weights; auto is the one that the checkpoint's config.json names (default: the
            family's on a GPU, float32 on the CPU).

    Raises:
        EvaluationError: settings that do not fit together.
    """

    engine: Literal["transformers", "vllm", "openai"] = "transformers"
    base_url: str | None = None
    batch_size: int = 1
    device: str | None = None
    dtype: Dtype | None = None

    def __post_init__(self) -> None:
        check_whole("batch_size", self.batch_size, 1)
        if (self.engine == "openai") != (self.base_url is not None):
            raise EvaluationError("--base_url and --engine openai: one needs the other")

    def settled(self, *, gpus: int, gpu_dtype: Dtype, process: Process) -> "Place":
        """The same with the device and dtype that will be used, in place of None.

        The dtype may be "auto"; it stays None for a server, which has loaded its model.

        Args:
            gpus: how many there are.
            gpu_dtype: the default dtype on a GPU.

        Raises:
            EvaluationError: there is no such device, or not for several processes.
        """
        device = self.device or ("cuda" if gpus else "cpu")
        if process.world_size > 1 and device == "cuda":
            device = f"cuda:{process.local_rank}"
        if process.world_size > 1 and device == "auto":
            raise EvaluationError(
                "--device auto spreads one model over all GPUs, and there are several processes: "
                "give each a GPU (leave out --device), or start one process"
            )
        devices = ["cpu", "auto"]
        if gpus:
            devices += ["cuda", *(f"cuda:{index}" for index in range(gpus))]
        if device not in devices:
            raise EvaluationError(
                f"--device {device}: PyTorch finds no such device here, only {', '.join(devices)}"
            )
        if self.engine == "openai":
            if self.dtype is not None:
                raise EvaluationError("--dtype: the server has loaded its model; leave it out")
            return replace(self, device=device)
        dtype = self.dtype or (gpu_dtype if gpus and device != "cpu" else "float32")
        return replace(self, device=device, dtype=dtype)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A model, what it is asked, how it answers, and where the answers go.

    Args:
        model_path: folder of the model, its hub id, or its name on a server.
        benchmark: what is asked, and its data.
        decoder: None is greedy decoding (with sampling or beams: the model's own scores).
        generation: how an answer is generated.
        place: where the model runs.
        process: which of several processes this is.
        seed: of the sample of images and of sampling.
        output_path: the folder of the answers, or one file; see `writing_to`.

    Raises:
        EvaluationError: a seed below 0.
    """

    model_path: str
    benchmark: Benchmark
    decoder: DecoderConfig | None = None
    generation: Generation = field(default_factory=Generation)
    place: Place = field(default_factory=Place)
    process: Process = field(default_factory=Process)
    seed: int = 42
    output_path: Path = Path("results")

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0)

    def writing_to(self, output_path: Path | None, results: Path | None = None) -> "Run":
        """The same run with an `output_path`; None names a folder by the settings.

        Args:
            results: the folder that gets that folder; None is one of the model's name in results/
                of the working folder.
        """
        if output_path is None:
            model = Path("results") / Path(self.model_path).resolve().name
            output_path = (results or model) / self.folder_name()
        return replace(self, output_path=output_path)

    def folder_name(self) -> str:
        """The name of the folder of the run's answers: benchmark, decoder, settings, seed."""
        return f"{self.benchmark.prefix}{decoder_slug(self.decoder)}-seed{self.seed}"


def decoder_name(decoder: DecoderConfig | None) -> str:
    """The name of a decoder, as in `DECODERS`."""
    kinds = {kind: name for name, kind in DECODERS.items()}
    return kinds[None if decoder is None else type(decoder)]


def decoder_slug(decoder: DecoderConfig | None) -> str:
    """A decoder and its settings in the name of a folder: `revisit-last-1e-5-ag`."""
    if decoder is None:
        return "plain"
    return "-".join([decoder_name(decoder), *map(_slug, _named(decoder).values())])


def decoder_settings(decoder: DecoderConfig | None) -> dict[str, Any]:
    """A decoder's settings as records have them; the forks' `generate` takes ReVisiT's."""
    if decoder is None:
        return {}
    named = {key: list(v) if isinstance(v, tuple) else v for key, v in _named(decoder).items()}
    if isinstance(decoder, ReVisiTConfig):
        return {"use_revisit": True} | {FLAGS[key]: value for key, value in named.items()}
    name = decoder_name(decoder)
    return {"decoder": name} | {f"{name}_{key}": value for key, value in named.items()}


def _named(decoder: DecoderConfig) -> dict[str, Any]:
    """The settings that records and folders name: some of ReVisiT's only where not default."""
    return {
        each.name: getattr(decoder, each.name)
        for each in fields(decoder)
        if not isinstance(decoder, ReVisiTConfig)
        or each.name in _ALWAYS_NAMED
        or (each.name in FLAGS and getattr(decoder, each.name) != each.default)
    }


def _slug(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "-".join(map(str, value))
    text = str(value).replace("e-0", "e-")
    plain = re.fullmatch(r"[\w.+-]+", text)
    return text if plain else hashlib.sha256(text.encode()).hexdigest()[:8]  # a sentence
