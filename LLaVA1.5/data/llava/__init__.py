"""LLaVA-1.5 on Transformers 4.31.0."""

from llava.config import LlavaConfig
from llava.images import process_images
from llava.layout import IMAGE_TOKEN_INDEX
from llava.loading import load_pretrained_model
from llava.model import LlavaLlamaForCausalLM
from llava.prompt import (
    DEFAULT_IMAGE_TOKEN,
    llava_v1_prompt,
    pad_prompts,
    tokenizer_image_token,
)

__all__ = [
    "DEFAULT_IMAGE_TOKEN",
    "IMAGE_TOKEN_INDEX",
    "LlavaConfig",
    "LlavaLlamaForCausalLM",
    "llava_v1_prompt",
    "load_pretrained_model",
    "pad_prompts",
    "process_images",
    "tokenizer_image_token",
]
