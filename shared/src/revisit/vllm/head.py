"""vLLM's LM head as an `LMHead` of ReVisiT, compared with the model's logits."""

from typing import Any

import torch
from torch import Tensor

from revisit.core.head import LMHead

# Relative error of a logit: the product in the model's dtype, summed in another order.
_ROUNDING = {torch.float64: 1e-4, torch.float32: 1e-3}
_HALF_ROUNDING = 5e-2

# Sizes of the hidden states that are tried: a cap shows at large logits.
_SIZES = (0.3, 1.0, 4.0, 16.0)

_PLAIN = ("UnquantizedEmbeddingMethod", "UnquantizedLinearMethod")


def language_model(model: Any) -> Any:
    """The causal language model inside a multimodal one."""
    return model.get_language_model() if hasattr(model, "get_language_model") else model


def lm_head(model: Any) -> LMHead:
    """The whole LM head; where ranks hold parts of it, all of them must ask.

    Raises:
        ValueError: the model has none, or it is quantized.
    """
    text = language_model(model)
    head: Any = getattr(text, "lm_head", None)
    processor = getattr(text, "logits_processor", None)
    name = type(model).__name__
    if processor is None or not isinstance(getattr(head, "weight", None), Tensor):
        raise ValueError(f"ReVisiT finds no LM head with a logits processor in {name}")
    method = type(head.quant_method).__name__
    if method not in _PLAIN or not head.weight.is_floating_point():
        raise ValueError(
            f"the LM head of {name} is quantized ({method}), and ReVisiT projects the vision "
            "tokens with its weights: keep lm_head out of quantization"
        )
    if processor.head_dtype not in (None, head.weight.dtype):
        raise ValueError(
            f"the LM head of {name} computes in {processor.head_dtype}, its weights being "
            f"{head.weight.dtype}: leave head_dtype out of --hf-overrides, or choose the same dtype"
        )
    size = processor.org_vocab_size
    bias = getattr(head, "bias", None)
    return LMHead(
        _whole(head.weight.detach())[:size],
        None if bias is None else _whole(bias.detach())[:size],
        processor.scale,
        processor.soft_cap,
    )


def _whole(part: Tensor) -> Tensor:
    """The parts of all ranks, one after the other."""
    from vllm.distributed import (
        get_tensor_model_parallel_world_size,
        tensor_model_parallel_all_gather,
    )

    if get_tensor_model_parallel_world_size() == 1:
        return part
    whole: Tensor = tensor_model_parallel_all_gather(part, dim=0)
    return whole


def is_tied(model: Any) -> bool:
    """Whether LM head and embedding share their weights, or have equal ones."""
    text = language_model(model)
    embedding = getattr(getattr(text, "model", None), "embed_tokens", None)
    head, other = text.lm_head.weight, getattr(embedding, "weight", None)
    if other is None or head.shape != other.shape:
        return False
    return head.data_ptr() == other.data_ptr() or torch.equal(head, other)


@torch.inference_mode()
def check_head(head: LMHead, model: Any) -> None:
    """Compare the head with the model's logits at random hidden states.

    Raises:
        ValueError: they differ, so that the model does to its logits what was not found.
    """
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn((len(_SIZES), head.width), generator=generator)
    states = directions * torch.tensor(_SIZES).unsqueeze(1)
    states = states.to(head.device, head.dtype)
    logits = model.compute_logits(states)
    if logits is None:  # the first of the ranks has them, and checks
        return
    tokens = torch.arange(head.size, device=head.device)
    products, logits = head.project(tokens, states).T.float(), logits.float()
    if logits.shape == products.shape:
        differences = (products - logits).abs().amax(1) / logits.abs().amax(1).clamp(min=1e-6)
        if (error := float(differences.max())) <= _ROUNDING.get(head.dtype, _HALF_ROUNDING):
            return
        how = f"off by {error:.1%}"
    else:
        how = f"of shape {tuple(logits.shape)}, not {tuple(products.shape)}"
    raise ValueError(
        f"the logits of {type(model).__name__} are not its LM head's product with a hidden state, "
        f"scaled or capped as its logits processor says ({how}): ReVisiT cannot project vision "
        "tokens as this model does"
    )
