"""What ReVisiT saw at each step: which vision token, where in the image, and what it changed."""

from typing import NamedTuple

from torch import Tensor

from revisit.core.step import Step

# (frames, rows, columns) of the vision tokens of one image or video.
Grid = tuple[int, int, int]


class TraceStep(NamedTuple):
    """One generated token of one sequence."""

    vision_token: int  # index among the prompt's vision tokens
    layer: int  # which hidden state of it
    image: int | None  # which image of the prompt; None where the model does not tell the grids
    patch: tuple[int, int, int] | None  # (frame, row, column) of the vision token in that image
    candidates: int  # |V_cons|
    divergence: float  # nats
    plain_token: int  # the argmax of the model's scores
    refined_token: int  # the argmax after ReVisiT
    token: int | None  # the one that was generated; None where the next step has not begun

    @property
    def changed(self) -> bool:
        """Whether ReVisiT changed the argmax."""
        return self.refined_token != self.plain_token


class VisionLayout(NamedTuple):
    """What the vision states of a prompt are: layer by layer, its vision tokens image by image."""

    tokens: int  # N vision tokens
    layers: tuple[int, ...]
    grids: list[Grid] | None  # one for each image or video in order; None if unknown

    def place(self, state: int) -> tuple[int, int, int | None, tuple[int, int, int] | None]:
        """The vision token, layer, image and patch of a vision state."""
        layer, token = divmod(state, self.tokens)
        first = 0
        for image, (frames, rows, columns) in enumerate(self.grids or []):
            size = frames * rows * columns
            if token < first + size:
                frame, patch = divmod(token - first, rows * columns)
                return token, self.layers[layer], image, (frame, *divmod(patch, columns))
            first += size
        return token, self.layers[layer], None, None


class Choice(NamedTuple):
    """A step as the decoding loop leaves it: tensors stay on their device until read."""

    vision_state: Tensor
    candidates: int | Tensor
    divergence: Tensor
    plain_token: Tensor
    refined_token: Tensor

    @classmethod
    def of(cls, step: Step, scores: Tensor) -> "Choice":
        """What was decided for a row whose model gave `scores` (V,)."""
        plain, refined = scores.argmax(), step.scores.argmax()
        return cls(step.choice, step.vocabulary.shape[0], step.divergence, plain, refined)

    def read(self, layout: VisionLayout, token: int | None) -> TraceStep:
        """Bring the step to the host; `token` is the one that was generated."""
        return TraceStep(
            *layout.place(int(self.vision_state)),
            int(self.candidates),
            float(self.divergence),
            int(self.plain_token),
            int(self.refined_token),
            token,
        )
