"""Models of a stock Transformers that are asked about images: loaded, and prompted by their chat
template."""

from collections.abc import Sequence
from typing import Any

import transformers
from PIL import Image

from revisit.transformers.checkpoint import check_files, reading
from revisit.transformers.model_parts import Model


def load_model(name: str, device: str, dtype: str = "auto") -> tuple[Model, Any]:
    """A model in evaluation mode and its processor, which pads on the left.

    Args:
        name: a checkpoint's folder, or a hub id.
        device: where the model goes, or "auto" to spread it over what there is.
        dtype: the name of a torch dtype, or "auto" for the checkpoint's own.

    Raises:
        OSError: something of it is missing or damaged.
        ValueError: a package is missing, or it cannot be asked about an image; says what to do.
    """
    check_files(name)
    try:
        with reading(name):
            processor = transformers.AutoProcessor.from_pretrained(name)
            model: Model = transformers.AutoModelForImageTextToText.from_pretrained(
                name, torch_dtype=dtype, **({"device_map": "auto"} if device == "auto" else {})
            )
    except ImportError as error:
        raise ValueError(str(error).strip()) from error
    if not getattr(processor, "chat_template", None) or not hasattr(processor, "tokenizer"):
        raise ValueError("it has no processor with a chat template to ask it a question by")
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return (model if device == "auto" else model.to(device)).eval(), processor


def chat_prompt(processor: Any, images: int, question: str) -> str:
    """The text of a conversation in which the user shows some images and asks about them."""
    content = [{"type": "image"} for _ in range(images)] + [{"type": "text", "text": question}]
    prompt: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    return prompt


def chat_inputs(
    processor: Any, images: Sequence[Sequence[Image.Image]], questions: Sequence[str]
) -> Any:
    """What a model is given to read: a row for each question and the images that it is about."""
    prompts = [
        chat_prompt(processor, len(shown), question)
        for shown, question in zip(images, questions, strict=True)
    ]
    begin = processor.tokenizer.bos_token
    # A template that writes the beginning itself: the tokenizer is not to write it again.
    begun: dict[str, Any] = (
        {"add_special_tokens": False} if begin and prompts[0].startswith(begin) else {}
    )
    # A slow processor takes a side of (H, W, 3) that is as long as channels are many for channels.
    thin = any(set(image.size) & {1, 3, 4} for shown in images for image in shown)
    if thin and getattr(processor.image_processor, "is_fast", None) is False:
        begun["input_data_format"] = "channels_last"
    return processor(
        text=prompts,
        images=[list(shown) for shown in images],
        padding=True,
        return_tensors="pt",
        **begun,
    )
