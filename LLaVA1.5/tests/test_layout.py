"""Where tokens go when images become vision tokens."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.layout import IMAGE_TOKEN_INDEX, expand, image_positions

TOKENS = st.lists(st.sampled_from([1, 5, 9, IMAGE_TOKEN_INDEX]), min_size=1, max_size=7)


@st.composite
def batches(draw):
    """Rows of tokens, and the same rows padded anywhere to one length, with their mask."""
    rows = draw(st.lists(TOKENS, min_size=1, max_size=4))
    length = max(map(len, rows)) + draw(st.integers(0, 2))
    ids, mask = [], []
    for row in rows:
        places = sorted(draw(st.permutations(range(length)))[: len(row)])
        filled = [draw(st.sampled_from([0, IMAGE_TOKEN_INDEX])) for _ in range(length)]
        for place, token in zip(places, row, strict=True):
            filled[place] = token
        ids.append(filled)
        mask.append([int(place in places) for place in range(length)])
    return rows, torch.tensor(ids), torch.tensor(mask)


@settings(deadline=None, derandomize=True)
@given(batches(), st.integers(1, 5))
def test_each_row_is_expanded_by_itself_and_padded_on_the_left(batch, tokens_per_image):
    rows, ids, mask = batch
    layout = expand(ids, mask, tokens_per_image)
    tokens = layout.place(ids.flatten()[layout.source], -1)
    expected = []
    for row in rows:
        widths = [tokens_per_image if token == IMAGE_TOKEN_INDEX else 1 for token in row]
        expected.append([t for t, w in zip(row, widths, strict=True) for _ in range(w)])
    length = max(map(len, expected))
    assert tokens.tolist() == [[-1] * (length - len(row)) + row for row in expected]
    assert torch.equal(layout.mask, tokens != -1)
    assert torch.equal(layout.vision, tokens == IMAGE_TOKEN_INDEX)
    for row, positions in zip(expected, layout.position_ids.tolist(), strict=True):
        assert positions == [0] * (length - len(row)) + list(range(len(row)))


@settings(deadline=None, derandomize=True)
@given(batches())
def test_growing_by_a_token_appends_one_column(batch):
    _, ids, mask = batch
    ones = torch.ones(len(ids), 1, dtype=torch.long)
    before = expand(ids, mask, 3)
    after = expand(torch.cat([ids, 7 * ones], 1), torch.cat([mask, ones], 1), 3)
    assert torch.equal(after.mask, torch.cat([before.mask, ones.bool()], 1))
    assert torch.equal(after.position_ids[:, -1], before.mask.sum(1))


def test_without_mask_every_token_is_attended_to():
    ids = torch.tensor([[1, IMAGE_TOKEN_INDEX, 5]])
    assert expand(ids, None, 4).mask.tolist() == [[True] * 6]
    assert image_positions(ids, None).tolist() == [[False, True, False]]
