"""Qwen2.5-VL, as ``asking.py`` asks it."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from asking import main


class QwenAsker:
    """See ``asking.Asker``."""

    def __init__(self, checkpoint: str) -> None:
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            checkpoint, torch_dtype=torch.float32
        ).eval()
        self.processor = AutoProcessor.from_pretrained(
            checkpoint, padding_side="left", use_fast=False
        )

    def answer(
        self, images: list[Image.Image], questions: list[str], **decoding: Any
    ) -> tuple[Any, Any]:
        """See ``asking.Asker``."""
        conversations = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
            for text in questions
        ]
        prompts = self.processor.apply_chat_template(conversations, add_generation_prompt=True)
        inputs = self.processor(text=prompts, images=images, padding=True, return_tensors="pt")
        output = self.model.generate(**inputs, return_dict_in_generate=True, **decoding)
        return output, output.sequences[:, inputs.input_ids.shape[1] :]

    def text(self, tokens: Any) -> str:
        """See ``asking.Asker``."""
        return str(self.processor.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


if __name__ == "__main__":
    main(QwenAsker)
