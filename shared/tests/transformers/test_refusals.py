"""Decodings that cannot be joined are refused before the model runs, or are right."""

import pytest

import revisit
from releases import RELEASE
from routes import CONFIG, both_routes, enabling, plain
from small_llama import PROMPTS, hooks, make_model


@pytest.fixture(scope="module")
def model():
    return make_model()


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
    if named == "dola_layers" and RELEASE < (4, 43):
        pytest.skip("this release has no DoLa")
    if named == "custom_generate" and RELEASE < (4, 52):
        pytest.skip("this release has no custom_generate")
    if named == "prompt_lookup_num_tokens" and RELEASE < (4, 37):
        pytest.skip("this release has no prompt lookup")
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


needs_batching = pytest.mark.skipif(RELEASE < (5, 23), reason="its batching is of another kind")


@needs_batching
@pytest.mark.parametrize("block", [revisit.attach, enabling])
def test_continuous_batching_is_refused_from_both_sides(block):
    from transformers import ContinuousBatchingConfig

    model = make_model()
    settings = {"continuous_batching_config": ContinuousBatchingConfig(num_blocks=16)}
    given = {"inputs": PROMPTS[:1], "max_new_tokens": 2, **settings}
    with block(model, CONFIG), pytest.raises(ValueError, match="no continuous batching"):
        model.generate_batch(**given)
    with (
        model.continuous_batching_context_manager(warmup=False, **settings),
        pytest.raises(ValueError, match="manager of this LlamaForCausalLM is open"),
    ):
        block(model, CONFIG).__enter__()
    manager = model.init_continuous_batching(**settings)
    with block(model, CONFIG), pytest.raises(ValueError, match="no continuous batching"):
        manager.start()  # made before the block
    manager.stop(block=True)  # of a start that was not refused
    assert len(model.generate_batch(persistent_manager=True, **given)) == 1
    before = dict(vars(model))
    # The manager that it keeps has its processors already.
    with block(model, CONFIG), pytest.raises(ValueError, match="no continuous batching"):
        model.generate_batch(**given)
    assert vars(model) == before
    model.destroy_cached_continuous_batching_manager()


@both_routes
def test_training_with_gradient_checkpointing_is_right_or_refused(route):
    model = make_model()
    expected = route(model, PROMPTS).tolist()
    greedy = plain(model, PROMPTS).tolist()
    model.gradient_checkpointing_enable()
    model.train()
    ran = []
    try:
        right = plain(model, PROMPTS).tolist() == greedy
    except (ValueError, RuntimeError):
        right = False
    handle = model.register_forward_pre_hook(lambda *_: ran.append(1))
    if right:
        assert route(model, PROMPTS).tolist() == expected
    else:
        with pytest.raises(ValueError, match="pass use_cache=False"):
            route(model, PROMPTS)
        assert not ran
    handle.remove()
    assert route(model, PROMPTS, use_cache=False).tolist() == expected
    assert route(model.eval(), PROMPTS).tolist() == expected
