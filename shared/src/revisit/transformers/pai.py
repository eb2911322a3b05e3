"""PAI in `generate`: the last position attends more to the image, in the first stream."""

import torch
from torch import Tensor

from revisit.config import PAIConfig
from revisit.decoders import pai
from revisit.decoders.scaled import within
from revisit.transformers.attention import (
    AttentionCall,
    AttentionGeneration,
    AttentionLogitsProcessor,
    Output,
    at_keys,
)
from revisit.transformers.contrastive import text_only_stream
from revisit.transformers.generation import Prompts
from revisit.transformers.second_stream import SecondStream


class RaisedGeneration(AttentionGeneration):
    """Raises what the last position attends to of the image, in each step of the first stream."""

    changes_second = False

    def attend(self, call: AttentionCall) -> Output:
        output, weights = call.run()
        scores = self.scores(call)
        rows, _, count, keys = scores.shape
        vision = at_keys(self.vision_tokens(rows), keys).to(scores.device)
        raised = pai.boost(scores.flatten(1, 2), vision, self.processor.config.alpha)
        last = raised.view_as(scores).softmax(-1) @ call.for_each_head(call.value)
        last = last.transpose(1, 2).to(output.dtype)
        return torch.cat([output[:, :-count], last], 1), weights


class PAILogitsProcessor(AttentionLogitsProcessor):
    """The second stream reads the prompts without their images; the first attends to them more."""

    name = "PAI"
    config: PAIConfig
    generation_class = RaisedGeneration
    without = "the logits half"

    def first_layer(self, count: int) -> int:
        return within(pai.FIRST_LAYER, count, self.name)

    def stream(self, prompts: Prompts) -> SecondStream:
        return text_only_stream(self, prompts)

    def combine(self, logits: Tensor, second: Tensor, step: int) -> Tensor:
        return pai.combine(logits, second, self.config.gamma, self.config.beta)
