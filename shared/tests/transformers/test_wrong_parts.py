"""A decoder, head, norm, cap or mask that is wrong is an error, and never a wrong number."""

import pytest
import torch
from torch import nn

import families
import revisit
from families import IMAGE, VOCABULARY
from revisit import ReVisiTConfig

PROMPT = torch.tensor([[1, 20, *[IMAGE] * 6, 21, *[IMAGE] * 5, 22, 23]])
INPUTS = {"input_ids": PROMPT, "attention_mask": torch.ones_like(PROMPT)}
WORDS = "are not its LM head's product"


def capped():
    return families.language_model("Gemma2", final_logit_softcapping=3.0)


def head(model, **changes):
    return revisit.LMHead(model.lm_head.weight.detach())._replace(**changes)


class Normed(nn.Linear):
    """A head that norms what it reads: the decoder's output is not what it multiplies."""

    def forward(self, state):
        return super().forward(nn.functional.layer_norm(state, state.shape[-1:]))


class Fixed(nn.Linear):
    """A head that caps its logits by a number that no config names."""

    def forward(self, state):
        return 2.5 * torch.tanh(super().forward(state) / 2.5)


def with_head(kind):
    model = families.language_model("Llama")
    weight = model.lm_head.weight
    model.lm_head = kind(32, VOCABULARY, bias=False)
    model.lm_head.weight = weight
    return model


def biased():
    model = families.language_model("Llama")
    torch.manual_seed(1)
    model.lm_head.bias = nn.Parameter(torch.randn(VOCABULARY))
    return model


class Inner(nn.Module):
    """Layers that are never run."""

    def __init__(self, model):
        super().__init__()
        self.layers = nn.ModuleList(model.model.layers)

    def forward(self, states):
        return states


def unnormed(model):
    """The decoder without its final norm, which the head then reads from elsewhere."""
    norm, model.model.norm = model.model.norm, nn.Identity()
    inner = model.lm_head
    model.lm_head = nn.Sequential(norm, inner)
    model.lm_head.weight = inner.weight
    with torch.no_grad():
        norm.weight.mul_(1.5)
    return model


def _encoder(model):
    """The encoder of the vision tower, wherever the release keeps it."""
    return next(part for part in model.model.vision_tower.modules() if hasattr(part, "layers"))


def mask(model):
    return PROMPT == IMAGE


WRONG = {
    "decoder: another module": (
        lambda: families.FAMILIES["LLaVA"].make(),
        lambda model: {"decoder": _encoder(model)},
        "so the LM head cannot read it",
    ),
    "decoder: layers that never run": (
        lambda: families.language_model("Llama"),
        lambda model: {"decoder": Inner(model)},
        "did not see the prompts being read",
    ),
    "head: other weights": (
        lambda: families.language_model("Llama"),
        lambda model: {"lm_head": head(model, weight=torch.randn(VOCABULARY, 32))},
        WORDS,
    ),
    "head: rows in another order": (
        lambda: families.language_model("Llama"),
        lambda model: {"lm_head": head(model, weight=model.lm_head.weight.detach().roll(1, 0))},
        WORDS,
    ),
    "head: its bias forgotten": (biased, lambda model: {"lm_head": head(model)}, WORDS),
    "head: of another width": (
        lambda: families.language_model("Llama"),
        lambda model: {"lm_head": head(model, weight=torch.randn(VOCABULARY, 16))},
        "LM head",
    ),
    "scale: 3% too large": (
        lambda: families.language_model("Llama"),
        lambda model: {"lm_head": head(model, scale=1.03)},
        WORDS,
    ),
    "cap: another number": (capped, lambda model: {"lm_head": head(model, softcap=3.3)}, WORDS),
    "cap: of no config": (lambda: with_head(Fixed), lambda model: {}, WORDS),
    "norm: after the decoder": (
        lambda: unnormed(families.language_model("Llama")),
        lambda model: {},
        WORDS,
    ),
    "norm: inside the head": (lambda: with_head(Normed), lambda model: {}, WORDS),
    "mask: of another length": (
        lambda: families.language_model("Llama"),
        lambda model: {"vision_mask": mask(model)[:, 1:]},
        "pass vision_mask for the sequence",
    ),
    "mask: of other rows": (
        lambda: families.language_model("Llama"),
        lambda model: {"vision_mask": mask(model).expand(2, -1)},
        "with 1 rows",
    ),
    "mask: nothing marked": (
        lambda: families.language_model("Llama"),
        lambda model: {"vision_mask": torch.zeros_like(PROMPT, dtype=torch.bool)},
        "hold no vision token",
    ),
}


def decode(model, inputs, given, layers):
    vision_mask = {name: given.pop(name) for name in list(given) if name == "vision_mask"}
    with revisit.attach(model, ReVisiTConfig(layers=layers), **given):
        return model.generate(**inputs, **vision_mask, max_new_tokens=2, do_sample=False)


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_part_is_an_error(name, layers):
    make, wrong, message = WRONG[name]
    model = make()
    inputs = INPUTS
    if "LLaVA" in type(model).__name__ or hasattr(model.config, "vision_config"):
        inputs = families.prompts(families.FAMILIES["LLaVA"], model)[0]
    with pytest.raises(ValueError, match=message):
        decode(model, inputs, wrong(model), layers)


@pytest.mark.parametrize("scale", [0.98, 1.02])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_still_tells_a_scale_near_1(dtype, scale):
    model = families.language_model("Llama").to(dtype)
    decode(model, INPUTS, {}, "last")
    with pytest.raises(ValueError, match=WORDS):
        decode(model, INPUTS, {"lm_head": head(model, scale=scale)}, "last")
