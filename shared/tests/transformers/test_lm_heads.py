"""LM heads and decoders of `model_parts.py`: exact, or an error where what is found is wrong."""

import accelerate
import pytest
import torch
from torch import nn

import families
import revisit
from dense_generation import ALPHA, STEPS, check, decode
from families import softcap, text, unchanged
from revisit import ReVisiTConfig
from revisit.transformers.model_parts import is_tied
from tiny_configs import LAYERS, VOCABULARY, language_model

CONFIG = ReVisiTConfig(alpha=ALPHA)
PRODUCT = r"are not its LM head's product(?s:.)*Pass lm_head=revisit\.LMHead"


def with_bias():
    model = language_model()
    torch.manual_seed(1)
    model.lm_head.bias = nn.Parameter(torch.randn(VOCABULARY))
    return model


HEADS = {
    "untied": (language_model, unchanged),
    "tied": (lambda: language_model(tie_word_embeddings=True), unchanged),
    "biased": (with_bias, unchanged),
    "soft-capped": (lambda: language_model("Gemma2", final_logit_softcapping=3.0), softcap(3.0)),
    "multiplied": (lambda: language_model("Cohere", logit_scale=0.25), lambda product: product / 4),
    "divided": (lambda: language_model("Granite", logits_scaling=4.0), lambda product: product / 4),
}


@pytest.mark.parametrize("layers", ["last", "all", list(range(LAYERS + 1))], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_lm_heads_equal_the_dense_computation(name, layers):
    make, finish = HEADS[name]
    model = make()
    assert is_tied(model) is (name in ("tied", "soft-capped", "multiplied"))
    check(model, text(), layers, finish=finish)


class Changed(nn.Linear):
    """A head that does more than multiply: `change` gets the product's function and its input."""

    def __init__(self, head, change):
        super().__init__(*head.weight.T.shape, bias=False)
        self.weight, self.change = head.weight, change

    def forward(self, state):
        return self.change(super().forward, state)


CHANGES = {
    "halved": lambda product, state: 0.5 * product(state),
    "stretched": lambda product, state: 1.03 * product(state),
    "normed": lambda product, state: product(nn.functional.layer_norm(state, state.shape[-1:])),
    "capped by no config": lambda product, state: 2.5 * torch.tanh(product(state) / 2.5),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_that_no_config_explains_are_refused(change, dtype):
    model = language_model().to(dtype)
    model.lm_head = Changed(model.lm_head, change)
    model.config.mean_logit_of_training = 0.5  # a number that fits the first by chance
    with pytest.raises(ValueError, match=PRODUCT):
        decode(model, text(), CONFIG)


def test_logits_that_no_config_explains_are_exact_with_the_caller_s_head():
    model = language_model()
    lm_head = head(model, scale=0.5)
    model.lm_head = Changed(model.lm_head, CHANGES["halved"])
    check(model, text(), "last", finish=lambda product: product / 2, lm_head=lm_head)


def head(model, **changes):
    return revisit.LMHead(model.lm_head.weight.detach())._replace(**changes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_still_tells_a_scale_near_1(dtype):
    model = language_model().to(dtype)
    decode(model, text(), CONFIG)
    for scale in (0.98, 1.02):
        with pytest.raises(ValueError, match=PRODUCT):
            decode(model, text(), CONFIG, lm_head=head(model, scale=scale))


class Unused(nn.Module):
    """Layers that are never run."""

    def __init__(self, model):
        super().__init__()
        self.layers = nn.ModuleList(model.model.layers)


def norm_in_the_head():
    """A decoder without its final norm, which the head applies."""
    model = language_model()
    norm, inner = model.model.norm, model.lm_head
    model.model.norm, model.lm_head = nn.Identity(), nn.Sequential(norm, inner)
    model.lm_head.weight = inner.weight
    with torch.no_grad():
        norm.weight.mul_(1.5)
    return model


def vision_encoder(model):
    return next(part for part in model.model.vision_tower.modules() if hasattr(part, "layers"))


def wrong_head(**changes):
    return lambda model: {"lm_head": head(model, **changes)}


OTHER = torch.randn(VOCABULARY, 32)
# What makes the model, the arguments of `attach` and `generate`, the error.
WRONG = {
    "decoder: another module": (
        lambda: families.make("llava"),
        lambda model: {"decoder": vision_encoder(model)},
        "so the LM head cannot read it",
    ),
    "decoder: layers that never run": (
        language_model,
        lambda model: {"decoder": Unused(model)},
        "did not see the prompts being read",
    ),
    "head: other weights": (language_model, wrong_head(weight=OTHER), PRODUCT),
    "head: rows in another order": (
        language_model,
        lambda model: {"lm_head": head(model, weight=head(model).weight.roll(1, 0))},
        PRODUCT,
    ),
    "head: of another width": (language_model, wrong_head(weight=OTHER[:, :16]), "LM head"),
    "head: without its bias": (with_bias, wrong_head(), PRODUCT),
    "scale: 3% too large": (language_model, wrong_head(scale=1.03), PRODUCT),
    "cap: another number": (HEADS["soft-capped"][0], wrong_head(softcap=3.3), PRODUCT),
    "norm: after the decoder": (norm_in_the_head, lambda model: {}, PRODUCT),
}


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_part_is_an_error(name, layers):
    make, arguments, message = WRONG[name]
    model = make()
    inputs = families.made("llava")[1][0] if hasattr(model.config, "vision_config") else text()
    with pytest.raises(ValueError, match=message):
        decode(model, inputs, ReVisiTConfig(layers=layers), **arguments(model))


# Weights that are elsewhere, or not floating point


def to_disk(model, folder):
    devices = {"model.vision_tower": "disk", "model.multi_modal_projector": "cpu", "lm_head": "cpu"}
    for name, _ in model.model.language_model.named_children():
        devices[f"model.language_model.{name}"] = "disk" if name == "layers" else "cpu"
    accelerate.dispatch_model(model, devices, offload_dir=str(folder))


def to_memory(model, _folder):
    accelerate.cpu_offload(model.model.language_model.layers, "cpu")


@pytest.mark.parametrize(("name", "offload"), [("llava", to_disk), ("qwen2_5_vl", to_memory)])
def test_an_offloaded_decoder_gives_what_it_gives_in_memory(name, offload, tmp_path):
    model, rows = families.made(name)
    config = ReVisiTConfig(layers="all", alpha=ALPHA, trace=True)
    expected, trace = decode(model, rows[1], config)
    offloaded = families.make(name)
    offload(offloaded, tmp_path)
    assert next(offloaded.model.language_model.layers.parameters()).is_meta
    output, other = decode(offloaded, rows[1], config)
    assert output.sequences.tolist() == expected.sequences.tolist()
    assert other == trace


class Int8Linear(nn.Module):
    """A linear layer that keeps its weight as int8 and one scale for each row."""

    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.detach()
        self.scale = weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (weight / self.scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, inputs):
        return nn.functional.linear(inputs, self.weight * self.scale, self.bias)


def quantize(module):
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
        else:
            quantize(child)


def test_quantized_layers_equal_the_dense_computation():
    model = families.make("llava")
    quantize(model.model.language_model.layers)
    assert any(isinstance(part, Int8Linear) for part in model.modules())
    check(model, families.made("llava")[1][1], "all")


def offload_head(model):
    """Returns the weight that the model goes on with."""
    weight = model.lm_head.weight.detach().clone()
    accelerate.cpu_offload(model, "cpu")
    return weight


def quantize_head(model):
    model.lm_head = Int8Linear(model.lm_head)
    return model.lm_head.weight * model.lm_head.scale


@pytest.mark.parametrize("remove", [offload_head, quantize_head])
def test_an_lm_head_that_is_not_in_memory_is_refused_without_the_caller_s(remove):
    original, rows = families.made("llava")
    model = families.make("llava")
    weight = remove(model).detach()
    counting = model.model.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=r"LM head .* has no floating-point weight in memory"):
        revisit.enable(model, CONFIG)
    counting.remove()
    expected, _ = decode(original, rows[1], CONFIG)
    output, _ = decode(model, rows[1], CONFIG, lm_head=revisit.LMHead(weight))
    if remove is offload_head:  # int8 weights differ
        assert output.sequences.tolist() == expected.sequences.tolist()


def test_layers_that_hold_several_streams_are_refused_but_not_the_last():
    model = language_model(
        "Gemma3n",
        "Gemma3nText",
        intermediate_size=[48] * LAYERS,
        laurel_rank=4,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention"] * 2,
        activation_sparsity_pattern=[0.0] * LAYERS,
        final_logit_softcapping=4.0,
    )
    with pytest.raises(ValueError, match="choose layers='last'"):
        decode(model, text(), ReVisiTConfig(layers="all"))
    output, _ = decode(model, text(), ReVisiTConfig(layers="last"))
    assert len(output.scores) == STEPS
