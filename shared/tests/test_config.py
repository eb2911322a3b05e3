"""The settings."""

import pytest

from revisit import ReVisiTConfig


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


def test_a_list_of_layers_is_kept_unchangeable_and_in_order():
    config = ReVisiTConfig(layers=[4, 0])
    assert config.layers == (4, 0)
    assert hash(config) == hash(ReVisiTConfig(layers=(4, 0)))
