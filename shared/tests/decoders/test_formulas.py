"""The formulas of VCD, RITUAL, M3ID and DoLa against a dense float64 computation."""

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from revisit import DoLaConfig, M3IDConfig, RITUALConfig, SIDConfig, VCDConfig
from revisit.decoders import dola, m3id, ritual, sid, vcd
from revisit.decoders.scaled import scaled_layer
from revisit.decoders.transformations import blur, second_image

SEEDS = range(8)
SHARES = [0, 1e-3, 0.1, 1]


def draw(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 3, shape)).float()


def plausible(logits, share):
    """Row by row, the tokens at least `share` times as probable as the likeliest."""
    z = logits.double().numpy()
    probability = np.exp(z - z.max(-1, keepdims=True))
    return probability >= share * (1 - 1e-6)


def check(decided, expected, logits, share):
    kept = plausible(logits, share)
    assert (decided.isfinite().numpy() == kept).all()
    np.testing.assert_allclose(decided.numpy()[kept], expected[kept], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("seed", SEEDS)
def test_formulas_equal_float64(seed, share):
    logits, other = draw(seed, 3, 50), draw(100 + seed, 3, 50)
    z, second = logits.double().numpy(), other.double().numpy()
    weight = 0.25 * (seed + 1)
    check(
        vcd.combine(logits, other, weight, share), (1 + weight) * z - weight * second, logits, share
    )
    check(ritual.combine(logits, other, weight, share), z + weight * second, logits, share)
    forgotten = math.exp(-weight * seed)
    expected = z + (z - second) * (1 - forgotten) / forgotten
    scale = max(1, np.abs(expected).max())
    decided = m3id.combine(logits, other, seed, weight, share)
    check(decided / scale, expected / scale, logits, share)


def log_softmax(z):
    return z - np.log(np.exp(z - z.max()).sum()) - z.max()


@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize("seed", SEEDS)
def test_dola_contrasts_the_layer_of_largest_divergence_row_by_row(seed, layers):
    logits, premature = draw(seed, 3, 50), draw(100 + seed, 3, layers, 50)
    expected, chosen = [], set()
    for row, inner in zip(logits.double().numpy(), premature.double().numpy(), strict=True):
        log_p, divergences = log_softmax(row), []
        for log_q in map(log_softmax, inner):
            m = (np.exp(log_p) + np.exp(log_q)) / 2
            from_p = (np.exp(log_p) * (log_p - np.log(m))).sum()
            divergences.append((from_p + (np.exp(log_q) * (log_q - np.log(m))).sum()) / 2)
        chosen.add(int(np.argmax(divergences)))
        expected.append(log_p - log_softmax(inner[np.argmax(divergences)]))
    check(dola.combine(logits, premature, 0.01), np.stack(expected), logits, 0.01)
    assert layers == 1 or seed or len(chosen) > 1


def test_tokens_that_the_model_rules_out_stay_out():
    logits, other = draw(1, 1, 6), draw(2, 1, 6)
    logits[0, 2] = other[0, 2] = -math.inf
    for decided in (
        vcd.combine(logits, other, 1.0, 0.0),
        ritual.combine(logits, other, 3.0, 0.0),
        m3id.combine(logits, other, 4, 0.02, 0.0),
    ):
        assert decided[0, 2] == -math.inf
        assert decided.isfinite().sum() == 5


def test_m3id_stays_finite_however_long_the_text():
    logits = draw(1, 2, 6)
    assert m3id.combine(logits, draw(2, 2, 6), 100_000, 1.0, 0.0).isfinite().all()


# SID's vision tokens


def test_sid_hides_all_but_the_least_attended_row_by_row():
    vision = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    heads = torch.tensor([[0.1, 0.3, 0.4, 0.2, 0.0], [0.1, 0.3, 0.0, 0.2, 0.4]])
    weights = heads.view(1, 2, 1, 5).repeat(3, 1, 2, 1)
    weights[0, :, 1] = 0.2  # of equals, the first one stays

    def hidden(rank):
        found = sid.hidden_tokens(weights, vision, rank)
        return [[at.nonzero().flatten().tolist() for at in row] for row in found]

    assert hidden(1) == [[[1, 3], [2, 3]], [[1], [1]], [[], []]]
    assert hidden(2) == [[[1], [3]], [[], []], [[], []]]
    assert hidden(0) == [[[1, 2, 3]] * 2, [[0, 1]] * 2, [[]] * 2]
    assert hidden(9) == [[[]] * 2] * 3


def test_sid_s_layer_is_as_far_up_in_a_model_of_another_depth():
    assert scaled_layer(2, 32, "SID") == 2
    with pytest.warns(UserWarning, match="SID's layer 2 is one of 32: of 64 layers it is 4"):
        assert scaled_layer(2, 64, "SID") == 4
    with pytest.warns(UserWarning, match="of 2 layers it is 1"):
        assert [scaled_layer(layer, 2, "SID") for layer in (1, 31)] == [1, 1]
    with pytest.raises(ValueError, match="needs a layer below another one"):
        scaled_layer(2, 1, "SID")


# VCD's noise


def test_what_the_noise_leaves_is_the_cumulative_product():
    b = 1 / (1 + np.exp(-np.linspace(-6, 6, 1000))) * (0.005 - 1e-5) + 1e-5
    for step in (0, 500, 999):
        assert vcd.kept(step) == pytest.approx(np.cumprod(1 - b)[step], abs=1e-5)
    assert vcd.kept(500) == pytest.approx(0.7447987, abs=1e-6)


def test_noise_is_one_draw_for_each_image():
    image = draw(3, 3, 8, 8)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(7))
    expected = math.sqrt(0.7447987) * image + math.sqrt(1 - 0.7447987) * noise
    torch.testing.assert_close(vcd.distort(image, 500, 7), expected)
    images = draw(4, 2, 2, 3, 8, 8)
    images[1, 0] = image
    torch.testing.assert_close(vcd.distort(images, 500, 7)[1, 0], expected)
    patches = draw(5, 10, 12)
    alone = vcd.distort(patches[4:].clone(), 500, 7)
    assert torch.equal(vcd.distort(patches, 500, 7, patches=[4, 6])[4:], alone)
    assert vcd.distort(image.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_noise_does_not_depend_on_a_process_s_defaults(dtype):
    image = draw(3, 3, 8, 8)
    expected = vcd.distort(image, 500, 7)
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            assert torch.equal(vcd.distort(image, 500, 7), expected)
    finally:
        torch.set_default_dtype(torch.float32)


# RITUAL's transformations


def picture(width=40, height=28):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_the_second_image_is_one_of_six_as_often():
    image = picture()
    flips = {ImageOps.mirror(image).tobytes(), ImageOps.flip(image).tobytes()}
    second = [second_image(image, 1, number) for number in range(300)]
    assert {each.size for each in second} == {image.size}
    assert {each.mode for each in second} == {"RGB"}
    flipped = [each.tobytes() for each in second if each.tobytes() in flips]
    assert 60 < len(flipped) < 140
    assert set(flipped) == flips
    assert len({each.tobytes() for each in second}) > 150


def test_the_second_image_follows_from_seed_and_number():
    image = picture()
    again = [second_image(image, 2, number).tobytes() for number in range(20)]
    assert again == [second_image(image, 2, number).tobytes() for number in range(20)]
    assert again != [second_image(image, 3, number).tobytes() for number in range(20)]
    # Without a number its pixels tell.
    seconds = [second_image(image, seed).tobytes() for seed in range(20)]
    assert seconds == [second_image(image.copy(), seed).tobytes() for seed in range(20)]
    other = ImageOps.invert(image)
    inverted = [ImageOps.invert(second_image(other, seed)).tobytes() for seed in range(20)]
    assert seconds != inverted


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
@pytest.mark.parametrize("size", [(40, 28), (300, 2), (1, 1)])
def test_any_image_gets_a_second_one(mode, size):
    image = picture(*size).convert(mode)
    for number in range(20):
        assert second_image(image, 0, number).size == size


def test_the_blur_is_a_gaussian_thirteen_wide():
    point = np.zeros((41, 41, 3), dtype=np.uint8)
    point[20, 20] = 255
    # Too dim to see at its rim, so it is held against the exact kernel where it is bright.
    blurred = np.asarray(blur(Image.fromarray(point), random.Random(0)))
    sigma = random.Random(0).uniform(1.5, 2)
    line = np.exp(-0.5 * (np.arange(-6, 7) / sigma) ** 2)
    exact = 255 * np.outer(line, line) / line.sum() ** 2
    np.testing.assert_allclose(blurred[14:27, 14:27, 1], exact, atol=0.51)
    assert blurred[:14].max() == 0
    flat = Image.new("RGB", (9, 4), (10, 200, 30))
    assert np.asarray(blur(flat, random.Random(1))).reshape(-1, 3).std(0).max() == 0


# Settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VCDConfig(alpha=-1), "alpha must be a finite number >= 0, got -1"),
        (lambda: VCDConfig(beta=1.1), r"beta must be in \[0, 1\], got 1.1"),
        (lambda: VCDConfig(noise_step=1000), r"noise_step must be an integer in 0\.\.999"),
        (lambda: VCDConfig(seed=0.5), "seed must be an integer"),
        (lambda: RITUALConfig(alpha=math.nan), "alpha must be a finite number"),
        (lambda: RITUALConfig(beta=None), "beta must be in"),
        (lambda: M3IDConfig(gamma=math.inf), "gamma must be a finite number"),
        (lambda: M3IDConfig(beta=-0.1), "beta must be in"),
        (lambda: DoLaConfig(layers="middle"), "layers must be one of"),
        (lambda: DoLaConfig(layers="last"), "say 'low'"),
        (lambda: DoLaConfig(relative_top=2), "relative_top must be in"),
        (lambda: SIDConfig(alpha=-1), "alpha must be a finite number"),
        (lambda: SIDConfig(beta=2), "beta must be in"),
        (lambda: SIDConfig(layer=0), r"layer must be an integer in 1\.\.31, got 0"),
        (lambda: SIDConfig(layer=32), r"layer must be an integer in 1\.\.31, got 32"),
        (lambda: SIDConfig(rank=-1), "rank must be an integer >= 0, got -1"),
    ],
)
def test_a_setting_out_of_range_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_defaults_are_those_of_the_contract():
    assert VCDConfig() == VCDConfig(1.0, 0.1, 500, 0)
    assert RITUALConfig() == RITUALConfig(3.0, 0.1, 0)
    assert M3IDConfig() == M3IDConfig(0.02, 0.1)
    assert DoLaConfig() == DoLaConfig("low", 0.1)
    assert SIDConfig() == SIDConfig(0.5, 0.1, 2, 100)
