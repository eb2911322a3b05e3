"""ReVisiT in Qwen2.5-VL: batches, images of any size, videos, and what the fork leaves alone."""

import copy
import math

import pytest
from transformers import GenerationConfig
from transformers.generation.configuration_utils import GenerationMode

from prompts import BOTH, FILM, NOTHING, ONE, PAD, THREE, batch

REVISIT = {"use_revisit": True, "relative_top": 0.01, "revisit_no_vision": "plain"}
TRACE = {"revisit_trace": True, "return_dict_in_generate": True}


def new_tokens(model, prompts, **arguments):
    inputs = batch(prompts)
    arguments = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD, **arguments}
    return model.generate(**inputs, **arguments)[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        REVISIT,
        {**REVISIT, "early_exit_layers": "last"},
        {**REVISIT, "num_beams": 3},
        {**REVISIT, "repetition_penalty": 1.4},
        {**REVISIT, "use_cache": False},
    ],
    ids=str,
)
def test_a_padded_batch_gives_row_by_row_what_each_prompt_gives_alone(golden_model, arguments):
    prompts = [NOTHING, ONE, THREE, FILM, BOTH]
    together = new_tokens(golden_model, prompts, **arguments)
    for row, prompt in enumerate(prompts):
        alone = new_tokens(golden_model, [prompt], **arguments)[0]
        assert together[row] == alone + [PAD] * (len(together[row]) - len(alone))


def test_all_layers_are_the_default(golden_model):
    assert GenerationConfig().early_exit_layers == "all"
    default = new_tokens(golden_model, [ONE], use_revisit=True, relative_top=0.01)
    assert default == new_tokens(golden_model, [ONE], **REVISIT, early_exit_layers="all")
    assert default != new_tokens(golden_model, [ONE], **REVISIT, early_exit_layers=[1, 3])


def test_a_seed_decides_what_is_drawn_at_random(golden_model):
    """Each prompt draws on from the seed; a seed that was not used before begins anew."""

    def choices(model, seed):
        settings = {"revisit_selection": "random", "revisit_seed": seed, "do_sample": False}
        output = model.generate(**batch([ONE]), **REVISIT, **TRACE, **settings, max_new_tokens=6)
        return [(step.layer, step.vision_token) for step in output.revisit_trace[0]]

    models = [copy.deepcopy(golden_model) for _ in range(2)]
    draws = [[choices(model, 11), choices(model, 11), choices(model, 12)] for model in models]
    assert draws[0] == draws[1]
    first, second, other = draws[0]
    assert first != second != other != first


def test_without_use_revisit_no_setting_of_it_changes_a_token(golden_model):
    plain = new_tokens(golden_model, [ONE, THREE])
    assert plain == new_tokens(golden_model, [ONE, THREE], relative_top=0.5)
    assert plain != new_tokens(golden_model, [ONE, THREE], use_revisit=True, relative_top=0.5)


def test_an_explicit_setting_is_not_undone_by_the_model_s_defaults(golden_model):
    model = copy.deepcopy(golden_model)
    defaults = {"do_sample": True, "temperature": 50.0, "repetition_penalty": 1.4}
    model.generation_config.update(**defaults, _from_model_config=False)
    settings = {"do_sample": False, "temperature": 1.0, "repetition_penalty": 1.0}
    tokens = new_tokens(model, [ONE], **REVISIT, **settings)
    penalized = new_tokens(model, [ONE], **REVISIT, do_sample=False)
    assert tokens == new_tokens(golden_model, [ONE], **REVISIT)
    assert penalized == new_tokens(golden_model, [ONE], **REVISIT, repetition_penalty=1.4)


def test_the_trace_tells_image_frame_row_and_column(golden_model):
    output = golden_model.generate(**batch([THREE, BOTH]), **REVISIT, **TRACE, max_new_tokens=8)
    sizes = [[(1, 2, 2), (1, 3, 5), (1, 4, 2)], [(2, 2, 2), (1, 2, 4)]]
    seen = set()
    for row, grids in zip(output.revisit_trace, sizes, strict=True):
        for step in row:
            before = sum(math.prod(grid) for grid in grids[: step.image])
            frames, rows, columns = grids[step.image]
            frame, y, x = step.patch
            assert 0 <= frame < frames and 0 <= y < rows and 0 <= x < columns
            assert step.vision_token == before + (frame * rows + y) * columns + x
            seen.add((step.image, step.patch))
    assert len(seen) > 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"relative_top": 1.5}, "alpha"),
        ({"early_exit_layers": "middle"}, "layers"),
        ({"early_exit_layers": [99]}, "out of range"),
        ({"early_exit_layers": [6]}, "say 'last'"),
        ({"revisit_divergence": "kl"}, "divergence"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
        ({"dola_layers": "low"}, "dola_layers"),
        ({"revisit_trace": True}, "return_dict_in_generate"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_is_refused_by_name(golden_model, setting, message):
    with pytest.raises(ValueError, match=message):
        new_tokens(golden_model, [ONE], use_revisit=True, **setting)


def test_a_prompt_without_an_image_is_refused_unless_plain_is_asked_for(golden_model):
    with pytest.raises(ValueError, match="no vision token"):
        new_tokens(golden_model, [NOTHING], use_revisit=True)
    assert new_tokens(golden_model, [NOTHING], **REVISIT) == new_tokens(golden_model, [NOTHING])


def test_the_generation_mode_knows_revisit():
    config = GenerationConfig(use_revisit=True)
    assert config.get_generation_mode() == GenerationMode.REVISIT_GENERATION
    assert GenerationConfig().get_generation_mode() == GenerationMode.GREEDY_SEARCH
