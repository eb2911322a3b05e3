"""Which hidden states a layer setting names."""

from collections.abc import Sequence


def resolve_layers(layers: str | Sequence[int], count: int, tied: bool) -> tuple[int, ...]:
    """The indices of the hidden states that `layers` names, in a decoder of `count` layers.

    Index 0 is the embedding, `count` the output after the final norm, as Transformers counts
    `hidden_states`. The named groups are those of the published implementation: they begin at the
    embedding, or above it where LM head and embedding are tied, since a tied head only reads a
    token's embedding back.

    Args:
        layers: `"last"`, `"all"`, `"low"`, `"high"`, or the indices themselves.
        count: n, the number of decoder layers.
        tied: whether LM head and embedding share their weights.

    Raises:
        ValueError: an index lies outside 0..n, or the name is unknown.
    """
    if not isinstance(layers, str):
        if outside := [layer for layer in layers if not 0 <= layer <= count]:
            raise ValueError(
                f"layers {outside} are out of range: this model has hidden states 0 (embedding) "
                f"to {count} (after the final norm)"
            )
        return tuple(layers)
    start = {1: 0, 2: 1}.get(count, 2) if tied else 0
    middle = count // 2
    if layers == "last":
        return (count,)
    if layers == "all":
        below = range(start, count, 2)
    elif layers == "low":
        below = range(start, 20 if count > 40 else middle + (start == middle), 2)
    elif layers == "high":
        below = range(count - 20 if count > 40 else middle, count, 2)
    else:
        raise ValueError(f"layers must be 'last', 'all', 'low', 'high' or a list, got {layers!r}")
    return (*below, count)
