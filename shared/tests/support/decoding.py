"""Models that the other decoders are tested on, and a reference of each decoder for them."""

from functools import cache

import pytest
import torch

import families
import revisit
import whole_passes
from families import FAMILIES, batch, prompts
from revisit import DoLaConfig, PAIConfig, SIDConfig
from tiny_configs import IMAGE, VISION_END, VISION_START
from whole_passes import SHARE, with_noise

CONFIGS = {
    **whole_passes.CONFIGS,
    "DoLa, high": DoLaConfig(layers="high", relative_top=SHARE),
    "PAI": PAIConfig(gamma=1.3, alpha=0.6, beta=SHARE),
    "SID": SIDConfig(alpha=2, beta=SHARE, layer=8, rank=3),  # of four layers, the first one chooses
}
INSTRUCTION, DESCRIPTION = [50, 51, 52], [60, 61, 62, 63]
# One has images of different sizes and positions of three kinds, one a sliding window, one rows
# that are filled up to the same number of images.
NAMES = ["llava", "qwen2_5_vl", "gemma3", "idefics3"]
ASKED = {"max_new_tokens": 5, "suppress_tokens": list(range(9))}  # no image out of nowhere
SAMPLED = {"do_sample": True, "top_k": 0, "num_return_sequences": 3}


@cache
def made(name):
    """A family's model, a copy of it, and prompts with one, three, two and no images."""
    family = FAMILIES[name]._replace(images=(1, 3, 2))
    model = families.make(name)
    rows = prompts(family, model)
    if not family.nested:  # there, all rows of a batch have images
        rows.append(without_image(rows[0]))
    return model, families.make(name), rows


def without_image(row):
    """A prompt of text, with the inputs that are as long as its tokens."""
    ids = torch.tensor([[1, 24, 40, 41, 43]])
    same = [name for name in row if row[name].shape == row["input_ids"].shape]
    types = {name: torch.zeros_like(ids) for name in same}
    return {**types, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def together(rows):
    """The prompts as one batch; not all have images."""
    seeing = [row for row in rows if len(row) == len(rows[0])]
    texts = [{name: row[name] for name in rows[-1]} for row in rows]
    return {**batch(seeing), **batch(texts)}


def second(name, inputs):
    """The second inputs of a decoder; any other pixels do for RITUAL."""
    pixels = [key for key in inputs if key.startswith("pixel_values")]
    if name == "RITUAL" and pixels:
        return {"second_inputs": {key: -0.6 * inputs[key] for key in pixels}}
    if name == "ICD":
        return {"second_inputs": rewritten(inputs, lambda ids: [ids[0], *INSTRUCTION, *ids[1:]])}
    if name == "CODE" and pixels:
        texts = rewritten(inputs, described)
        return {"second_inputs": {key: texts[key] for key in ("input_ids", "attention_mask")}}
    return {}


def described(ids):
    """One description in place of all image tokens."""
    first = ids.index(IMAGE) if IMAGE in ids else len(ids)
    rest = [word for word in ids[first:] if word != IMAGE]
    return [*ids[:first], *DESCRIPTION, *rest] if IMAGE in ids else ids


def rewritten(inputs, rewrite):
    """The inputs with other tokens, padded on the left anew."""
    rows = [
        ids[mask.bool()].tolist()
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    texts = [torch.tensor([rewrite(row)]) for row in rows]
    padded = batch([{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in texts])
    same = [key for key in inputs if inputs[key].shape == inputs["input_ids"].shape]
    types = {key: (padded["input_ids"] == IMAGE).long() for key in same}
    return {**inputs, **types, **padded}


def decode(model, name, inputs, **settings):
    """New tokens, row by row."""
    settings = {"do_sample": False, **ASKED, **settings}
    with revisit.attach(model, CONFIGS[name]):
        output = model.generate(**inputs, **second(name, inputs), **settings)
    return output[:, inputs["input_ids"].shape[1] :].tolist()


class Reference(whole_passes.Reference):
    """The decoder of the inputs of one prompt."""

    def __init__(self, model, name, inputs):
        self.vision = inputs["input_ids"][0] == IMAGE
        super().__init__(model, name, image=bool(self.vision.any()))
        self.inputs = inputs

    def run(self, stream, tokens):
        inputs = dict(self.inputs)
        if stream == "text":
            inputs = {"input_ids": self.without_images()}
        elif stream == "noisy":
            inputs |= {key: noise(inputs, key) for key in inputs if key.startswith("pixel_values")}
        elif stream != "first":
            other = second(self.name, inputs).get("second_inputs", {})
            inputs = dict(other) if "input_ids" in other else {**inputs, **other}
        ids = torch.cat([inputs["input_ids"], tokens.unsqueeze(0)], 1)
        for key in ("token_type_ids", "mm_token_type_ids"):
            if key in inputs:
                inputs[key] = torch.nn.functional.pad(inputs[key], (0, len(tokens)))
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for part in self.model.modules():
            if hasattr(part, "rope_deltas"):
                part.rope_deltas = None
        return self.model(**inputs, use_cache=False, output_hidden_states=True)

    def without_images(self):
        """The tokens (1, T) of the prompt's text."""
        fields = self.model.config.to_dict()
        marks = {fields.get("vision_start_token_id"), fields.get("boi_token_index")}
        gone = {IMAGE, VISION_START, VISION_END} if VISION_START in marks else {IMAGE}
        words = self.inputs["input_ids"][0].tolist()
        return torch.tensor([[word for word in words if word not in gone]])

    def changes(self, stream):
        """What VISTA, PAI and SID do in a pass."""
        layers, start = self.decoder.layers, len(self.vision) - 1
        if (self.name, stream) == ("PAI", "first"):
            return whole_passes.raised(layers[2:], self.vision, start, CONFIGS["PAI"].alpha)
        if (self.name, stream) == ("SID", "second"):
            return whole_passes.least_attended(layers, self.vision, start, CONFIGS["SID"].rank)
        return super().changes(stream)


def noise(inputs, name):
    """The images of one prompt with noise, each drawn anew."""
    values = inputs[name]
    if values.ndim == 2:
        pieces = values.split(inputs["image_grid_thw"].prod(1).tolist())
    else:
        pieces = values.flatten(0, -4)
    together = [with_noise(piece) for piece in pieces]
    return torch.cat(together) if values.ndim == 2 else torch.stack(together).view_as(values)


def expected(model, name, inputs, **settings):
    """The reference's new tokens."""
    return Reference(model, name, inputs).generate(ASKED["suppress_tokens"], **settings)


def mixed_up(model, row, count):
    """Whether rows that plain `generate` makes of a prompt begin otherwise than it does alone."""
    begun = [
        model.generate(
            **row,
            num_beams=beams,
            max_new_tokens=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        ).logits[0]
        for beams in (1, count)
    ]
    return float((begun[0] - begun[1]).abs().max()) > 1e-3


def refused(model, config, inputs, message, **settings):
    with pytest.raises(ValueError, match=message), revisit.attach(model, config):
        model.generate(**{**inputs, "do_sample": False, "max_new_tokens": 2, **settings})
