"""ReVisiT on the families of Transformers: tiny models against a dense float64 computation."""

import accelerate
import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import LogitsProcessor, LogitsProcessorList

import families
import revisit
from exact import ALPHA, ASKED, STEPS, check, decode, new_tokens, reported
from families import BOS, FAMILIES, IMAGE, LAYERS, batch, prompts, same, softcap
from releases import RELEASE
from revisit import ReVisiTConfig
from revisit.transformers.model_parts import is_tied

MADE = {}


def made(name):
    """A family, its model and its prompts; each model is made once."""
    chosen = FAMILIES[name]
    if not hasattr(transformers, chosen.needs):
        pytest.skip(f"transformers {transformers.__version__} has no {chosen.needs}")
    if name == "Llama 4" and RELEASE >= (5, 24):
        pytest.skip("broken in this transformers itself: see matrix.py")
    if name not in MADE:
        model = chosen.make()
        MADE[name] = model, prompts(chosen, model)
    return chosen, *MADE[name]


@pytest.fixture(params=FAMILIES)
def family(request):
    return made(request.param)


class Kept(LogitsProcessor):
    """Keeps the vision states that ReVisiT has recorded."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, input_ids, scores):
        self.states = [states.double().numpy() for states in self.processor.vision_states]
        return scores


def test_vision_states_are_the_hidden_states_that_transformers_reports(family):
    chosen, model, rows = family
    layers = list(range(LAYERS + 1))
    with revisit.attach(model, ReVisiTConfig(layers=layers)) as run:
        kept = Kept(run)
        model.generate(
            **rows[1],
            max_new_tokens=1,
            do_sample=False,
            logits_processor=LogitsProcessorList([kept]),
        )
    states, _ = reported(model, rows[1], [20], chosen.unnormed)
    positions = (rows[1]["input_ids"][0] == chosen.token).nonzero().squeeze(1)
    expected = np.concatenate([state[positions] for state in states])
    np.testing.assert_allclose(kept.states[0], expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("layers", ["last", "all"])
def test_generation_equals_a_dense_float64_computation(family, layers):
    chosen, model, rows = family
    check(
        model,
        rows[1],
        layers,
        token=chosen.token,
        finish=chosen.finish,
        unnormed=chosen.unnormed,
    )


@pytest.mark.parametrize("layers", ["last", "all"])
def test_enable_gives_what_attach_gives(family, layers):
    _, model, rows = family
    config = ReVisiTConfig(layers=layers, alpha=ALPHA, trace=True)
    for inputs in (rows[1], batch(rows)):
        attached, expected = decode(model, inputs, config)
        revisit.enable(model, config)
        output = model.generate(**inputs, **ASKED)
        revisit.disable(model)
        assert output.sequences.tolist() == attached.sequences.tolist()
        assert output.revisit_trace == expected


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize(
    "name", ["Qwen2-VL", "Qwen2-VL, video", "Qwen2.5-VL", "Qwen3-VL", "GLM-4V"]
)
def test_a_trace_tells_where_in_which_image_the_vision_tokens_stand(name, num_beams):
    chosen, model, rows = made(name)
    config = ReVisiTConfig(alpha=ALPHA, trace=True)
    if name == "GLM-4V" and num_beams > 1 and families.NEWER:
        # Its `generate` repeats each image by itself, so that beams get each other's.
        with pytest.raises(ValueError, match=r"rows of prompts \[1\] .* read different images"):
            decode(model, batch(rows), config, num_beams=num_beams)
        rows = [rows[0], rows[2]]
        chosen = chosen._replace(images=(1, 1))
    _, trace = decode(model, batch(rows), config, num_beams=num_beams)
    assert len(trace) == len(rows)
    for count, steps in zip(chosen.images, trace, strict=True):
        assert steps
        assert all(step.image in range(count) for step in steps)
        assert all(step.patch is not None for step in steps)


@pytest.mark.parametrize("layers", ["last", "all"])
def test_a_padded_batch_gives_row_by_row_what_each_prompt_gives_alone(family, layers):
    chosen, model, rows = family
    if not chosen.padded:
        pytest.skip(f"padding changes the logits of this transformers' own {chosen.needs}")
    config = ReVisiTConfig(layers=layers, alpha=ALPHA, trace=True)
    together, traces = decode(model, batch(rows), config)
    for row, inputs in enumerate(rows):
        alone, (trace,) = decode(model, inputs, config)
        assert new_tokens(together)[row] == new_tokens(alone)[0]
        for mine, other in zip(trace, traces[row], strict=True):
            assert mine.candidates == other.candidates
            assert (mine.layer, mine.vision_token) == (other.layer, other.vision_token)
            assert mine.divergence == pytest.approx(other.divergence, abs=1e-4)


def test_a_config_that_names_no_image_token_asks_for_a_mask():
    model = families.kosmos2()
    inputs = words([BOS, 20, *[IMAGE] * families.QUERIES, 21, 22])
    mask = inputs["input_ids"] == IMAGE
    torch.manual_seed(2)
    inputs["pixel_values"] = torch.randn(1, 3, 16, 16)
    inputs["image_embeds_position_mask"] = mask.long()
    with pytest.raises(ValueError, match="Pass vision_mask"):
        decode(model, inputs, ReVisiTConfig())
    check(model, inputs, "all", vision_mask=mask)


# LM heads


PROMPT = [BOS, 20, *[IMAGE] * 6, 21, *[IMAGE] * 5, 22, 23]


def words(ids=PROMPT):
    input_ids = torch.tensor([ids])
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def with_bias(model):
    torch.manual_seed(1)
    model.lm_head.bias = nn.Parameter(torch.randn(families.VOCABULARY))
    return model


HEADS = {
    "untied": (lambda: families.language_model("Llama"), same),
    "tied": (lambda: families.language_model("Llama", tie_word_embeddings=True), same),
    "biased": (lambda: with_bias(families.language_model("Llama")), same),
    "soft-capped": (
        lambda: families.language_model("Gemma2", final_logit_softcapping=3.0),
        softcap(3.0),
    ),
    "multiplied": (
        lambda: families.language_model("Cohere", logit_scale=0.25),
        lambda product: 0.25 * product,
    ),
    "divided": (
        lambda: families.language_model("Granite", logits_scaling=4.0),
        lambda product: product / 4,
    ),
}


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("name", HEADS)
def test_lm_heads_equal_the_dense_computation(name, layers):
    make, finish = HEADS[name]
    model = make()
    assert is_tied(model) is (name in ("tied", "soft-capped", "multiplied"))
    check(model, words(), layers, finish=finish)


class Halved(nn.Linear):
    """A head that does to its logits what no config tells."""

    def forward(self, state):
        return 0.5 * super().forward(state)


def test_logits_that_no_config_explains_are_refused_and_can_be_explained_by_the_caller():
    model = families.language_model("Llama")
    head = Halved(32, families.VOCABULARY, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    model.config.mean_logit_of_training = 0.5  # a number that fits by chance
    config = ReVisiTConfig(alpha=ALPHA)
    with pytest.raises(ValueError, match=r"Pass lm_head=revisit\.LMHead"):
        decode(model, words(), config)
    told = revisit.LMHead(head.weight.detach(), scale=0.5)
    check(model, words(), "last", finish=lambda product: 0.5 * product, lm_head=told)


class Stretched(nn.Linear):
    """A head whose logits are a little larger than its product."""

    def forward(self, state):
        return 1.03 * super().forward(state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_scale_near_one_is_told_from_the_rounding_of_half_precision(dtype):
    model = families.language_model("Llama").to(dtype)
    expected = model.lm_head.weight
    decode(model, words(), ReVisiTConfig(alpha=ALPHA))
    model.lm_head = Stretched(32, families.VOCABULARY, bias=False)
    model.lm_head.weight = expected
    with pytest.raises(ValueError, match=r"Pass lm_head=revisit\.LMHead"):
        decode(model, words(), ReVisiTConfig(alpha=ALPHA))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["LLaVA", "Qwen2.5-VL", "Gemma 3", "Idefics3"])
def test_half_precision_equals_the_dense_computation_within_its_rounding(name, dtype):
    chosen, _, rows = made(name)
    model = chosen.make().to(dtype)
    inputs = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in rows[1].items()
    }
    output, _ = check(model, inputs, "all", rounding=0.02)
    assert all(scores.dtype == torch.float32 for scores in output.scores)


# Weights that are elsewhere, or not floating point


def test_layers_offloaded_to_the_disk_give_what_they_give_in_memory(tmp_path):
    chosen, model, rows = made("LLaVA")
    config = ReVisiTConfig(layers="all", alpha=ALPHA, trace=True)
    expected, trace = decode(model, rows[1], config)
    dispatched = chosen.make()
    places = {
        "model.vision_tower": "disk",
        "model.multi_modal_projector": "cpu",
        "lm_head": "cpu",
    }
    for name, _ in dispatched.model.language_model.named_children():
        places[f"model.language_model.{name}"] = "disk" if name == "layers" else "cpu"
    accelerate.dispatch_model(dispatched, places, offload_dir=str(tmp_path))
    assert next(dispatched.model.language_model.layers.parameters()).is_meta
    output, other = decode(dispatched, rows[1], config)
    assert output.sequences.tolist() == expected.sequences.tolist()
    assert other == trace


def test_a_decoder_offloaded_to_memory_gives_what_it_gives_without():
    chosen, model, rows = made("Qwen2.5-VL")
    config = ReVisiTConfig(layers="all", alpha=ALPHA, trace=True)
    expected, trace = decode(model, rows[1], config)
    offloaded = chosen.make()
    accelerate.cpu_offload(offloaded.model.language_model.layers, "cpu")
    assert next(offloaded.model.language_model.layers.parameters()).is_meta
    output, other = decode(offloaded, rows[1], config)
    assert output.sequences.tolist() == expected.sequences.tolist()
    assert other == trace


class Int8Linear(nn.Module):
    """A linear layer that keeps its weight as int8 and one scale for each row."""

    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.detach()
        self.scale = weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (weight / self.scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, inputs):
        return nn.functional.linear(inputs, self.weight * self.scale, self.bias)


def quantize(module):
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
        else:
            quantize(child)


@pytest.mark.parametrize("layers", ["last", "all"])
def test_quantized_layers_equal_the_dense_computation(layers):
    chosen, _, rows = made("LLaVA")
    model = chosen.make()
    quantize(model.model.language_model.layers)
    assert any(isinstance(part, Int8Linear) for part in model.modules())
    check(model, rows[1], layers)


def offload_head(model):
    """Returns the weight that the model goes on with."""
    weight = model.lm_head.weight.detach().clone()
    accelerate.cpu_offload(model, "cpu")
    return weight


def quantize_head(model):
    model.lm_head = Int8Linear(model.lm_head)
    return model.lm_head.weight * model.lm_head.scale


@pytest.mark.parametrize("away", [offload_head, quantize_head])
def test_an_lm_head_that_is_not_there_is_refused_until_it_is_given(away):
    chosen, _, rows = made("LLaVA")
    model = chosen.make()
    weight = away(model).detach()
    passes = []
    counting = model.model.register_forward_hook(lambda *_: passes.append(1))
    config = ReVisiTConfig(alpha=ALPHA)
    message = "LM head .* has no floating-point weight in memory"
    with pytest.raises(ValueError, match=message):
        decode(model, rows[1], config)
    with pytest.raises(ValueError, match=message):
        revisit.enable(model, config)
    assert not passes
    counting.remove()
    head = revisit.LMHead(weight)
    expected, _ = decode(chosen.make(), rows[1], config)
    output, _ = decode(model, rows[1], config, lm_head=head)
    if away is offload_head:  # int8 weights are others
        assert output.sequences.tolist() == expected.sequences.tolist()


# What is not supported


REFUSED = {
    "BLIP-2 with T5": "Blip2",
    "InstructBLIP with T5": "InstructBlip",
}


def test_layers_that_hold_several_streams_are_refused_but_the_last_is_one():
    model = families.gemma3n()
    with pytest.raises(ValueError, match="choose layers='last'"):
        decode(model, words(), ReVisiTConfig(layers="all"))
    output, _ = decode(model, words(), ReVisiTConfig(layers="last"))
    assert len(output.scores) == STEPS


@pytest.mark.parametrize("name", REFUSED)
def test_a_decoder_whose_prompt_holds_no_vision_tokens_is_refused(name):
    model = families.with_t5(REFUSED[name])
    with pytest.raises(ValueError, match="is an encoder-decoder"), revisit.attach(model):
        pass
