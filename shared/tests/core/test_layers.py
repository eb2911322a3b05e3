"""The layers that a setting names."""

import pytest

from revisit.core.layers import resolve_layers


@pytest.mark.parametrize(
    ("layers", "count", "tied", "expected"),
    [
        ("last", 32, False, (32,)),
        ("all", 28, False, (*range(0, 28, 2), 28)),
        ("all", 28, True, (*range(2, 28, 2), 28)),
        ("all", 5, False, (0, 2, 4, 5)),
        ("all", 3, True, (2, 3)),
        ("all", 2, True, (1, 2)),
        ("all", 1, True, (0, 1)),
        ("low", 32, False, (*range(0, 16, 2), 32)),
        ("low", 4, True, (2, 4)),
        ("low", 40, False, (*range(0, 20, 2), 40)),
        ("low", 48, False, (*range(0, 20, 2), 48)),
        ("low", 41, False, (*range(0, 20, 2), 41)),
        ("low", 44, False, (*range(0, 20, 2), 44)),
        ("low", 5, True, (2, 5)),
        ("low", 6, True, (2, 6)),
        ("low", 1, False, (0, 1)),
        ("high", 32, False, (*range(16, 32, 2), 32)),
        ("high", 40, False, (*range(20, 40, 2), 40)),
        ("high", 41, False, (*range(21, 41, 2), 41)),
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


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="'middle'"):
        resolve_layers("middle", 6, False)
