"""The forward pass: vision tokens, labels, projectors, dtypes."""

import pytest
import torch

from llava import IMAGE_TOKEN_INDEX, LlavaConfig, LlavaLlamaForCausalLM, pad_prompts

IMAGE = IMAGE_TOKEN_INDEX
PROMPTS = [[1, 5, IMAGE, 7], [1, IMAGE, 30, IMAGE, 40, 50], [1, 21, 22]]


@pytest.mark.parametrize(
    ("side", "feature", "grid"),
    [
        (56, "patch", (1, 4, 4)),
        (56, "cls_patch", (1, 1, 17)),
        (28, "patch", (1, 2, 2)),
        (42, "cls_patch", (1, 1, 10)),
    ],
)
def test_vision_tokens_follow_from_the_tower(make_model, side, feature, grid):
    model = make_model(side, mm_vision_select_feature=feature)
    ids, mask = pad_prompts(PROMPTS, 0)
    count = grid[1] * grid[2]
    vision, grids = model.vision_tokens(ids, mask, use_cache=True)
    assert grids == [[grid], [grid, grid], []]
    assert vision.sum(1).tolist() == [count, 2 * count, 0]
    images = torch.randn(3, 3, side, side)
    embedded = model(ids, mask, images=images, output_hidden_states=True).hidden_states[0]
    assert embedded.shape[:2] == vision.shape
    assert torch.equal(embedded[vision], model.encode_images(images).flatten(0, 1))


def test_a_chosen_layer_of_the_tower_is_read(make_model, pixels):
    for layer in (-3, -2, -1, 0, 1, 2):
        model = make_model(mm_vision_select_layer=layer)
        tower = model.model.vision_tower
        states = tower.vision_tower(pixels, output_hidden_states=True).hidden_states
        assert torch.equal(tower(pixels), states[layer][:, 1:])
    with pytest.raises(ValueError, match="has the hidden states -3 to 2"):
        make_model(mm_vision_select_layer=-4)


def test_a_tower_of_another_width(make_model):
    with pytest.raises(ValueError, match="24 wide, but mm_hidden_size is 99"):
        make_model(mm_hidden_size=99)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("linear", ["weight", "bias"]),
        ("mlp1x_gelu", ["0.weight", "0.bias"]),
        ("mlp2x_gelu", ["0.weight", "0.bias", "2.weight", "2.bias"]),
        ("mlp3x_gelu", [f"{i}.{name}" for i in (0, 2, 4) for name in ("weight", "bias")]),
    ],
)
def test_projectors_have_the_names_of_llava(make_model, pixels, kind, names):
    model = make_model(mm_projector_type=kind)
    prefix = "model.mm_projector."
    weights = {
        key[len(prefix) :]: weight
        for key, weight in model.state_dict().items()
        if key.startswith(prefix)
    }
    assert list(weights) == names
    features = model.model.vision_tower(pixels)
    for index, name in enumerate(names[::2]):
        if index:
            features = torch.nn.functional.gelu(features)
        features = features @ weights[name].T + weights[names[2 * index + 1]]
    torch.testing.assert_close(model.encode_images(pixels), features)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mm_projector_type": "mlp0x_gelu"}, "mm_projector_type is 'mlp0x_gelu'; expected"),
        ({"mm_projector_type": "conv"}, "mm_projector_type is 'conv'; expected"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature is 'cls'; expected"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio is 'anyres'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is True"),
        ({"unfreeze_mm_vision_tower": True}, "unfreeze_mm_vision_tower is True"),
    ],
    ids=str,
)
def test_settings_that_llava_1_5_does_not_have(settings, message):
    with pytest.raises(ValueError, match=message):
        LlavaConfig(**settings)


def test_the_other_fields_of_a_real_config_are_accepted():
    config = LlavaConfig(
        mm_use_im_start_end=False,
        mm_use_im_patch_token=False,
        mm_resampler_type=None,
        tune_mm_mlp_adapter=False,
        freeze_mm_mlp_adapter=False,
        use_mm_proj=True,
        unfreeze_mm_vision_tower=False,
    )
    assert config.use_mm_proj is True and config.to_dict()["tune_mm_mlp_adapter"] is False


def test_loss_counts_the_labels_of_text_alone(small_model, pixels):
    """The loss of a padded batch is the mean over the labels of its rows, each by itself."""
    ids, mask = pad_prompts(PROMPTS, 0)
    labels = ids.masked_fill(mask == 0, -100)
    labels[labels == IMAGE] = 17  # a label on an image counts for nothing
    loss = small_model(ids, mask, images=pixels[:3], labels=labels).loss
    losses = []
    for prompt, images in zip(PROMPTS, pixels[:3].split([1, 2, 0]), strict=True):
        row = torch.tensor([prompt])
        logits = small_model(row, images=images if len(images) else None).logits[0]
        ends, position = [], -1
        for token in prompt:
            position += 16 if token == IMAGE else 1
            ends.append(position)
        for index in range(1, len(prompt)):
            if prompt[index] != IMAGE:
                target = torch.tensor(prompt[index])
                losses.append(torch.nn.functional.cross_entropy(logits[ends[index] - 1], target))
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_right_padding_trains_like_left_padding(small_model, pixels):
    left, left_mask = pad_prompts(PROMPTS, 0)
    right = torch.tensor([prompt + [0] * (left.shape[1] - len(prompt)) for prompt in PROMPTS])
    right_mask = left_mask.flip(1)
    losses = [
        small_model(ids, mask, images=pixels[:3], labels=ids.masked_fill(mask == 0, -100)).loss
        for ids, mask in ((left, left_mask), (right, right_mask))
    ]
    assert torch.equal(*losses)


def test_every_weight_that_is_read_learns(make_model, pixels):
    model = make_model(mm_vision_select_layer=-1).train()
    ids, mask = pad_prompts(PROMPTS, 0)
    model(ids, mask, images=pixels[:3], labels=ids.masked_fill(mask == 0, -100)).loss.backward()
    idle = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert all("post_layernorm" in name for name in idle)
    assert all(w.grad.any() for n, w in model.named_parameters() if n not in idle)


def test_bfloat16_runs(make_model, pixels):
    ids, mask = pad_prompts(PROMPTS, 0)
    expected = make_model()(ids, mask, images=pixels[:3]).logits
    logits = make_model().to(torch.bfloat16)(ids, mask, images=pixels[:3]).logits
    assert (logits - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_an_image_needs_a_tower(make_model, pixels):
    model = LlavaLlamaForCausalLM(make_model().config)
    with pytest.raises(ValueError, match="no vision tower"):
        model(torch.tensor([[1, IMAGE]]), images=pixels[:1])
    assert model(torch.tensor([[1, 5]])).logits.shape == (1, 2, 320)
    mask, grids = model.vision_tokens(torch.tensor([[1, 5]]))
    assert not mask.any() and grids == [[]]


def test_what_forward_cannot_read(small_model, pixels):
    with pytest.raises(ValueError, match="needs input_ids"):
        small_model(images=pixels[:1])
    ids = torch.tensor([[1, 5]])
    with pytest.raises(ValueError, match="position_ids follow"):
        small_model(ids, position_ids=torch.tensor([[0, 1]]))
    past = small_model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="after the prefill"):
        small_model(torch.tensor([[IMAGE]]), past_key_values=past, images=pixels[:1])
