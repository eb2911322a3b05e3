"""LLaVA-1.5, as ``asking.py`` asks it."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from asking import main
from llava import (
    DEFAULT_IMAGE_TOKEN,
    llava_v1_prompt,
    load_pretrained_model,
    pad_prompts,
    process_images,
    tokenizer_image_token,
)


class LlavaAsker:
    """See ``asking.Asker``."""

    def __init__(self, checkpoint: str) -> None:
        self.tokenizer, self.model, self.processor = load_pretrained_model(
            checkpoint, dtype=torch.float32, device="cpu"
        )

    def answer(
        self, images: list[Image.Image], questions: list[str], **decoding: Any
    ) -> tuple[Any, Any]:
        """See ``asking.Asker``."""
        prompts = [llava_v1_prompt([f"{DEFAULT_IMAGE_TOKEN}\n{text}"]) for text in questions]
        rows = [list(tokenizer_image_token(prompt, self.tokenizer)) for prompt in prompts]
        ids, mask = pad_prompts(rows, self.tokenizer.pad_token_id)
        output = self.model.generate(
            ids,
            attention_mask=mask,
            images=process_images(images, self.processor, self.model.config),
            pad_token_id=self.tokenizer.pad_token_id,
            return_dict_in_generate=True,
            **decoding,
        )
        return output, output.sequences[:, ids.shape[1] :]

    def text(self, tokens: Any) -> str:
        """See ``asking.Asker``."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


if __name__ == "__main__":
    main(LlavaAsker)
