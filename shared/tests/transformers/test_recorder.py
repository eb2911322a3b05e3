"""Which hidden states are recorded where a decoder does not call its layers one after another."""

import pytest
import torch
from torch import nn
from transformers import LogitsProcessorList

import revisit
from releases import RELEASE
from revisit import DoLaConfig, LMHead, ReVisiTConfig, ReVisiTLogitsProcessor
from revisit.transformers import recorder
from revisit.transformers.model_parts import calibrated
from routes import plain
from small_llama import IMAGE, LAYERS, PROMPTS, batch, hooks, make_model

REFUSED = {"a layer twice": [0, 1, 1, 2, 3], "a layer never": [0, 1, 3]}
NUMBERED = {"another order": [0, 2, 1, 3], "one layer for all": [1, 1, 1, 1]}
EVERY = tuple(range(LAYERS + 1))
SETTINGS = {"max_new_tokens": 1, "use_cache": False}


class Ordered(nn.ModuleList):
    """Layers that are called in any order."""

    def __iter__(self):
        return iter([self[number] for number in self.order])

    def __getitem__(self, index):
        return list(self) if isinstance(index, slice) else super().__getitem__(index)


def ordered(order):
    model = make_model()
    model.model.layers = Ordered(model.model.layers)
    model.model.layers.order = order
    return model


@pytest.mark.parametrize("order", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("config", [ReVisiTConfig(layers="all"), DoLaConfig(layers=[1])])
def test_hidden_states_whose_numbers_are_not_known_are_refused(order, config):
    model = ordered(order)
    with pytest.raises(ValueError, match="choose layers='last'"), revisit.attach(model, config):
        plain(model, PROMPTS[:1], **SETTINGS)


NAMED_LAYERS = [(order, EVERY) for order in NUMBERED.values()]
NAMED_LAYERS += [(order, "last") for order in REFUSED.values()]


@pytest.mark.parametrize(("order", "layers"), NAMED_LAYERS)
def test_hidden_states_are_those_that_transformers_reports(order, layers):
    model, inputs = ordered(order), batch(PROMPTS[:1])
    there = inputs["input_ids"][0] == IMAGE
    with torch.no_grad():
        expected = model(**inputs, use_cache=False, output_hidden_states=True).hidden_states
    with revisit.attach(model, ReVisiTConfig(layers=layers)) as run:
        seen = []
        run.model.register_forward_hook(lambda *_: seen.extend(run.latest.recorder.states))
        plain(model, PROMPTS[:1], **SETTINGS)
    chosen = expected if layers != "last" else expected[-1:]
    torch.testing.assert_close(seen[0], torch.cat([state[0, there] for state in chosen]))


@pytest.mark.skipif(RELEASE < (5, 24), reason="new in Transformers 5.24")
def test_a_config_that_says_how_often_layers_are_looped_numbers_them():
    import families

    decoder = revisit.ReVisiTLogitsProcessor(families.make("inkling2_loop")).decoder
    assert (len(decoder.layers), decoder.depth) == (LAYERS, 8)


# Hooks


def test_the_layers_are_hooked_for_the_prefill_only():
    model = make_model()
    before, during = hooks(model.model), []

    def process(_input_ids, scores):
        during.append(hooks(model.model))
        return scores

    with revisit.attach(model, ReVisiTConfig(layers="all")):
        plain(model, PROMPTS, max_new_tokens=3, logits_processor=LogitsProcessorList([process]))
    assert during == [before] * 3


def test_an_exception_while_the_hooks_are_set_leaves_none():
    model = make_model()
    before = hooks(model)
    processor = revisit.ReVisiTLogitsProcessor(model, ReVisiTConfig(layers="all"))
    processor.decoder.layers[2].register_forward_pre_hook = None  # the third hook fails
    inputs = batch(PROMPTS[:1])
    try:
        with pytest.raises(TypeError), processor.generation(inputs):
            pass
    finally:
        del processor.decoder.layers[2].register_forward_pre_hook
    assert hooks(model) == before
    assert recorder.eager._users == 0


# Mixed precision


def around_forward(model, precision):
    """As Accelerate prepares a model: mixed precision inside `forward`, float32 outside."""
    inner = model.forward

    def forward(*args, **kwargs):
        with torch.autocast("cpu", precision):
            output = inner(*args, **kwargs)
        output.logits = output.logits.float()
        return output

    model.forward = forward


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inside", [False, True])
def test_mixed_precision_does_not_change_the_dtype_of_vision_states(dtype, precision, inside):
    if precision == torch.float16 and RELEASE < (4, 45):
        pytest.skip("its PyTorch has no such mixed precision on a CPU")
    model = make_model().to(dtype)
    processor = ReVisiTLogitsProcessor(model, ReVisiTConfig(layers=EVERY))
    inputs = batch(PROMPTS[:1])
    with torch.no_grad(), processor.generation(inputs) as generation:
        if inside:
            around_forward(model, precision)
            model(**inputs)
        with torch.autocast("cpu", precision, enabled=not inside):
            if not inside:
                model(**inputs)
            recording = generation.recorder
            found = recording.last[0], recording.logits[0], "Llama"
            head = processor.head()
            assert calibrated(head, model.config, *found) == head
            with pytest.raises(ValueError, match="Pass lm_head"):
                calibrated(LMHead(1.1 * head.weight, scale=1.1), model.config, *found)
        assert recording.states[0].dtype == dtype


def test_dola_reads_a_model_that_accelerate_prepared():
    model = make_model()
    around_forward(model, torch.bfloat16)
    with revisit.attach(model, DoLaConfig(layers=[0, 2])):
        plain(model, PROMPTS, max_new_tokens=2)
