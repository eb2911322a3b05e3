"""The settings and the layers they name."""

from dataclasses import fields

import pytest

from revisit import ReVisiTConfig
from revisit.config import OTHERS, PUBLISHED, from_published
from revisit.core.layers import resolve_layers


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"alpha": -0.1}, "alpha"),
        ({"alpha": 1.5}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"alpha": "0.1"}, "alpha"),
        ({"layers": "middle"}, "layers"),
        ({"layers": []}, "empty"),
        ({"layers": [1.0]}, "layers"),
        ({"layers": 3}, "layers"),
        ({"divergence": "kl"}, "divergence"),
        ({"selection": "best"}, "selection"),
        ({"no_vision": "skip"}, "no_vision"),
        ({"cache_bytes": -1}, "cache_bytes"),
        ({"seed": None}, "seed"),
    ],
)
def test_a_setting_out_of_range_is_named(setting, message):
    with pytest.raises(ValueError, match=message):
        ReVisiTConfig(**setting)


NUMBERS = [
    (config, field.name)
    for config in (ReVisiTConfig, *OTHERS.values())
    for field in fields(config)
    if type(field.default) in (int, float)
]


@pytest.mark.parametrize(("config", "name"), NUMBERS)
def test_true_is_no_number(config, name):
    with pytest.raises(ValueError, match=name):
        config(**{name: True})


def test_a_list_of_layers_is_kept_unchangeable_and_in_order():
    config = ReVisiTConfig(layers=[4, 0])
    assert config.layers == (4, 0)
    assert hash(config) == hash(ReVisiTConfig(layers=(4, 0)))


def test_published_names_give_the_settings_that_they_stand_for():
    assert from_published() == ReVisiTConfig()
    flags = {"early_exit_layers": [2, 4], "relative_top": 0.1, "revisit_divergence": "js"}
    flags |= {
        "revisit_selection": "max",
        "revisit_seed": 3,
        "revisit_no_vision": "plain",
        "revisit_trace": True,
    }
    assert flags.keys() == PUBLISHED.keys()
    assert from_published(**flags) == ReVisiTConfig(
        layers=[2, 4],
        alpha=0.1,
        divergence="js",
        selection="max",
        seed=3,
        no_vision="plain",
        trace=True,
    )
    with pytest.raises(TypeError, match=r"\['alpha'\].*relative_top"):
        from_published(alpha=0.1)


@pytest.mark.parametrize(
    ("layers", "count", "tied", "expected"),
    [
        ("last", 32, False, (32,)),
        ("all", 28, False, (*range(0, 28, 2), 28)),
        ("all", 28, True, (*range(2, 28, 2), 28)),
        ("all", 5, False, (0, 2, 4, 5)),
        ("all", 2, True, (1, 2)),
        ("all", 1, True, (0, 1)),
        ("low", 32, False, (*range(0, 16, 2), 32)),
        ("low", 4, True, (2, 4)),
        ("low", 48, False, (*range(0, 20, 2), 48)),
        ("low", 1, False, (0, 1)),
        ("high", 32, False, (*range(16, 32, 2), 32)),
        ("high", 48, False, (*range(28, 48, 2), 48)),
        ("high", 6, False, (3, 5, 6)),
        ((0, 6, 3), 6, False, (0, 6, 3)),
    ],
)
def test_layer_settings_name_the_published_hidden_states(layers, count, tied, expected):
    assert resolve_layers(layers, count, tied) == expected


@pytest.mark.parametrize("layers", [[7], [-1], [0, 99]])
def test_a_layer_outside_the_model_is_named_with_the_range(layers):
    with pytest.raises(ValueError, match=r"out of range.*to 6"):
        resolve_layers(layers, 6, False)
