"""Decodings that cannot be joined are refused before the model runs, or are right."""

import pytest

import revisit
from releases import RELEASE
from routes import CONFIG, both_routes, enabling, plain
from small_llama import PROMPTS, hooks, make_model

SINCE = {
    "dola_layers": (4, 43),
    "custom_generate": (4, 52),
    "prompt_lookup_num_tokens": (4, 37),
}


@both_routes
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens"),
        ({"assistant_model": make_model(1)}, "assistant_model"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, "num_beam_groups"),
        ({"num_beams": 2, "early_stopping": True}, "early_stopping=False"),
        ({"dola_layers": "low"}, "dola_layers"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"cache_implementation": "paged"}, "cache_implementation='paged'"),
        ({"custom_generate": "some/folder"}, "custom_generate"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_decodings_are_refused_before_the_model_runs(model, route, arguments, named):
    if SINCE.get(named, RELEASE) > RELEASE:
        pytest.skip(f"this release has no {named}")
    ran, before = [], hooks(model)
    handle = model.register_forward_pre_hook(lambda *_: ran.append(1))
    try:
        # The release may refuse by itself what it no longer has.
        with pytest.raises(ValueError, match=rf"{named}|trust_remote_code|group"):
            route(model, PROMPTS[:1], **arguments)
    finally:
        handle.remove()
    assert not ran
    assert hooks(model) == before


@pytest.mark.skipif(RELEASE < (5, 23), reason="its batching is of another kind")
@pytest.mark.parametrize("block", [revisit.attach, enabling])
def test_continuous_batching_is_refused_from_both_sides(block):
    from transformers import ContinuousBatchingConfig

    model = make_model()
    settings = {"continuous_batching_config": ContinuousBatchingConfig(num_blocks=16)}
    arguments = {"inputs": PROMPTS[:1], "max_new_tokens": 2, **settings}
    with block(model, CONFIG), pytest.raises(ValueError, match="no continuous batching"):
        model.generate_batch(**arguments)
    with (
        model.continuous_batching_context_manager(warmup=False, **settings),
        pytest.raises(ValueError, match="manager of this LlamaForCausalLM is open"),
    ):
        block(model, CONFIG).__enter__()
    manager = model.init_continuous_batching(**settings)
    with block(model, CONFIG), pytest.raises(ValueError, match="no continuous batching"):
        manager.start()  # made before the block
    manager.stop(block=True)  # of a start that was not refused
    assert len(model.generate_batch(persistent_manager=True, **arguments)) == 1
    before = dict(vars(model))
    # The manager that it keeps has its processors already.
    with block(model, CONFIG), pytest.raises(ValueError, match="no continuous batching"):
        model.generate_batch(**arguments)
    assert vars(model) == before
    model.destroy_cached_continuous_batching_manager()


@both_routes
def test_training_with_gradient_checkpointing_is_right_or_refused(expected, greedy, route):
    model = make_model()
    model.gradient_checkpointing_enable()
    model.train()
    ran = []
    try:
        right = plain(model, PROMPTS) == greedy
    except (ValueError, RuntimeError):
        right = False
    handle = model.register_forward_pre_hook(lambda *_: ran.append(1))
    if right:
        assert route(model, PROMPTS) == expected
    else:
        with pytest.raises(ValueError, match="pass use_cache=False"):
            route(model, PROMPTS)
        assert not ran
    handle.remove()
    assert route(model, PROMPTS, use_cache=False) == expected
    assert route(model.eval(), PROMPTS) == expected
