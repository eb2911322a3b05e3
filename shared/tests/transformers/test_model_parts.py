"""The LM head is what the model multiplies by, or it is refused; parts that are passed are used."""

import copy
from types import SimpleNamespace

import accelerate
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import revisit
from releases import RELEASE
from revisit import LMHead, ReVisiTConfig
from revisit.transformers.model_parts import is_tied, lm_head, text_decoder
from routes import plain
from small_llama import PROMPTS, make_model

REFUSED = r"(?s)are not its LM head's product.*Pass lm_head=revisit\.LMHead"
ABSENT = "has no floating-point weight in memory"


def decode(model, **parts):
    with revisit.attach(model, ReVisiTConfig(layers="all", alpha=1e-2), **parts):
        return plain(model, PROMPTS, return_dict_in_generate=True, output_scores=True)


def assert_equal(output, other):
    assert output.sequences.tolist() == other.sequences.tolist()
    for scores, expected in zip(output.scores, other.scores, strict=True):
        torch.testing.assert_close(scores, expected)


# What changes an LM head's logits by less than bfloat16's rounding, or by more.


class Adapter(nn.Module):
    """A layer of PEFT: an adapter beside a linear layer, and it shows that layer's weight."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.delta = nn.Parameter(1e-3 * torch.randn_like(base_layer.weight))
        self.disable_adapters = self.merged = False

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, state):
        if self.disable_adapters or self.merged:
            return self.base_layer(state)
        return self.base_layer(state) + nn.functional.linear(state, self.delta)


class Copies(nn.Module):
    """PEFT replaces a layer of `modules_to_save` by this."""

    def __init__(self, layer):
        super().__init__()
        self.original_module = layer
        self.modules_to_save = nn.ModuleDict({"trained": copy.deepcopy(layer)})
        self.modules_to_save["trained"].weight.data += 0.1
        self.active_adapter, self.disable_adapters = ["trained"], False

    @property
    def used(self):
        return self.original_module if self.disable_adapters else self.modules_to_save["trained"]

    def forward(self, state):
        return self.used(state)


class Scaled(nn.Linear):
    def forward(self, state):
        return 1.001 * super().forward(state)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def with_class(head):
    head.__class__ = Scaled
    return head


def with_forward(head):
    head.forward = lambda state: 1.001 * nn.functional.linear(state, head.weight)
    return head


def with_hook(head):
    head.register_forward_hook(lambda _, __, output: 1.001 * output)
    return head


def with_pre_hook(head):
    head.register_forward_pre_hook(lambda *_: None)
    return head


CHANGED = {
    "an adapter": Adapter,
    "an adapter in a copy": lambda head: Copies(Adapter(head)),
    "a forward of its class": with_class,
    "replaces nn.Linear's forward": with_forward,
    "a forward hook": with_hook,
    "a forward pre-hook": with_pre_hook,
    "a norm by a hook": nn.utils.weight_norm,
    "parametrized, in training": parametrizations.spectral_norm,
    "in sequence": lambda head: nn.Sequential(head, nn.Tanh()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_a_head_that_does_more_than_multiply_is_refused_before_anything_runs(change, dtype):
    model = make_model().to(dtype)
    weight = model.lm_head.weight.detach().clone()
    model.lm_head = change(model.lm_head.train()).to(dtype)
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=f"{REFUSED}|{ABSENT}"):
        revisit.enable(model)
    assert lm_head(make_model().to(dtype)).weight.equal(weight)


def test_a_hook_or_adapter_that_comes_after_enable_is_refused_too():
    model = make_model()
    revisit.enable(model)
    model.lm_head = Adapter(model.lm_head)
    with pytest.raises(ValueError, match=REFUSED):
        plain(model, PROMPTS)


def merged(head):
    adapter = Adapter(head)
    adapter.base_layer.weight.data += adapter.delta
    adapter.merged = True
    return adapter


def off(head):
    adapter = Adapter(head)
    adapter.disable_adapters = True
    return adapter


def original(head):
    copies = Copies(head)
    copies.disable_adapters = True
    return copies


def doubled(head):
    return parametrize.register_parametrization(head, "weight", Doubled())


USED = {
    "an adapter that is merged": (merged, lambda head: head.base_layer.weight),
    "an adapter that is off": (off, lambda head: head.base_layer.weight),
    "a copy that PEFT trained": (Copies, lambda head: head.used.weight),
    "the layer that PEFT copied": (original, lambda head: head.used.weight),
    "a parametrized weight": (doubled, lambda head: 2 * head.parametrizations.weight.original),
}


@pytest.mark.parametrize(("change", "weight"), USED.values(), ids=USED)
def test_a_head_is_used_with_the_weight_that_it_multiplies_by(change, weight):
    model = make_model()
    model.lm_head = change(model.lm_head)
    other = make_model()
    other.lm_head.weight = nn.Parameter(weight(model.lm_head).detach().clone())
    assert_equal(decode(model), decode(other))


@pytest.mark.skipif(RELEASE < (4, 45), reason="tried on newer releases")
@pytest.mark.parametrize("kind", ["lora", "dora", "modules_to_save"])
def test_an_adapter_of_peft_on_the_head(kind):
    peft = pytest.importorskip("peft")
    targets = {"target_modules": ["lm_head"], "use_dora": kind == "dora"}
    if kind == "modules_to_save":
        targets = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    config = peft.LoraConfig(init_lora_weights=False, **targets)
    adapted = peft.get_peft_model(make_model(), config).eval()
    model = adapted.get_base_model()
    if kind != "modules_to_save":
        with pytest.raises(ValueError, match=REFUSED):
            decode(model)
        with adapted.disable_adapter():
            assert_equal(decode(model), decode(make_model()))
        adapted.merge_adapter()
    output = decode(model)
    assert_equal(output, decode(adapted.merge_and_unload()))


def test_a_config_that_names_its_text_only_as_text_config():
    """As LLaVA's from Transformers 4.36 to 4.44."""
    model = make_model()
    model.config = SimpleNamespace(text_config=model.config)
    assert text_decoder(model) == (model.model, model.model.layers)


# Tied weights


@pytest.mark.parametrize("tied", [False, True])
def test_tied_is_read_off_the_weights_and_not_off_the_config(tied):
    model = make_model(tie_word_embeddings=tied)
    model.config.tie_word_embeddings = not tied
    assert is_tied(model) is tied


def test_tied_weights_that_became_copies_are_tied():
    """As where a model is spread over devices, and its embedding and LM head lie on two of them."""
    model = make_model(tie_word_embeddings=True)
    model.lm_head.weight = nn.Parameter(model.model.embed_tokens.weight.detach().clone())
    assert is_tied(model)
    with torch.no_grad():
        model.lm_head.weight[-1, -1] += 1
    assert not is_tied(model)


@pytest.mark.parametrize("tied", [False, True])
def test_tied_is_known_of_an_offloaded_embedding(tied):
    model = make_model(tie_word_embeddings=tied)
    accelerate.cpu_offload(model.get_input_embeddings())
    assert model.get_input_embeddings().weight.is_meta
    assert is_tied(model) is tied


# Parts that the caller passes


class Packed(torch.Tensor):
    """A quantized weight: a tensor that knows nothing but how it is multiplied."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            state, weight = args[:2]
            return nn.functional.linear(state, weight.as_subclass(torch.Tensor))
        if function in ALLOWED:
            return super().__torch_function__(function, types, args, kwargs or {})
        raise NotImplementedError(f"{function} of a packed weight")


ALLOWED = [torch.Tensor.as_subclass, torch.Tensor.requires_grad.__get__]


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_that_is_passed_is_not_looked_for(tied):
    model = make_model(tie_word_embeddings=tied)
    expected = decode(model)
    passed = LMHead(model.lm_head.weight.detach().clone())
    packed = model.lm_head.weight.detach().clone().as_subclass(Packed)
    del model.lm_head.weight
    model.lm_head.weight = packed
    with pytest.raises(ValueError, match=ABSENT):
        revisit.enable(model)
    assert_equal(decode(model, lm_head=passed), expected)
    assert is_tied(model, passed) is is_tied(model) is tied
