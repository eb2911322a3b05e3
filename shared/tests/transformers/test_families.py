"""Every family that Transformers maps to image-text-to-text: exact, or refused with the reason."""

import os
from pathlib import Path

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as MAPPED,
)

import families
import models_page
import revisit
from dense_generation import ALPHA, SETTINGS, check, decode, new_tokens
from families import FAMILIES, Broken, Exact, Refused, batch, made
from releases import RELEASE
from revisit import ReVisiTConfig
from revisit.transformers.vision_positions import locate, vision_token_ids
from tiny_configs import AUDIO, IMAGE, LAYERS, NEWER, VIDEO

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
MIXED = [name for name in families.MIXED if name in MAPPED]
# The trace of each family, as the tests below saw it.
TRACES: dict[str, str] = {}


def names(kind):
    """The families of this kind that this Transformers has."""
    rows = [(name, row) for name, row in FAMILIES.items() if isinstance(row, kind)]
    return [name for name, row in rows if (getattr(row, "model_type", "") or name) in MAPPED]


def test_every_family_that_transformers_maps_has_a_row():
    unknown = sorted(set(MAPPED) - set(FAMILIES))
    assert not unknown, (
        f"Transformers {transformers.__version__} maps {unknown}. Give each a row in "
        "shared/tests/support/families.py: Exact(SQUARE) builds a tiny model from its config. "
        "Where it is not exact, mend how its parts are found, or use Refused or NotBuilt"
    )


@pytest.mark.skipif(RELEASE < (5, 23), reason="older releases have fewer families")
def test_at_least_65_families_are_exact():
    assert len(names(Exact)) >= 65


@pytest.mark.parametrize("name", names(Exact))
def test_a_family_equals_the_dense_computation_alone_and_padded(name):
    family = FAMILIES[name]
    model, rows = made(name)
    arguments = family.arguments(model, rows[1])
    for layers in family.layers:
        _, trace = check(model, rows[1], layers, **family.reference, **arguments)
    config = ReVisiTConfig(alpha=ALPHA, trace=True)
    _, (of_one,) = decode(model, rows[0], config, **family.arguments(model, rows[0]))
    one_image = family.images[0] == 1 and name != "fast_vlm"  # whose tower is another one here
    TRACES[name] = models_page.location(trace, of_one if one_image else trace)
    if family.padded:
        check_padded(family, model, rows)
    else:
        together = model_logits(model, batch(rows))
        alone = torch.stack([model_logits(model, inputs)[0] for inputs in rows])
        assert not torch.allclose(together, alone, atol=1e-4), "padding changes nothing"
    if "all" not in family.layers:
        with pytest.raises(ValueError, match="choose layers='last'"):
            decode(model, rows[1], ReVisiTConfig(layers="all"), **arguments)


def model_logits(model, inputs):
    """The model's logits (rows, steps, V), decoding greedily."""
    settings = {**SETTINGS, "max_new_tokens": 3, "output_logits": True}
    return torch.stack(model.generate(**inputs, **settings).logits, 1)


def check_padded(family, model, rows):
    """A padded batch gives row by row what each prompt gives alone."""
    config = ReVisiTConfig(layers=family.layers[-1], alpha=ALPHA, trace=True)
    whole = batch(rows)
    together, traces = decode(model, whole, config, **family.arguments(model, whole))
    for number, inputs in enumerate(rows):
        alone, (trace,) = decode(model, inputs, config, **family.arguments(model, inputs))
        assert new_tokens(together)[number] == new_tokens(alone)[0]
        for step, other in zip(trace, traces[number], strict=True):
            near = pytest.approx(other.divergence, abs=1e-4)
            assert step == other._replace(divergence=near, image=step.image, patch=step.patch)


@pytest.mark.parametrize("name", names(Refused))
def test_a_family_is_refused_before_anything_is_generated(name):
    model = families.make(name)
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=FAMILIES[name].message), revisit.attach(model):
        model.generate(**families.text(), max_new_tokens=2)


@pytest.mark.parametrize("name", ["blip-2", "instructblip"])
def test_a_decoder_with_an_encoder_is_refused_where_others_of_the_family_are_not(name):
    model = families.default_model(name, text_config={"model_type": "t5"})
    with pytest.raises(ValueError, match="is an encoder-decoder"):
        revisit.enable(model)


@pytest.mark.parametrize("name", names(Broken))
def test_a_family_that_this_release_breaks_is_noticed_once_it_is_mended(name):
    model = families.make(name)
    inputs = families.prompts(FAMILIES[name].family, model)[0]
    with pytest.raises(AttributeError, match=FAMILIES[name].error):
        model.generate(**inputs, max_new_tokens=1)


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("layers", ["last", range(LAYERS + 1)], ids=str)
def test_images_and_videos_of_several_sizes_in_one_prompt(name, layers):
    model, _ = made(name)
    inputs = families.mixed_prompt(FAMILIES[name], model)
    reference = {**FAMILIES[name].reference, "token": [IMAGE, VIDEO]}
    check(model, inputs, layers, **reference)


@pytest.mark.parametrize("name", [name for name in MIXED if "omni" in name])
def test_audio_tokens_are_no_vision_tokens(name):
    model, _ = made(name)
    ids = torch.tensor([[1, AUDIO, AUDIO, 20, IMAGE, IMAGE, 21]])
    assert AUDIO not in vision_token_ids(model.config)
    fields = ("audio_token_id", "audio_token_index")
    assert AUDIO in [getattr(model.config, field, None) for field in fields]
    assert locate(model, {"input_ids": ids}, None).mask.tolist() == (ids == IMAGE).tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "idefics3"])
def test_half_precision_equals_the_dense_computation_within_its_rounding(name, dtype):
    inputs = dict(made(name)[1][1])
    for key, value in inputs.items():
        inputs[key] = value.to(dtype) if value.is_floating_point() else value
    output, _ = check(families.make(name).to(dtype), inputs, "all", rounding=0.02)
    assert all(scores.dtype == torch.float32 for scores in output.scores)


# Their `generate` repeats images for beams, encodes them first, or passes the prompt on.
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "idefics3", "blip-2"])
def test_enable_gives_what_attach_gives(name):
    model, rows = made(name)
    config = ReVisiTConfig(layers="all", alpha=ALPHA, trace=True)
    for inputs in (rows[1], batch(rows)):
        attached, expected = decode(model, inputs, config)
        revisit.enable(model, config)
        output = model.generate(**inputs, **SETTINGS)
        revisit.disable(model)
        assert output.sequences.tolist() == attached.sequences.tolist()
        assert output.revisit_trace == expected


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_vl, video", "qwen2_5_vl", "qwen3_vl", "glm4v"])
def test_a_trace_tells_where_in_which_image_the_vision_tokens_stand(name, num_beams):
    model, rows = made(name)
    images = FAMILIES[name].images
    config = ReVisiTConfig(alpha=ALPHA, trace=True)
    if name == "glm4v" and num_beams > 1 and NEWER:
        # Its `generate` repeats each image separately, so that beams get the wrong ones.
        with pytest.raises(ValueError, match=r"rows of prompts \[1\] .* read different images"):
            decode(model, batch(rows), config, num_beams=num_beams)
        rows, images = [rows[0], rows[2]], [1, 1]
    _, trace = decode(model, batch(rows), config, num_beams=num_beams)
    assert len(trace) == len(rows)
    for count, steps in zip(images, trace, strict=True):
        assert steps
        assert all(step.image in range(count) and step.patch is not None for step in steps)


def test_the_page_of_models_is_up_to_date():
    """Runs last: `REVISIT_WRITE_MODELS=1` writes the page instead."""
    if set(TRACES) != set(names(Exact)):
        pytest.skip("the page is compared where every family ran")
    before = PAGE.read_text() if PAGE.exists() else ""
    page = models_page.page(before, ".".join(map(str, RELEASE)), list(MAPPED), TRACES)
    if os.environ.get("REVISIT_WRITE_MODELS"):
        PAGE.write_text(page)
    assert before == page or os.environ.get("REVISIT_WRITE_MODELS"), (
        "docs/models.md is not what the tests saw: run them with REVISIT_WRITE_MODELS=1"
    )
