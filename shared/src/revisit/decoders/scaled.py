"""Layers that are published for models of 32, in a model of another number."""

import warnings

_LAYERS = 32


def scaled(layers: range, count: int, name: str) -> tuple[int, ...]:
    """Hidden states published for a decoder of 32 layers, for one of `count` layers.

    They are as far up, and below the last hidden state, which alone is normed. Where `count` is not
    32, a warning says which they are; `name` is the decoder's.
    """
    if count == _LAYERS:
        return tuple(layers)
    ends = (round(layer * count / _LAYERS) for layer in (layers[0], layers[-1]))
    first, last = (min(end, count - 1) for end in ends)
    warnings.warn(
        f"{name} is published with hidden states {layers[0]} to {layers[-1]} of {_LAYERS} layers: "
        f"of {count} layers it reads {first} to {last}",
        stacklevel=2,
    )
    return tuple(range(first, last + 1))


def within(layer: int, count: int, name: str) -> int:
    """The number of a layer, from 0, or the last one's where the decoder has no more."""
    if layer < count:
        return layer
    warnings.warn(
        f"{name} begins at layer {layer}, and the model has {count}: it begins at {count - 1}",
        stacklevel=2,
    )
    return count - 1


def scaled_layer(layer: int, count: int, name: str) -> int:
    """The number of a layer of 32, from 0, for a decoder of `count` layers: never its first layer.

    Where `count` is not 32, a warning says which one it is; `name` is the decoding method's.

    Raises:
        ValueError: the decoder has one layer alone.
    """
    if count == _LAYERS:
        return layer
    if count < 2:
        raise ValueError(f"{name} needs a layer below another one, and the model has {count}")
    found = min(max(round(layer * count / _LAYERS), 1), count - 1)
    warnings.warn(
        f"{name}'s layer {layer} is one of {_LAYERS}: of {count} layers it is {found}",
        stacklevel=2,
    )
    return found
