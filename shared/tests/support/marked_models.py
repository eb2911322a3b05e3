"""Tiny models that look at known positions: a colour in the image makes a word likely.

Nothing mixes in them: each vision token's state is a function of the colour that it shows, each
word's of itself. The first word expects what red patches say, and each goes on with the other
colour: red, blue, red, ... So the vision token that ReVisiT chooses is the red one, then the blue.
"""

import torch
from PIL import Image

import revisit
from revisit import ReVisiTConfig

COLOURS = {"red": (230, 20, 20), "blue": (20, 20, 230), "dark": (40, 60, 40)}
WORDS = {"red": 50, "blue": 51, "dark": 52}
MIXING = ("o_proj", "out_proj", "attn.proj", "projection_layer", "down_proj", "fc2")
MARK = 12.0  # logits


def painted(size, **boxes):
    """A dark image with rectangles (left, top, right, bottom) in pixels, by colour."""
    image = Image.new("RGB", size, COLOURS["dark"])
    for colour, box in boxes.items():
        image.paste(COLOURS[colour], box)
    return image


@torch.no_grad()
def unmix(model):
    """Take out attention and position embeddings, so that the model works token by token."""
    for name, weight in model.named_parameters():
        layered = "layers." in name or "layer." in name or "blocks." in name
        mixing = layered and any(f".{part}." in name for part in MIXING)
        if mixing or any(part in name for part in ("position_embed", "cls_token", "class_embed")):
            weight.zero_()
    return model


@torch.no_grad()
def mark(model, inputs_of, last):
    """Teach an unmixed model its three words; `last` is the id that its prompts end with."""
    states = torch.stack([_state(model, inputs_of, colour) for colour in COLOURS])
    weights = torch.linalg.pinv(states).T * MARK  # a word's logit: MARK at its state, else 0
    head = model.get_output_embeddings().weight
    embedding = model.get_input_embeddings().weight
    assert head.data_ptr() != embedding.data_ptr()
    head.zero_()
    for row, colour in enumerate(COLOURS):
        head[WORDS[colour]] = weights[row]
    red, blue, _ = states
    embedding[last] = red
    embedding[WORDS["red"]] = blue
    embedding[WORDS["blue"]] = red
    return model


def _state(model, inputs_of, colour):
    """The state of a vision token that shows this colour and nothing else."""
    inputs = inputs_of([Image.new("RGB", (64, 64), COLOURS[colour])])
    refine = revisit.ReVisiTLogitsProcessor(model, ReVisiTConfig())
    with refine.generation(inputs):
        refine(inputs["input_ids"], model(**inputs).logits[:, -1])
        states = refine.vision_states[0]
    torch.testing.assert_close(states, states[:1].expand_as(states), atol=1e-2, rtol=1e-2)
    return states[0]


def look(model, inputs, words=3):
    """The trace of a generation."""
    config = ReVisiTConfig(alpha=0, trace=True)
    with revisit.attach(model, config) as run:
        model.generate(**inputs, max_new_tokens=words, do_sample=False)
    (trace,) = run.trace
    names = {number: word for word, number in WORDS.items()}
    assert [names[step.token] for step in trace] == ["red", "blue", "red", "blue"][:words]
    return trace
