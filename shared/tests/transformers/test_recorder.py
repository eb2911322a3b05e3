"""Which hidden states are recorded where a decoder does not call its layers one after another."""

import pytest
import torch
from torch import nn

import revisit
from releases import RELEASE
from revisit import DoLaConfig, ReVisiTConfig
from small_llama import IMAGE, LAYERS, PROMPTS, batch, make_model

REFUSED = {"a layer twice": [0, 1, 1, 2, 3], "a layer never": [0, 1, 3]}
NUMBERED = {"another order": [0, 2, 1, 3], "one layer for all": [1, 1, 1, 1]}
ASKED = {"max_new_tokens": 1, "do_sample": False, "use_cache": False}


class Ordered(nn.ModuleList):
    """Layers that are called in an order of their own."""

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
        model.generate(**batch(PROMPTS[:1]), **ASKED)


EVERY = tuple(range(LAYERS + 1))
CASES = [(order, EVERY) for order in NUMBERED.values()]


@pytest.mark.parametrize(
    ("order", "layers"), [*CASES, *((order, "last") for order in REFUSED.values())]
)
def test_hidden_states_are_those_that_transformers_reports(order, layers):
    model, inputs = ordered(order), batch(PROMPTS[:1])
    there = inputs["input_ids"][0] == IMAGE
    with torch.no_grad():
        expected = model(**inputs, use_cache=False, output_hidden_states=True).hidden_states
    with revisit.attach(model, ReVisiTConfig(layers=layers)) as run:
        seen = []
        run.model.register_forward_hook(lambda *_: seen.extend(run.latest.recorder.states))
        model.generate(**inputs, **ASKED)
    chosen = expected if layers != "last" else expected[-1:]
    torch.testing.assert_close(seen[0], torch.cat([state[0, there] for state in chosen]))


@pytest.mark.skipif(RELEASE < (5, 24), reason="new in Transformers 5.24")
def test_a_config_that_says_how_often_layers_are_looped_numbers_them():
    import shrunk
    from matrix import ROWS

    row = ROWS["inkling2_loop"].family
    decoder = revisit.ReVisiTLogitsProcessor(row.make()).decoder
    assert (len(decoder.layers), decoder.depth) == (shrunk.LAYERS, 8)
