"""SID in `generate`: later layers of the second stream see the least attended vision tokens."""

from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from revisit.config import SIDConfig
from revisit.decoders import sid
from revisit.decoders.scaled import scaled_layer
from revisit.transformers.attention import (
    AttentionCall,
    AttentionGeneration,
    AttentionLogitsProcessor,
    Output,
    at_keys,
)
from revisit.transformers.generation import Prompts
from revisit.transformers.second_stream import OtherImages


class HidingGeneration(AttentionGeneration):
    """The first of its layers chooses vision tokens in each step, and the others hide the rest."""

    changes_second = True
    processor: "SIDLogitsProcessor"

    _hidden: Tensor  # (rows, Q, T) bool, of the pass that runs

    @cached_property
    def hides(self) -> bool:
        """Whether a prompt has more vision tokens than the later layers see."""
        return bool((self.vision.sum(1) > self.processor.config.rank).any())

    def attend(self, call: AttentionCall) -> Output:
        if not self.hides:
            return call.run()
        if call.module is self.attentions[0]:
            self._hidden = self._choose(call)
            return call.run()
        hidden = at_keys(self._hidden, call.key.shape[2])
        return call.hiding(hidden.to(call.query.device)).run()

    def _choose(self, call: AttentionCall) -> Tensor:
        """(rows, Q, T) bool, true where the later layers hide a token from a position."""
        weights = self.scores(call).softmax(-1)
        rows, _, count, keys = weights.shape
        vision = self.vision_tokens(rows).to(weights.device)
        length = vision.shape[1]
        # What a sliding window has left behind has no weight.
        weights = pad(weights[..., :length], (max(0, length - keys), 0))
        hidden = sid.hidden_tokens(weights, vision, self.processor.config.rank)
        # The prompt's other positions see what its last one sees.
        prompt = hidden[:, :1].expand(-1, call.query.shape[2] - count, -1)
        return torch.cat([prompt, hidden], 1)


class SIDLogitsProcessor(AttentionLogitsProcessor):
    """The second stream reads the same inputs, and sees little of the images in its later layers.

    A row with at most `rank` vision tokens, or none, is its own second stream: no token's rank
    changes.
    """

    name = "SID"
    config: SIDConfig
    generation_class = HidingGeneration
    without = "the mask of implausible tokens"

    def first_layer(self, count: int) -> int:
        return scaled_layer(self.config.layer, count, self.name) - 1

    def stream(self, prompts: Prompts) -> OtherImages:
        if prompts.second_inputs is not None:
            raise ValueError("SID's second stream reads the same inputs: leave out second_inputs")
        return OtherImages(self.model, prompts.inputs, {}, self.name)

    def combine(self, logits: Tensor, second: Tensor, step: int) -> Tensor:
        return sid.combine(logits, second, self.config.alpha, self.config.beta)
