"""A prompt with images as logits processors and streamers read it: they know only text."""

from typing import Any

import torch
from transformers import LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from llava.layout import IMAGE_TOKEN_INDEX


def text_only(input_ids: torch.Tensor, pad_token_id: int | None) -> torch.Tensor:
    """(B, T) ids with the row's first text token for image placeholders and for left padding.

    That token is in the row anyway, so image and padding do not change a penalty on the row's
    tokens.
    """
    replaced = input_ids == IMAGE_TOKEN_INDEX
    if pad_token_id is not None:
        replaced |= (input_ids == pad_token_id).cumprod(1).bool()
    first = (~replaced).int().argmax(1, keepdim=True)
    # clamp: a row that is one image and no text yet has no text token.
    return torch.where(replaced, input_ids.gather(1, first).clamp(min=0), input_ids)


class TextLogitsProcessorList(LogitsProcessorList):  # type: ignore[misc]
    """Logits processors that see each row as text; they look scores up by token."""

    def __init__(self, processors: LogitsProcessorList, pad_token_id: int | None) -> None:
        super().__init__(processors)
        self.pad_token_id = pad_token_id

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        text_ids = text_only(input_ids, self.pad_token_id)
        processed: torch.Tensor = super().__call__(text_ids, scores, **kwargs)
        return processed


class TextStreamer(BaseStreamer):  # type: ignore[misc]
    """Passes a streamer the tokens that a tokenizer can decode."""

    def __init__(self, streamer: BaseStreamer) -> None:
        self.streamer = streamer

    def put(self, value: torch.Tensor) -> None:
        one_row = value.dim() == 1 or len(value) == 1
        self.streamer.put(value[value != IMAGE_TOKEN_INDEX] if one_row else value)

    def end(self) -> None:
        self.streamer.end()
