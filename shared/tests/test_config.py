"""The settings of the decoders."""

from dataclasses import fields

import pytest

from revisit import ReVisiTConfig
from revisit.config import OTHERS, PUBLISHED, from_published


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
