"""LLaVA-1.5's conversation prompt, and its tokens."""

from collections.abc import Sequence
from typing import Any

import torch

from llava.layout import IMAGE_TOKEN_INDEX

DEFAULT_IMAGE_TOKEN = "<image>"

# The template `llava_v1` (conversation.py of haotian-liu/LLaVA).
_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


def llava_v1_prompt(turns: Sequence[str], system: str | None = None) -> str:
    """The prompt of a conversation, in the template `llava_v1`.

    `turns`: the messages of user and assistant by turns, the user's first. An image is `<image>` in
    a message, as in `"<image>\\nWhat is this?"`. After a message of the user, the prompt ends where
    the assistant's answer begins. `system` replaces the template's system message.
    """
    if not turns:
        raise ValueError("a conversation needs at least one turn, the user's question")
    text = (_SYSTEM if system is None else system) + " "
    for number, turn in enumerate(turns):
        text += f"ASSISTANT: {turn}</s>" if number % 2 else f"USER: {turn} "
    return text + "ASSISTANT:" if len(turns) % 2 else text


def tokenizer_image_token(
    prompt: str,
    tokenizer: Any,
    image_token_index: int = IMAGE_TOKEN_INDEX,
    return_tensors: str | None = None,
) -> list[int] | torch.Tensor:
    """The ids of a prompt, with `image_token_index` for each `<image>`, after one BOS.

    The text around the images is tokenized piece by piece, as in training. A list, or with
    `return_tensors="pt"` a tensor (T,) int64.
    """
    if return_tensors not in (None, "pt"):
        raise ValueError(f"return_tensors is {return_tensors!r}; expected None or 'pt'")
    ids = [tokenizer.bos_token_id]
    for number, text in enumerate(prompt.split(DEFAULT_IMAGE_TOKEN)):
        if number:
            ids.append(image_token_index)
        ids += tokenizer(text, add_special_tokens=False).input_ids
    return torch.tensor(ids) if return_tensors == "pt" else ids


def pad_prompts(
    prompts: Sequence[Sequence[int]], pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of different length as a batch padded on the left.

    Returns `input_ids` and `attention_mask`, both (B, T) int64.
    """
    length = max(len(prompt) for prompt in prompts)
    ids = [[pad_token_id] * (length - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)
