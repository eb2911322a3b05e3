"""Every family that Transformers maps to image-text-to-text: exact, or refused with the reason."""

import os
from pathlib import Path

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as MAPPED,
)

import models_page
import revisit
from exact import ALPHA, check, decode, new_tokens
from families import IMAGE, batch, prompts
from matrix import AUDIO_KEYS, MIXED, ROWS, Broken, Exact, Refused, mixed_prompt
from releases import RELEASE
from revisit import ReVisiTConfig
from revisit.transformers.vision_positions import locate, vision_token_ids
from shrunk import AUDIO

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
# What the tests below saw of each family: its trace.
SEEN: dict[str, str] = {}


def keys(kind):
    return [key for key in MAPPED if isinstance(ROWS.get(key), kind)]


def test_every_family_that_transformers_maps_has_a_row():
    unknown = sorted(set(MAPPED) - set(ROWS))
    assert not unknown, (
        f"Transformers {transformers.__version__} maps {unknown}, of which ReVisiT's tests know "
        "nothing. Give each a row in shared/tests/transformers/matrix.py: "
        "_exact(KEY, _pixels(3, 16, 16)) builds a tiny one from its config; where it is not exact, "
        "mend how its parts are found, or say Refused or NotBuilt with the reason"
    )


@pytest.mark.skipif(RELEASE < (5, 23), reason="older releases have fewer families")
def test_at_least_65_families_are_exact():
    assert len(keys(Exact)) >= 65


@pytest.mark.parametrize("key", keys(Exact))
def test_a_family_equals_the_dense_computation_alone_and_padded(key):
    row = ROWS[key]
    family = row.family
    model = family.make()
    rows = prompts(family, model)
    for layers in row.layers:
        given = row.given(model, rows[1])
        _, trace = check(
            model,
            rows[1],
            layers,
            token=family.token,
            finish=family.finish,
            unnormed=family.unnormed,
            **given,
        )
    config = ReVisiTConfig(alpha=ALPHA, trace=True)
    _, (of_one,) = decode(model, rows[0], config, **row.given(model, rows[0]))
    own_tower = family.images[0] == 1 and key != "fast_vlm"
    SEEN[key] = models_page.tells(trace, of_one if own_tower else trace)
    if family.padded:
        check_padded(row, model, rows, row.layers[-1])
    else:
        own = own_logits(model, batch(rows))
        each = [own_logits(model, inputs)[0] for inputs in rows]
        assert not torch.allclose(own, torch.stack(each), atol=1e-4), "padding changes nothing"
    if "all" not in row.layers:
        with pytest.raises(ValueError, match="choose layers='last'"):
            decode(model, rows[1], ReVisiTConfig(layers="all"), **row.given(model, rows[1]))


def own_logits(model, inputs):
    """The logits (rows, steps, V) that the model itself gives, decoding greedily."""
    output = model.generate(
        **inputs,
        max_new_tokens=3,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(output.logits, 1)


def check_padded(row, model, rows, layers):
    """A padded batch gives row by row what each prompt gives alone."""
    config = ReVisiTConfig(layers=layers, alpha=ALPHA, trace=True)
    whole = batch(rows)
    together, traces = decode(model, whole, config, **row.given(model, whole))
    for number, inputs in enumerate(rows):
        alone, (trace,) = decode(model, inputs, config, **row.given(model, inputs))
        assert new_tokens(together)[number] == new_tokens(alone)[0]
        for mine, other in zip(trace, traces[number], strict=True):
            assert mine.candidates == other.candidates
            assert (mine.layer, mine.vision_token) == (other.layer, other.vision_token)


@pytest.mark.parametrize("key", keys(Refused))
def test_a_family_is_refused_before_anything_is_generated(key):
    row = ROWS[key]
    model = row.make()
    ran = []
    model.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(ValueError, match=row.message), revisit.attach(model):
        model.generate(input_ids=torch.tensor([[1, 20, IMAGE, 21]]), max_new_tokens=2)
    assert not ran


@pytest.mark.parametrize("key", keys(Broken))
def test_a_family_that_this_release_breaks_is_noticed_once_it_is_mended(key):
    row = ROWS[key]
    model = row.family.make()
    inputs = prompts(row.family, model)[0]
    with pytest.raises(AttributeError, match=row.error):
        model.generate(**inputs, max_new_tokens=1)


@pytest.mark.parametrize("key", [key for key in MIXED if key in MAPPED])
@pytest.mark.parametrize("layers", ["last", "all"])
def test_images_and_videos_of_several_sizes_in_one_prompt(key, layers):
    family = ROWS[key].family
    model = family.make()
    inputs, tokens = mixed_prompt(family, model)
    check(
        model,
        inputs,
        layers,
        token=tokens,
        finish=family.finish,
        unnormed=family.unnormed,
        **ROWS[key].given(model, inputs),
    )


@pytest.mark.parametrize("key", [key for key in AUDIO_KEYS if key in MAPPED])
def test_audio_tokens_are_no_vision_tokens(key):
    model = ROWS[key].family.make()
    ids = torch.tensor([[1, AUDIO, AUDIO, 20, IMAGE, IMAGE, 21]])
    assert AUDIO not in vision_token_ids(model.config)
    told = [getattr(model.config, name, None) for name in ("audio_token_id", "audio_token_index")]
    assert AUDIO in told
    assert locate(model, {"input_ids": ids}, None).mask.tolist() == (ids == IMAGE).tolist()


def test_the_page_of_models_is_up_to_date():
    """Runs last: `REVISIT_WRITE_MODELS=1` writes the page instead."""
    if set(SEEN) != set(keys(Exact)):
        pytest.skip("the page is compared where every family ran")
    before = PAGE.read_text() if PAGE.exists() else ""
    page = models_page.page(before, ".".join(map(str, RELEASE)), list(MAPPED), SEEN)
    if os.environ.get("REVISIT_WRITE_MODELS"):
        PAGE.write_text(page)
    assert before == page or os.environ.get("REVISIT_WRITE_MODELS"), (
        "docs/models.md is not what the tests saw: run them with REVISIT_WRITE_MODELS=1"
    )
