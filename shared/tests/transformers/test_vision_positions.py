"""Where the vision tokens stand: by the config's token id, or by the caller's mask."""

import pytest
import torch

import revisit
from revisit import ReVisiTConfig
from routes import CONFIG, SETTINGS, attached, plain
from small_llama import IMAGE, PROMPTS, batch, hooks, make_model, new_tokens


def test_a_prompt_without_vision_tokens_is_refused_or_decoded_plainly(model):
    prompts, ran = [PROMPTS[0], [1, 30, 31, 32]], []
    handle = model.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(ValueError, match=r"prompts \[1\] of the batch hold no vision token"):
        attached(model, prompts)
    handle.remove()
    assert not ran
    config = ReVisiTConfig(no_vision="plain", trace=True)
    output = attached(model, prompts, config, return_dict_in_generate=True)
    assert new_tokens(output, prompts)[1] == plain(model, prompts[1:])[0][4:]
    assert output.revisit_trace[1] == [None] * SETTINGS["max_new_tokens"]


def test_a_mask_is_read_where_the_config_names_no_token(expected):
    other = make_model()
    del other.config.image_token_id
    with pytest.raises(ValueError, match="Pass vision_mask"):
        attached(other, PROMPTS)
    mask = batch(PROMPTS)["input_ids"] == IMAGE
    assert attached(other, PROMPTS, vision_mask=mask) == expected


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(1, 3).bool(), "pass vision_mask for the sequence"),
        (torch.ones(1, 7), "vision_mask must be bool"),
        (torch.ones(7).bool(), "vision_mask must be bool of shape"),
        (torch.ones(2, 7).bool(), "with 1 rows"),
        (torch.zeros(1, 7).bool(), "hold no vision token"),
    ],
)
def test_a_wrong_mask_is_refused(model, mask, message, layers):
    before = hooks(model)
    with pytest.raises(ValueError, match=message):
        attached(model, PROMPTS[:1], ReVisiTConfig(layers=layers), vision_mask=mask)
    assert hooks(model) == before


def test_a_prompt_of_embeddings_needs_a_mask(model):
    inputs = batch(PROMPTS[:1])
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach()
    (expected,) = attached(model, PROMPTS[:1])
    prompt = {"inputs_embeds": embeddings, "attention_mask": inputs["attention_mask"]}
    with revisit.attach(model, CONFIG):
        with pytest.raises(ValueError, match="Pass vision_mask"):
            model.generate(**prompt, **SETTINGS)
        mask = inputs["input_ids"] == IMAGE
        output = model.generate(**prompt, **SETTINGS, vision_mask=mask)
    assert output[0, -6:].tolist() == expected[-6:]


def test_a_vision_mask_is_of_one_generation(model):
    """The next prompt is not read by the mask of the one before, though it is as long."""
    other = [[1, 20, 21, 9, IMAGE, IMAGE, IMAGE]]
    expected = attached(model, other)
    with revisit.attach(model, CONFIG):
        mask = torch.tensor([[0, 0, 1, 1, 1, 0, 0]]).bool()
        plain(model, PROMPTS[:1], vision_mask=mask)
        assert plain(model, other) == expected
