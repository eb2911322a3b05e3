"""What ReVisiT saw at each step: which vision token, where in the image, and what it changed."""

from typing import NamedTuple

from torch import Tensor

from revisit.vision import Grid


class TraceStep(NamedTuple):
    """One generated token of one row."""

    vision_token: int  # index among the prompt's vision tokens
    layer: int  # which hidden state of it
    image: int | None  # which image of the prompt; None where the model does not tell the grids
    patch: tuple[int, int, int] | None  # (frame, row, column) of the vision token in that image
    candidates: int  # |V_cons|
    divergence: float  # nats
    plain_token: int  # the model's own argmax
    token: int  # the argmax after ReVisiT

    @property
    def changed(self) -> bool:
        """Whether ReVisiT changed the argmax."""
        return self.token != self.plain_token


class Choice(NamedTuple):
    """A step as the decoding loop leaves it: tensors stay on their device until read."""

    vision_state: Tensor
    tokens: int
    layers: tuple[int, ...]
    grids: list[Grid] | None
    candidates: int
    divergence: Tensor
    plain_token: Tensor
    token: Tensor

    def read(self) -> TraceStep:
        """Bring the step to the host."""
        layer, vision_token = divmod(int(self.vision_state), self.tokens)
        image, patch = _place(vision_token, self.grids)
        return TraceStep(
            vision_token,
            self.layers[layer],
            image,
            patch,
            self.candidates,
            float(self.divergence),
            int(self.plain_token),
            int(self.token),
        )


def _place(
    vision_token: int, grids: list[Grid] | None
) -> tuple[int | None, tuple[int, int, int] | None]:
    for image, (frames, rows, columns) in enumerate(grids or []):
        size = frames * rows * columns
        if vision_token < size:
            frame, patch = divmod(vision_token, rows * columns)
            return image, (frame, *divmod(patch, columns))
        vision_token -= size
    return None, None
