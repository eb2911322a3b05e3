"""The parts of a model that ReVisiT reads: its text decoder, its layers, its LM head."""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from revisit.core.head import LMHead

# A causal language model of Transformers: an nn.Module with its family's attributes.
Model = Any

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Relative error of a logit: the product in the model's dtype, summed in another order.
_ROUNDING = {torch.float64: 1e-4, torch.float32: 1e-3}
_HALF_ROUNDING = 5e-2

# Rounding spreads to both sides and a scale does not: over many tokens it shows much sooner.
_SCALE_ROUNDING = 5e-3

# The fields of configs for a number that multiplies, divides or caps the model's logits.
_SCALES = (
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
    "logits_mup_width_multiplier",
)
_CAPS = ("final_logit_softcapping", "output_logit_soft_cap", "logits_soft_cap")


class Decoder(NamedTuple):
    """The module whose output the LM head reads, and its layers in order."""

    module: nn.Module
    layers: nn.ModuleList

    @property
    def reports_outputs(self) -> bool:
        """Whether Transformers reports the output of layer k - 1 as hidden state k.

        Older code reports the input of layer k. The two differ where the decoder adds something
        in between, as Qwen3-VL adds visual features of early layers.
        """
        return "hidden_states" in self._recorded

    @property
    def depth(self) -> int:
        """n, how many layers a pass calls: more than there are where its config says it loops."""
        key = getattr(self._recorded.get("hidden_states"), "num_hidden_layers_key", None)
        if key in (None, "num_hidden_layers"):
            return len(self.layers)
        return int(getattr(self.module.config, key))

    @property
    def _recorded(self) -> dict[str, Any]:
        return getattr(self.module, "_can_record_outputs", None) or {}


def text_decoder(model: Model) -> Decoder:
    """The innermost module that holds both the input embedding and the decoder layers.

    The layers are a list as long as the text config's `num_hidden_layers`; a vision tower's list is
    not taken for it, since no input embedding is beside it.

    Raises:
        ValueError: there is none; the message says what to pass.
    """
    text = text_config(model.config)
    if any(getattr(config, "is_encoder_decoder", False) for config in (model.config, text)):
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder: its decoder's prompt holds no vision "
            "tokens, so ReVisiT has none to select"
        )
    count = getattr(text, "num_hidden_layers", None)
    for module in _around(model, model.get_input_embeddings()):
        # Before the rest: nothing that a caller could pass would help.
        _refuse_cross_attention(model, module)
        for child in module.children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return Decoder(module, child)
    raise ValueError(
        f"cannot find the text decoder of {type(model).__name__}: no module holds both its "
        f"input embedding and a list of {count} layers. Pass decoder, the module that does"
    )


def final_norm(decoder: Decoder, name: str) -> nn.Module:
    """The norm after the last layer, the last one among the decoder's parts.

    Raises ValueError where there is none; `name` is the decoding method that needs it.
    """
    norms = [part for part in decoder.module.children() if "norm" in type(part).__name__.lower()]
    if not norms:
        raise ValueError(
            f"{name} reads hidden states through the final norm, and "
            f"{type(decoder.module).__name__} has none among its parts"
        )
    return norms[-1]


def text_config(config: Any) -> Any:
    """The text decoder's config: a part of the model's, or all of it."""
    if hasattr(config, "get_text_config"):  # from Transformers 4.45 on
        return config.get_text_config(decoder=True)
    return getattr(config, "text_config", config)


def decoder_of(model: Model, module: nn.Module) -> Decoder:
    """The decoder that a caller passes; raises ValueError unless it has one list of layers."""
    lists = [child for child in module.children() if isinstance(child, nn.ModuleList)]
    if len(lists) != 1:
        raise ValueError(
            f"decoder must hold its layers in one nn.ModuleList, {type(module).__name__} holds "
            f"{len(lists)}"
        )
    _refuse_cross_attention(model, module)
    return Decoder(module, lists[0])


def _around(model: Model, part: nn.Module | None) -> list[nn.Module]:
    """The modules of the model that hold `part`, innermost first; the model itself comes last."""
    for name, module in model.named_modules():
        if module is part and name:
            outer = name.split(".")[:-1]
            return [model.get_submodule(".".join(outer[:end])) for end in range(len(outer), -1, -1)]
    return [model]


def _refuse_cross_attention(model: Model, decoder: nn.Module) -> None:
    for path, part in decoder.named_modules():
        for name in (type(part).__name__, path.rpartition(".")[2]):
            if "crossatt" in name.lower().replace("_", ""):
                raise ValueError(
                    f"{type(model).__name__} reads its images by cross-attention "
                    f"({name}): its prompt holds no vision tokens to revisit"
                )


def output_embeddings(model: Model) -> nn.Module | None:
    """The LM head's module, of the model or of the language model inside it."""
    parts = (part for part in model.modules() if hasattr(part, "get_output_embeddings"))
    heads = (part.get_output_embeddings() for part in parts)
    return next((head for head in heads if head is not None), None)


def lm_head(model: Model) -> LMHead:
    """The LM head's weight (V, d) and bias; `calibrated` finds a scale or cap after it.

    A parametrized weight is the one that its parametrizations give, a wrapped layer's (PEFT,
    `torch.compile`) that of the layer which is used.

    Raises:
        ValueError: the model has none, its weights are not in memory as floating point, or it does
            more than multiply by them.
    """
    head = _unwrapped(output_embeddings(model))
    weight: Any = getattr(head, "weight", None)
    if not _readable(weight) or weight.ndim != 2:
        raise ValueError(
            f"the LM head of {type(model).__name__} has no floating-point weight in memory, which "
            "ReVisiT projects the vision tokens with. Keep it out of quantization and of "
            "offloading, or pass lm_head=revisit.LMHead(weight, bias)"
        )
    if more := _beyond_its_weight(head):
        raise ValueError(
            f"the logits of {type(model).__name__} are not its LM head's product with a weight "
            f"alone: the head {more}. Pass lm_head=revisit.LMHead(weight, bias) that gives the "
            "same logits, or take that off (an adapter: merge it)"
        )
    bias = getattr(head, "bias", None)
    return LMHead(weight.detach(), None if bias is None else bias.detach())


def _unwrapped(head: Any) -> Any:
    """The layer that gives the logits, inside wrappers that add nothing to it now."""
    if head is None or _has_hooks(head):
        return head
    if hasattr(head, "_orig_mod"):  # torch.compile's
        return _unwrapped(head._orig_mod)
    if isinstance(copies := getattr(head, "modules_to_save", None), nn.ModuleDict):  # PEFT's
        active = head.active_adapter
        name = active[0] if active and isinstance(active, list) else active
        used = name in copies and not head.disable_adapters
        return _unwrapped(copies[name] if used else head.original_module)
    if hasattr(head, "base_layer") and (head.disable_adapters or head.merged):  # PEFT's
        return _unwrapped(head.base_layer)
    return head


def _has_hooks(head: nn.Module) -> bool:
    return bool(head._forward_hooks or head._forward_pre_hooks)


def _beyond_its_weight(head: nn.Module) -> str | None:
    """What an LM head has that may change its logits, other than `nn.Linear`'s weight and bias."""
    if _has_hooks(head):
        return "has a forward hook"
    if hasattr(head, "parametrizations") and head.training:  # spectral norm changes with each use
        return "is parametrized and in training mode (call model.eval())"
    forward = head.forward
    placed = getattr(head, "_hf_hook", None)
    hooks = getattr(placed, "hooks", (placed,))
    if all(type(hook).__module__ == "accelerate.hooks" for hook in hooks):  # moves tensors only
        forward = getattr(head, "_old_forward", forward)
    if getattr(forward, "__func__", None) is not nn.Linear.forward:
        return f"({type(head).__module__}.{type(head).__qualname__}) replaces nn.Linear's forward"
    return None


def _readable(weight: Any) -> bool:
    """Whether a weight is in memory as floating point, and no subclass of tensors.

    A subclass may hold something else than the values: quantized, flattened, or spread over ranks.
    """
    return type(weight) in (Tensor, nn.Parameter) and weight.dtype in _DTYPES and not weight.is_meta


def is_tied(model: Model, lm_head: LMHead | None = None) -> bool:
    """Whether the LM head (the model's, if none is passed) and the embedding share their weights.

    Only where weights are not in memory does the config decide: it may be wrong, or say nothing.
    """
    embedding = getattr(model.get_input_embeddings(), "weight", None)
    used = _unwrapped(output_embeddings(model)) if lm_head is None else lm_head
    head = getattr(used, "weight", None)
    if embedding is None or head is None:
        return False
    if not (_readable(embedding) and _readable(head)):  # only the config is left
        configs = [text_config(model.config), model.config]
        if hasattr(model, "all_tied_weights_keys"):  # from 5.0 on the model's config counts
            configs.reverse()
        fields = (getattr(config, "tie_word_embeddings", None) for config in configs)
        return bool(next((tied for tied in fields if tied is not None), False))
    if embedding.data_ptr() == head.data_ptr():
        return True
    # Spread over devices, shared weights become copies of each other.
    return embedding.shape == head.shape and all(
        torch.equal(some, other.to(some.device))
        for some, other in zip(torch.split(embedding, 256), torch.split(head, 256), strict=True)
    )


def modules_with_logits(model: Model) -> list[nn.Module]:
    """The modules that hold the LM head; the forward of one of them returns the logits."""
    return _around(model, output_embeddings(model))


def rounding(dtype: torch.dtype) -> float:
    """How far apart two computations of the same logits may be, relative to their size."""
    return _ROUNDING.get(dtype, _HALF_ROUNDING)


def calibrated(head: LMHead, config: Any, state: Tensor, logits: Tensor, model: str) -> LMHead:
    """The LM head with the scale or cap that turns a final hidden state into the model's logits.

    The scales and caps that the config names are tried, each alone, together, and none. What comes
    closest to the model's logits is taken. So a wrong decoder, head or cap is an error, and never
    a wrong number.

    Args:
        state: (d,) the decoder's last hidden state at a position.
        logits: (V,) the model's logits at that position.
        model: its name, for the message.

    Raises:
        ValueError: none gives the model's logits.
    """
    # Logits that a model masks are left out: -inf, or the least of their dtype.
    unmasked = logits.isfinite() & (logits > torch.finfo(logits.dtype).min / 2)
    allowed = max(rounding(head.dtype), rounding(logits.dtype))
    logits = logits.detach().float().to(head.weight.device)
    # The extremes show a cap or scale best.
    unmasked = unmasked.to(logits.device).nonzero().squeeze(1)
    ranked = unmasked[logits[unmasked].argsort()]
    tokens = torch.cat([ranked[:32], ranked[-32:]])
    # Sums of products, and no matrix product: mixed precision would round that.
    state = state.to(head.device).float()
    projected = (head.weight[tokens].float() * state).sum(1, keepdim=True)
    expected = logits[tokens]
    best, error = head, float("inf")
    for tried in _candidates(head, config):
        got = tried.finish(projected, tokens).squeeze(1)
        off = float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
        scale = float((got * expected).sum() / (got * got).sum().clamp(min=1e-12))
        off = max(off, abs(scale - 1) * allowed / min(allowed, _SCALE_ROUNDING))
        if off < error:
            best, error = tried, off
    if not error <= allowed:
        raise ValueError(
            f"the logits of {model} are not its LM head's product with its decoder's last hidden "
            f"state (off by {error:.1%}), nor that product scaled or capped by a number of its "
            "config. Pass lm_head=revisit.LMHead(weight, bias, scale, softcap), or the decoder "
            "whose output the head reads as decoder"
        )
    return best


def _candidates(head: LMHead, config: Any) -> Iterator[LMHead]:
    yield head
    if head.scale != 1 or head.softcap is not None:
        return  # the caller chose
    text = text_config(config)
    numbers = _numbers(text, _SCALES)
    scales = [1.0, *numbers, *(1 / number for number in numbers)]
    for scale, softcap in product(scales, [None, *_numbers(text, _CAPS)]):
        yield head._replace(scale=scale, softcap=softcap)


def _numbers(config: Any, names: tuple[str, ...]) -> list[float]:
    """The fields of a config that are numbers other than 0."""
    values = (getattr(config, name, None) for name in names)
    return [float(value) for value in values if type(value) in (int, float) and value]
