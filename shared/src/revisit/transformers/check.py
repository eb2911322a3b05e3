"""The parts that ReVisiT finds in a model, and whether its decoding is exact."""

import math
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from revisit.config import ReVisiTConfig
from revisit.core.head import LMHead
from revisit.core.trace import TraceStep
from revisit.transformers.enable import attach
from revisit.transformers.model_parts import Model, is_tied, output_embeddings, text_config
from revisit.transformers.processor import ReVisiTLogitsProcessor
from revisit.transformers.vision_positions import vision_token_fields, vision_token_ids

ALPHA = 1e-3
STEPS = 4

_GREEDY: dict[str, Any] = {
    "max_new_tokens": STEPS,
    "do_sample": False,
    "num_beams": 1,
    "return_dict_in_generate": True,
}
# Nats by which a divergence or a score may differ, and the relative error of a logit.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}
_HALF_ROUNDING = 5e-2


def check(model: Model, layers: str, vision_mask: Tensor | None = None) -> str:
    """Compare a greedy generation of ReVisiT with the dense computation in float64.

    The computation reads the hidden states and logits that Transformers itself reports, and forms
    the logits of every vision token on the whole vocabulary, without ReVisiT's code.
    The prompt is a row of ordinary tokens among which the model's vision token ids stand; no image
    is read.

    Args:
        layers: as `ReVisiTConfig.layers`.
        vision_mask: (1, prompt length) bool, where the config names no vision token id.

    Returns:
        a line that says "exact", how the logits are scaled or capped, and the largest difference.

    Raises:
        ValueError: ReVisiT refuses the model (its message says what to pass), or differs.
    """
    inputs = prompt(model)
    config = ReVisiTConfig(layers=layers, alpha=ALPHA, trace=True)  # type: ignore[arg-type]
    with attach(model, config) as run:
        mask = {} if vision_mask is None else {"vision_mask": vision_mask}
        output = model.generate(**inputs, **_GREEDY, **mask, output_scores=True)
        (trace,) = run.trace or [[]]
    head: LMHead = run.latest.head
    tokens = [int(scores.argmax()) for scores in output.scores]
    states, logits = _reported(model, inputs, tokens)
    if vision_mask is None:
        ids = torch.tensor(vision_token_ids(model.config), device=model.device)
        vision_mask = torch.isin(inputs["input_ids"], ids)
    vision = torch.cat([states[layer][vision_mask[0]] for layer in run.layers])
    rounding = _ROUNDING.get(head.weight.dtype, _HALF_ROUNDING)
    final = _project(head, states[-1][-1:])[0]
    _compare("the model's logits", final, logits[0], rounding * float(logits[0].abs().max()))
    projected = _project(head, vision)
    worst = 0.0
    for number, (scores, step, z) in enumerate(zip(output.scores, trace, logits, strict=True), 1):
        name = f"step {number}"
        expected = _expected(name, step, z, projected, run.layers, rounding)
        worst = max(worst, _compare(name, scores[0].double(), expected, 20 * rounding))
    finish = [f"scaled by {head.scale:g}"] if head.scale != 1 else []
    finish += [f"capped at {head.softcap:g}"] if head.softcap is not None else []
    done = f"{', '.join(finish) or 'no scale or cap'}; {len(tokens)} tokens"
    return f"exact ({done}), scores within {worst:.1e} of float64's"


def _expected(
    name: str,
    step: TraceStep,
    logits: Tensor,
    projected: Tensor,
    layers: tuple[int, ...],
    rounding: float,
) -> Tensor:
    """log p + log q (V,) of the step's vision token, -inf outside V_cons.

    Raises:
        ValueError: another vision token diverges less.
    """
    log_p = logits.log_softmax(0)
    vocabulary = log_p >= log_p.max() + math.log(ALPHA)
    log_p = log_p[vocabulary].log_softmax(0)
    log_q = projected[:, vocabulary].log_softmax(1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    distances = (log_m.exp() * (log_m - (log_p + log_q) / 2)).sum(1)
    tokens = len(projected) // len(layers)
    choice = layers.index(step.layer) * tokens + step.vision_token
    if not distances[choice] <= distances.min() + rounding:
        raise ValueError(
            f"{name}: ReVisiT chose vision token {step.vision_token} of layer {step.layer}, which "
            f"diverges by {distances[choice]:.6f} nats; the least is {distances.min():.6f}, of "
            f"vision state {int(distances.argmin())}"
        )
    return torch.full_like(logits, -math.inf).masked_scatter(vocabulary, log_p + log_q[choice])


def _compare(name: str, scores: Tensor, expected: Tensor, allowed: float) -> float:
    """The largest difference, where both are possible."""
    unmasked = expected.isfinite() & (expected > torch.finfo(torch.float32).min / 2)
    off = float((scores - expected)[unmasked].abs().max())
    if not off <= allowed:
        raise ValueError(f"{name}: off by {off:.3g}, more than rounding's {allowed:.1g}")
    return off


def prompt(model: Model) -> dict[str, Tensor]:
    """A prompt of ordinary tokens, the model's vision token ids among them."""
    ids = vision_token_ids(model.config)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator("cpu").manual_seed(0)
    words = torch.randint(vocabulary, (24,), generator=generator, device="cpu")
    others = [word for word in words.tolist() if word not in ids]
    tokens = [*others[:4], *ids[:1] * 6, *others[4:12]]
    input_ids = torch.tensor([tokens], device=model.device)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def _project(head: LMHead, states: Tensor) -> Tensor:
    """The logits (b, V) float64 of hidden states (b, d)."""
    product = states @ head.weight.double().T
    if head.bias is not None:
        product = product + head.bias.double()
    product = product * head.scale
    return product if head.softcap is None else (product / head.softcap).tanh() * head.softcap


@torch.no_grad()
def _reported(
    model: Model, inputs: dict[str, Tensor], tokens: list[int]
) -> tuple[list[Tensor], Tensor]:
    """The prompt's hidden states, (S, d) each, and the logits (steps, V) before each token."""
    forced = iter(tokens)
    output = model.generate(
        **inputs,
        **_GREEDY,
        output_hidden_states=True,
        output_logits=True,
        prefix_allowed_tokens_fn=lambda _row, _ids: [next(forced)],
    )
    states = [state[0].double() for state in output.hidden_states[0]]
    return states, torch.cat(output.logits).double()


def describe(model: Model) -> dict[str, str]:
    """The model's parts as ReVisiT finds them before anything is generated.

    Raises:
        ValueError: the decoder or LM head cannot be found; the message says what to pass.
    """
    processor = ReVisiTLogitsProcessor(model)
    decoder, head = processor.decoder, output_embeddings(model)
    names = {module: name or "the model itself" for name, module in model.named_modules()}
    of_config = text_config(model.config).num_hidden_layers
    tied = "tied to" if is_tied(model) else "apart from"
    head_name = "none" if head is None else names[head]
    shape = tuple(processor.head().weight.shape)
    ids = [f"{name} {value}" for name, value in vision_token_fields(model.config).items()]
    return {
        "model": f"{type(model).__name__}, Transformers {transformers.__version__}",
        "decoder": f"{names[decoder.module]} ({type(decoder.module).__name__})",
        "layers": f"{len(decoder.layers)} of {of_config} in its config",
        "LM head": f"{head_name}, {shape}, {tied} the embedding",
        "vision tokens": ", ".join(ids) or "no id in the config: pass vision_mask to generate",
    }


def load(name: str, *, random: bool, trust_remote_code: bool) -> Model:
    """The model of a folder or hub id; with `random`, from its config alone.

    Raises:
        OSError: it is not there.
        ValueError: no class of Transformers is for its config, or it brings code and
            `trust_remote_code` is not set.
    """
    config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    auto = _auto_class(config)
    if not random:
        loaded = auto.from_pretrained(
            name, trust_remote_code=trust_remote_code, torch_dtype="auto", low_cpu_mem_usage=True
        )
        return loaded.eval()
    model = auto.from_config(config, trust_remote_code=trust_remote_code).float()
    return _randomize(model).eval()


def _auto_class(config: Any) -> Any:
    seeing = getattr(transformers, "AutoModelForImageTextToText", None)
    brought = getattr(config, "auto_map", None) or {}
    if seeing is not None and (type(config) in seeing._model_mapping or seeing.__name__ in brought):
        return seeing
    return AutoModelForCausalLM


@torch.no_grad()
def _randomize(model: Model) -> Model:
    """Weights that keep states near 1, and logits large enough to show a cap or scale."""
    generator = torch.Generator("cpu").manual_seed(0)
    for _, weight in sorted(model.named_parameters()):
        if weight.ndim > 1:
            size = weight.shape[1:].numel() ** -0.5
            values = torch.randn(weight.shape, generator=generator, device="cpu")
            weight.copy_(values * size)
    head = output_embeddings(model)
    if isinstance(head, nn.Module) and isinstance(head.weight, Tensor):
        head.weight.mul_(8)
    return model


def inspect(model: Model) -> tuple[dict[str, str], bool]:
    """The parts that are found, by name, and whether ReVisiT is exact for `"last"` and `"all"`."""
    try:
        found = describe(model)
    except ValueError as error:
        return {"refused": str(error)}, False
    exact = True
    for layers in ("last", "all"):
        try:
            found[layers] = check(model, layers)
        except ValueError as error:
            found[layers] = f"not exact: {error}"
            exact = False
    return found, exact
