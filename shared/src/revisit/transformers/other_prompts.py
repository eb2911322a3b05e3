"""The prompts of the second streams of CODE and ICD, which need the model's processor."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from revisit.decoders.code import LONGEST
from revisit.transformers.generation import plain_generation
from revisit.transformers.model_parts import Model
from revisit.transformers.text_only import pad_left
from revisit.transformers.vision_positions import locate

Message = Mapping[str, Any]


def instructed(
    processor: Any, conversations: Sequence[Sequence[Message]], prefix: str
) -> list[str]:
    """ICD's prompts: conversations whose system message is the instruction.

    With the same images, the processor makes `second_inputs` of them:

        prompts = instructed(processor, conversations, config.prefix)
        second_inputs = processor(text=prompts, images=images, padding=True, return_tensors="pt")

    Args:
        processor: the model's, which has a chat template.
        conversations: the messages of each prompt, as the chat template takes them.
        prefix: the instruction.

    Raises:
        ValueError: the chat template has no place for a system message.
    """
    prompts = []
    for messages in conversations:
        others = [message for message in messages if message["role"] != "system"]
        prompt = _rendered(processor, others, prefix)
        if prompt is None:
            raise ValueError(
                f"the chat template of {type(processor).__name__} has no place for a system "
                "message, which ICD's instruction takes: write the prompts with it yourself"
            )
        prompts.append(prompt)
    return prompts


def _rendered(processor: Any, others: list[Message], prefix: str) -> str | None:
    """The prompt with the system message, however the template takes it; None if it does not."""
    for content in ([{"type": "text", "text": prefix}], prefix):
        messages = [{"role": "system", "content": content}, *others]
        with suppress(Exception):  # a template raises whatever it likes
            prompt: str = processor.apply_chat_template(messages, add_generation_prompt=True)
            if prefix in prompt:
                return prompt
    return None


def describe(model: Model, processor: Any, inputs: Mapping[str, Any], **settings: Any) -> list[str]:
    """CODE's descriptions: what the model answers, decoded greedily, whatever is enabled.

    Args:
        processor: the model's processor or tokenizer.
        inputs: of `generate`, for the images and `revisit.decoders.code.QUESTION`; a row
            for each description in `input_ids`, padded on the left.
        settings: further arguments of `generate`; by default at most 512 new tokens, as published.
    """
    settings = {"max_new_tokens": LONGEST, **settings, "do_sample": False, "num_beams": 1}
    with plain_generation(model):
        sequences = type(model).generate(model, **inputs, **settings)
    new = sequences[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(new, skip_special_tokens=True)
    return [text.strip() for text in texts]


def described(
    model: Model,
    processor: Any,
    inputs: Mapping[str, Any],
    descriptions: Sequence[str],
    vision_mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """CODE's `second_inputs`: the prompts with the descriptions' tokens in place of the images'.

    All other tokens stay, also the marks around the image. A description is tokenized as a separate
    text, with a beginning token where the tokenizer writes one, as published. In a prompt with
    several images it replaces the first one, and the others' tokens are left out. A prompt without
    an image stays.

    Args:
        model: the model that generates.
        processor: its processor or tokenizer.
        inputs: of `generate`, for the P prompts, with `input_ids` (P, T).
        descriptions: one for each prompt.
        vision_mask: as `generate` takes it.

    Raises:
        ValueError: there is not one description for each prompt, or the vision tokens cannot be
            found.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    input_ids = inputs["input_ids"]
    if len(descriptions) != len(input_ids):
        raise ValueError(f"{len(descriptions)} descriptions for {len(input_ids)} prompts")
    vision = locate(model, inputs, vision_mask).mask
    if vision.shape != input_ids.shape:  # the model expands its placeholders itself
        vision = input_ids < 0
    mask = inputs.get("attention_mask")
    texts = []
    for row, description in enumerate(descriptions):
        ids, seen = input_ids[row], vision[row].to(input_ids.device)
        if mask is not None:
            ids, seen = ids[mask[row].bool()], seen[mask[row].bool()]
        if seen.any():
            first = int(seen.byte().argmax())
            tokens = ids.new_tensor(tokenizer(description).input_ids)
            ids = torch.cat([ids[:first], tokens, ids[first:][~seen[first:]]])
        texts.append(ids)
    ids, mask = pad_left(texts)
    return {"input_ids": ids, "attention_mask": mask}
