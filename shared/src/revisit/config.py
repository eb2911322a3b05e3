"""The settings of ReVisiT and of the other decoders, checked when they are made."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, get_args

Divergence = Literal["ag", "js"]
Selection = Literal["min", "max", "random"]
NoVision = Literal["error", "plain"]
NamedLayers = Literal["last", "all", "low", "high"]
PublishedLayers = Literal["published"]

PUBLISHED = {
    "early_exit_layers": "layers",
    "relative_top": "alpha",
    "revisit_divergence": "divergence",
    "revisit_selection": "selection",
    "revisit_seed": "seed",
    "revisit_no_vision": "no_vision",
    "revisit_trace": "trace",
}
"""The names of flags and of the forks' `generate` -> the settings of `ReVisiTConfig`."""


class Number(float):
    """A number that shows as it was written, `0.10` or `1e-5`: it names the folder of a run."""

    def __new__(cls, text: str | float) -> "Number":
        number = super().__new__(cls, text)
        number.text = str(text).strip()
        return number

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class ReVisiTConfig:
    """How ReVisiT decodes.

    Args:
        layers: which hidden states of the vision tokens are compared (the published
            `early_exit_layers`): `"last"`, `"all"`, `"low"`, `"high"`, or a list of indices as
            Transformers counts `hidden_states`: 0 is the embedding, n the output after the final
            norm.
        alpha: in [0, 1] (the published `relative_top`). V_cons keeps the tokens whose probability
            is at least alpha times the largest; 0 keeps the whole vocabulary.
        divergence: `"ag"`, the arithmetic-geometric divergence that the published implementation
            computes and its tables were made with, or `"js"`, the Jensen-Shannon divergence that
            the paper's text names. The two choose different vision tokens now and then.
        selection: `"min"` takes the vision token that diverges least; `"max"` and `"random"` are
            the paper's ablations.
        seed: of `selection="random"`. Each prompt has a separate generator, which follows
            from the seed and from how many prompts were decoded before it.
        no_vision: what a prompt without a vision token gets: an error, or plain decoding.
        cache_bytes: upper bound in bytes of the vision-token logits that a generation keeps. Past
            it, the least recently used logits are computed again when needed, with the same result.
        trace: keep, for each step, which vision token was chosen (see `revisit.core.trace`).

    Raises:
        ValueError: a setting is outside its range; the message names it and the range.
    """

    layers: NamedLayers | Sequence[int] = "last"
    alpha: float = 1e-5
    divergence: Divergence = "ag"
    selection: Selection = "min"
    seed: int = 0
    no_vision: NoVision = "error"
    cache_bytes: int = 128 * 2**20
    trace: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _layers(self.layers))
        _check_share("alpha (relative_top)", self.alpha)
        for name, allowed in (
            ("divergence", get_args(Divergence)),
            ("selection", get_args(Selection)),
            ("no_vision", get_args(NoVision)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        _check_seed(self.seed)
        _check_whole("cache_bytes", self.cache_bytes, least=0)


@dataclass(frozen=True)
class VCDConfig:
    """How VCD decodes (`revisit.decoders.vcd` has its formula).

    Args:
        alpha: >= 0, the weight of the difference to the logits for the image with noise; 0 is none.
        beta: in [0, 1]: tokens less than beta times as probable as the likeliest are left out.
        noise_step: 0 to 999, how much noise the second image has.
        seed: of the noise.

    Raises:
        ValueError: a setting is outside its range.
    """

    alpha: float = 1.0
    beta: float = 0.1
    noise_step: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        _check_weight("alpha", self.alpha)
        _check_share("beta", self.beta)
        _check_whole("noise_step", self.noise_step, least=0, most=999)
        _check_seed(self.seed)


@dataclass(frozen=True)
class RITUALConfig:
    """How RITUAL decodes (`revisit.decoders.ritual` has its formula).

    `generate` takes the second image's inputs, `second_inputs`, which the model's processor makes
    from `revisit.decoders.transformations.second_image(image, seed)`.

    Args:
        alpha: >= 0, the weight of the logits for the transformed image.
        beta: in [0, 1]: tokens less than beta times as probable as the likeliest are left out.
        seed: of the transformations, for the code that makes the second images.

    Raises:
        ValueError: a setting is outside its range.
    """

    alpha: float = 3.0
    beta: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        _check_weight("alpha", self.alpha)
        _check_share("beta", self.beta)
        _check_seed(self.seed)


@dataclass(frozen=True)
class M3IDConfig:
    """How M3ID decodes (`revisit.decoders.m3id` has its formula).

    Args:
        gamma: >= 0, how fast the model forgets the image; 0 corrects nothing.
        beta: in [0, 1]: tokens less than beta times as probable as the likeliest are left out.

    Raises:
        ValueError: a setting is outside its range.
    """

    gamma: float = 0.02
    beta: float = 0.1

    def __post_init__(self) -> None:
        _check_weight("gamma", self.gamma)
        _check_share("beta", self.beta)


@dataclass(frozen=True)
class DoLaConfig:
    """How DoLa decodes (`revisit.decoders.dola` has its formula).

    Args:
        layers: the candidates, as `ReVisiTConfig` names layers. The last hidden state, with which
            they are compared, is no candidate: "low" and "high" leave it out.
        relative_top: in [0, 1]: tokens less than relative_top times as probable as the likeliest
            are left out.

    Raises:
        ValueError: a setting is outside its range.
    """

    layers: NamedLayers | Sequence[int] = "low"
    relative_top: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _layers(self.layers))
        if self.layers == "last":
            raise ValueError("layers='last' is what DoLa's candidates are held against: say 'low'")
        _check_share("relative_top", self.relative_top)


@dataclass(frozen=True)
class CODEConfig:
    """How CODE decodes (`revisit.decoders.code` has its formula).

    `generate` takes the prompts with a description in place of their images, `second_inputs`, made
    by `revisit.transformers.other_prompts.described`.

    Args:
        k: >= 0, the power of a difference of probabilities in the divergence; 0 gives greedy's
            tokens.
        description: the text in place of the image; by default the model describes the image.

    Raises:
        ValueError: a setting is outside its range.
    """

    k: float = 0.7
    description: str | None = None

    def __post_init__(self) -> None:
        _check_weight("k", self.k)
        if self.description is not None:
            _check_text("description", self.description)


@dataclass(frozen=True)
class ICDConfig:
    """How ICD decodes (`revisit.decoders.icd` has its formula).

    `generate` takes the prompts with the instruction as their system message, `second_inputs`, made
    by `revisit.transformers.other_prompts.instructed`.

    Args:
        alpha: >= 0, the weight of the difference to the logits with the instruction; 0 is none.
        beta: in [0, 1]: tokens less than beta times as probable as the likeliest are left out.
        prefix: the disturbing instruction, which takes the place of the system message.

    Raises:
        ValueError: a setting is outside its range.
    """

    alpha: float = 1.0
    beta: float = 0.1
    prefix: str = (
        "You are a confused objects detector to provide a fuzzy overview or impression of the "
        "image."
    )

    def __post_init__(self) -> None:
        _check_weight("alpha", self.alpha)
        _check_share("beta", self.beta)
        _check_text("prefix", self.prefix)


@dataclass(frozen=True)
class DeCoConfig:
    """How DeCo decodes (`revisit.decoders.deco` has its formula).

    Args:
        alpha: >= 0, the weight of the chosen layer's logits.
        top_p: in [0, 1]: the candidates are the likeliest tokens whose sum is this probability.
        top_k: >= 1, how many candidates there are at most.
        layers: indices of hidden states below the last one, or "published": 20 to 28 of 32 layers,
            scaled to the model's number.

    Raises:
        ValueError: a setting is outside its range.
    """

    alpha: float = 0.6
    top_p: float = 0.9
    top_k: int = 20
    layers: PublishedLayers | Sequence[int] = "published"

    def __post_init__(self) -> None:
        _check_weight("alpha", self.alpha)
        _check_share("top_p", self.top_p)
        _check_whole("top_k", self.top_k, least=1)
        object.__setattr__(self, "layers", _layers(self.layers, get_args(PublishedLayers)))


@dataclass(frozen=True)
class VISTAConfig:
    """How VISTA decodes (`revisit.decoders.vista` has its formulas).

    Args:
        weight: in [0, 1], the share of inner layers in the logits; 0 is none.
        layers: indices of hidden states below the last one, or "published": 26 to 31 of 32 layers,
            scaled to the model's number.
        steering: >= 0, how far each MLP's output is turned towards the image; 0 is not at all.

    Raises:
        ValueError: a setting is outside its range.
    """

    weight: float = 0.3
    layers: PublishedLayers | Sequence[int] = "published"
    steering: float = 0.17

    def __post_init__(self) -> None:
        _check_share("weight", self.weight)
        object.__setattr__(self, "layers", _layers(self.layers, get_args(PublishedLayers)))
        _check_weight("steering", self.steering)


@dataclass(frozen=True)
class PAIConfig:
    """How PAI decodes (`revisit.decoders.pai` has its formulas).

    Args:
        gamma: >= 0, the weight of the model's log-probabilities; those without the image have the
            weight 1 - gamma.
        alpha: >= 0, how much the last position's attention to the image is raised; 0 is not at all.
        beta: in [0, 1]: tokens less than beta times as probable as the likeliest are left out.

    Raises:
        ValueError: a setting is outside its range.
    """

    gamma: float = 1.1
    alpha: float = 0.2
    beta: float = 0.1

    def __post_init__(self) -> None:
        _check_weight("gamma", self.gamma)
        _check_weight("alpha", self.alpha)
        _check_share("beta", self.beta)


@dataclass(frozen=True)
class SIDConfig:
    """How SID decodes (`revisit.decoders.sid` has its formulas).

    Args:
        alpha: >= 0, the weight of the difference to the logits of the second stream; 0 is none.
        beta: in [0, 1]: tokens less than beta times as probable as the likeliest are left out.
        layer: 1 to 31, of 32 layers counted from 0; scaled to the model's number. From this layer
            on, the second stream sees few vision tokens; the layer before it chooses them.
        rank: >= 0, how many vision tokens these layers see: the least attended ones.

    Raises:
        ValueError: a setting is outside its range.
    """

    alpha: float = 0.5
    beta: float = 0.1
    layer: int = 2
    rank: int = 100

    def __post_init__(self) -> None:
        _check_weight("alpha", self.alpha)
        _check_share("beta", self.beta)
        _check_whole("layer", self.layer, least=1, most=31)
        _check_whole("rank", self.rank, least=0)


OtherConfig = (
    VCDConfig
    | RITUALConfig
    | M3IDConfig
    | DoLaConfig
    | CODEConfig
    | ICDConfig
    | DeCoConfig
    | VISTAConfig
    | PAIConfig
    | SIDConfig
)
DecoderConfig = ReVisiTConfig | OtherConfig

OTHERS: dict[str, type[OtherConfig]] = {
    "vcd": VCDConfig,
    "ritual": RITUALConfig,
    "m3id": M3IDConfig,
    "dola": DoLaConfig,
    "code": CODEConfig,
    "icd": ICDConfig,
    "deco": DeCoConfig,
    "vista": VISTAConfig,
    "pai": PAIConfig,
    "sid": SIDConfig,
}
"""The decoders beside ReVisiT, as flags name them, and their settings."""


def from_published(**flags: Any) -> ReVisiTConfig:
    """The settings that flags of the published names (`PUBLISHED`) give; the rest are defaults.

    Raises:
        ValueError: a setting is outside its range.
        TypeError: a name is not in `PUBLISHED`.
    """
    if unknown := sorted(flags.keys() - PUBLISHED.keys()):
        raise TypeError(f"no published settings: {unknown}; there are {sorted(PUBLISHED)}")
    return ReVisiTConfig(**{PUBLISHED[name]: value for name, value in flags.items()})


def _check_share(name: str, value: object) -> None:
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value!r}")


def _check_weight(name: str, value: object) -> None:
    if not _is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")


def _check_whole(name: str, value: object, least: int, most: float = math.inf) -> None:
    if type(value) is not int or not least <= value <= most:
        allowed = f">= {least}" if most == math.inf else f"in {least}..{most}"
        raise ValueError(f"{name} must be an integer {allowed}, got {value!r}")


def _is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a number; Python's True would pass for 1."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_seed(seed: object) -> None:
    if type(seed) is not int:
        raise ValueError(f"seed must be an integer, got {seed!r}")


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be a text, got {value!r}")


def _layers(
    layers: object, named: tuple[str, ...] = get_args(NamedLayers)
) -> str | tuple[int, ...]:
    if isinstance(layers, str):
        if layers not in named:
            raise ValueError(f"layers must be one of {named} or a list of ints, got {layers!r}")
        return layers
    if not isinstance(layers, Sequence) or not all(type(layer) is int for layer in layers):
        raise ValueError(f"layers must be one of {named} or a list of ints, got {layers!r}")
    if not layers:
        raise ValueError(f"layers is empty: name a hidden state, or layers={named[0]!r}")
    return tuple(layers)
