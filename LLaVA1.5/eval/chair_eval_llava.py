"""Caption a sample of COCO images with LLaVA-1.5, by ReVisiT or another decoder."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

import revisit
from llava import (
    DEFAULT_IMAGE_TOKEN,
    llava_v1_prompt,
    load_pretrained_model,
    process_images,
    tokenizer_image_token,
)
from revisit.config import RITUALConfig
from revisit.decoders.transformations import second_image
from revisit.evaluation.captioning import main
from revisit.evaluation.flags import decoding_arguments, other_decoder
from revisit.transformers.checkpoint import own_dtype
from revisit.transformers.published import published_layers

RESULTS = Path(__file__).resolve().parents[2] / "results" / "llava"


class LlavaCaptioner:
    """LLaVA-1.5 that answers `args.question` about each image."""

    def __init__(self, args: Namespace) -> None:
        place = {"device_map": "auto"} if args.device == "auto" else {"device": args.device}
        self.tokenizer, self.model, self.processor = load_pretrained_model(
            args.model_path, dtype=getattr(torch, args.dtype), **place
        )
        prompt = llava_v1_prompt([f"{DEFAULT_IMAGE_TOKEN}\n{args.question}"])
        ids = tokenizer_image_token(prompt, self.tokenizer)
        self.prompt = torch.tensor([ids], device=self.model.device)
        if args.decoder == "revisit":
            published_layers(self.model, args.early_exit_layers)  # refuses one that is not there
        self.decoding = decoding_arguments(args)
        self.other = other_decoder(args)
        if self.other is not None:
            revisit.enable(self.model, self.other)
        self.settings = {"conversation": "llava_v1"}

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        """The answer for each image."""
        pixels = process_images(images, self.processor, self.model.config)
        second = {}
        if isinstance(self.other, RITUALConfig):
            turned = [second_image(image, self.other.seed) for image in images]
            turned_pixels = process_images(turned, self.processor, self.model.config)
            second = {"second_inputs": {"images": turned_pixels}}
        sequences = self.model.generate(
            self.prompt.repeat(len(images), 1),
            images=pixels,
            pad_token_id=self.tokenizer.pad_token_id,
            **second,
            **self.decoding,
        )
        answers = sequences[:, self.prompt.shape[1] :]
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [text.strip() for text in texts]


if __name__ == "__main__":
    raise SystemExit(
        main(
            LlavaCaptioner,
            "Caption COCO images with LLaVA-1.5.",
            results=RESULTS,
            own_dtype=own_dtype,
            gpu_dtype="float16",  # as published
        )
    )
