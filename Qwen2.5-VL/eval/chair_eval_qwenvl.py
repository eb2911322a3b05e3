"""Caption a sample of COCO images with Qwen2.5-VL, by ReVisiT or another decoder."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from qwen_vl_utils import process_vision_info
from transformers import AutoProcessor, BatchFeature, Qwen2_5_VLForConditionalGeneration

import revisit
from revisit.config import RITUALConfig
from revisit.decoders.transformations import second_image
from revisit.evaluation.captioning import main
from revisit.evaluation.flags import decoding_arguments, other_decoder
from revisit.transformers.checkpoint import load_complete, own_dtype
from revisit.transformers.published import published_layers

RESULTS = Path(__file__).resolve().parents[2] / "results" / "qwen"


class QwenCaptioner:
    """Qwen2.5-VL that answers `args.question` about each image."""

    def __init__(self, args: Namespace) -> None:
        self.model, _ = load_complete(
            Qwen2_5_VLForConditionalGeneration.from_pretrained,
            args.model_path,
            torch_dtype=getattr(torch, args.dtype),
            device_map=args.device,
        )
        self.model.eval()
        self.processor = AutoProcessor.from_pretrained(
            args.model_path, padding_side="left", use_fast=False
        )
        self.question = args.question
        if args.decoder == "revisit":
            published_layers(self.model, args.early_exit_layers)  # refuses one that is not there
        self.decoding = decoding_arguments(args)
        self.other = other_decoder(args)
        if self.other is not None:
            revisit.enable(self.model, self.other)
        pixels = self.processor.image_processor
        self.limits = {"min_pixels": pixels.min_pixels, "max_pixels": pixels.max_pixels}
        self.settings = dict(self.limits)

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        """The answer for each image."""
        inputs = self.inputs(images)
        second = {}
        if isinstance(self.other, RITUALConfig):
            turned = [second_image(image, self.other.seed) for image in images]
            second = {"second_inputs": {"pixel_values": self.inputs(turned).pixel_values}}
        sequences = self.model.generate(**inputs, **second, **self.decoding)
        answers = sequences[:, inputs.input_ids.shape[1] :]
        texts = self.processor.batch_decode(answers, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def inputs(self, images: Sequence[Image.Image]) -> BatchFeature:
        """What the model reads of the images and the question, a row for each."""
        conversations = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": image, **self.limits},
                        {"type": "text", "text": self.question},
                    ],
                }
            ]
            for image in images
        ]
        prompts = self.processor.apply_chat_template(conversations, add_generation_prompt=True)
        resized, _ = process_vision_info(conversations)
        inputs = self.processor(text=prompts, images=resized, padding=True, return_tensors="pt")
        return inputs.to(self.model.device)


if __name__ == "__main__":
    raise SystemExit(
        main(
            QwenCaptioner,
            "Caption COCO images with Qwen2.5-VL.",
            results=RESULTS,
            own_dtype=own_dtype,
            gpu_dtype="auto",  # as published
            defaults={"early_exit_layers": "all"},
        )
    )
