"""What a trace holds of a step."""

import pytest
import torch

from revisit.core.step import Step
from revisit.core.trace import Choice, TraceStep, VisionLayout

# Two images, one of them a video of two frames, seen at two layers.
LAYOUT = VisionLayout(18, (0, 4), [(1, 2, 3), (2, 3, 2)])
THREE_IMAGES = VisionLayout(9, (2,), [(1, 1, 2), (1, 1, 3), (1, 2, 2)])
NO_GRIDS, ONE_GRID = VisionLayout(18, (0, 4), None), VisionLayout(18, (3,), [(1, 2, 3)])


@pytest.mark.parametrize(
    "layout, state, place",
    [
        (LAYOUT, 0, (0, 0, 0, (0, 0, 0))),
        (LAYOUT, 5, (5, 0, 0, (0, 1, 2))),
        (LAYOUT, 6, (6, 0, 1, (0, 0, 0))),
        (LAYOUT, 9, (9, 0, 1, (0, 1, 1))),
        (LAYOUT, 12, (12, 0, 1, (1, 0, 0))),
        (LAYOUT, 17, (17, 0, 1, (1, 2, 1))),
        (LAYOUT, 18, (0, 4, 0, (0, 0, 0))),
        (LAYOUT, 35, (17, 4, 1, (1, 2, 1))),
        (THREE_IMAGES, 4, (4, 2, 1, (0, 0, 2))),
        (THREE_IMAGES, 5, (5, 2, 2, (0, 0, 0))),
        (THREE_IMAGES, 8, (8, 2, 2, (0, 1, 1))),
        (NO_GRIDS, 20, (2, 4, None, None)),
        (ONE_GRID, 6, (6, 3, None, None)),  # behind the grids
    ],
)
def test_a_vision_state_is_placed_in_its_layer_image_frame_and_patch(layout, state, place):
    assert layout.place(state) == place


@pytest.mark.parametrize("generated", [2, None])
def test_a_step_is_read_as_it_was_decided(generated):
    step = Step(
        scores=torch.tensor([-torch.inf, -1.0, -0.5, -torch.inf]),
        vocabulary=torch.tensor([1, 2]),
        choice=torch.tensor(23),
        distances=torch.linspace(0, 3.5, 36),
    )
    choice = Choice.of(step, torch.tensor([0.0, 3.0, 2.0, 1.0]))
    assert choice.read(LAYOUT, generated) == TraceStep(
        vision_token=5,
        layer=4,
        image=0,
        patch=(0, 1, 2),
        candidates=2,
        divergence=pytest.approx(2.3),
        plain_token=1,
        refined_token=2,
        token=generated,
    )


def test_changed_says_whether_the_argmax_did():
    same = TraceStep(0, 0, None, None, 1, 0.0, 7, 7, 7)
    assert not same.changed
    assert same._replace(refined_token=8).changed
