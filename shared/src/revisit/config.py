"""The settings of ReVisiT, checked when they are made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Divergence = Literal["ag", "js"]
Selection = Literal["min", "max", "random"]
NoVision = Literal["error", "plain"]
NamedLayers = Literal["last", "all", "low", "high"]

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
        seed: of `selection="random"`. Each prompt draws from a generator of its own, which follows
            from the seed and from how many prompts were decoded before it.
        no_vision: what a prompt without a vision token gets: an error, or plain decoding.
        cache_bytes: upper bound in bytes of the vision-token logits that a generation keeps. Past
            it those not used for longest are computed again when needed, with the same result.
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
        if not isinstance(self.alpha, int | float) or not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha (relative_top) must be in [0, 1], got {self.alpha!r}")
        for name, allowed in (
            ("divergence", get_args(Divergence)),
            ("selection", get_args(Selection)),
            ("no_vision", get_args(NoVision)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if not isinstance(self.seed, int):
            raise ValueError(f"seed must be an integer, got {self.seed!r}")
        if not isinstance(self.cache_bytes, int) or self.cache_bytes < 0:
            raise ValueError(f"cache_bytes must be an integer >= 0, got {self.cache_bytes!r}")


def from_published(**flags: Any) -> ReVisiTConfig:
    """The settings that flags of the published names (`PUBLISHED`) give; the rest are defaults.

    Raises:
        ValueError: a setting is outside its range.
        TypeError: a name is not in `PUBLISHED`.
    """
    if unknown := sorted(flags.keys() - PUBLISHED.keys()):
        raise TypeError(f"no published settings: {unknown}; there are {sorted(PUBLISHED)}")
    return ReVisiTConfig(**{PUBLISHED[name]: value for name, value in flags.items()})


def _layers(layers: object) -> str | tuple[int, ...]:
    named = get_args(NamedLayers)
    if isinstance(layers, str):
        if layers not in named:
            raise ValueError(f"layers must be one of {named} or a list of ints, got {layers!r}")
        return layers
    if not isinstance(layers, Sequence) or not all(type(layer) is int for layer in layers):
        raise ValueError(f"layers must be one of {named} or a list of ints, got {layers!r}")
    if not layers:
        raise ValueError("layers is empty: name at least one hidden state, e.g. layers='last'")
    return tuple(layers)
