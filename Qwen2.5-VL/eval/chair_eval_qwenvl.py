"""Caption a sample of COCO images with Qwen2.5-VL, by ReVisiT or another decoder."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

try:
    import torch
    from PIL import Image
    from qwen_vl_utils import process_vision_info
    from transformers import AutoProcessor, BatchFeature, Qwen2_5_VLForConditionalGeneration

    from revisit.commands.engines.transformers import TransformersCaptioner
    from revisit.evaluation.captioning import main
    from revisit.evaluation.flags import decoding_arguments, other_decoder
    from revisit.transformers.checkpoint import check_layers, load_complete, own_dtype
    from revisit.transformers.published import published_layers
except ImportError as error:
    found = find_spec("revisit")
    sys.exit(
        f"{error}. `revisit` here is {found.origin if found else 'not installed'}, and PyPI's "
        "`revisit` is another project: build this program's environment by "
        "`nox -s qwen --install-only` and activate it (docs/reproducing.md)"
    )

# What is Qwen2.5-VL's own in the programs of all benchmarks.
FAMILY: dict[str, Any] = {
    "results": Path(__file__).resolve().parents[2] / "results" / "qwen",
    "own_dtype": own_dtype,
    "gpu_dtype": "auto",  # as published
    "defaults": {"early_exit_layers": "all"},
}


class QwenCaptioner(TransformersCaptioner):
    """Qwen2.5-VL that answers questions about images."""

    def __init__(self, args: Namespace) -> None:
        if args.decoder == "revisit":
            check_layers(args.model_path, args.early_exit_layers)
        model, _ = load_complete(
            Qwen2_5_VLForConditionalGeneration.from_pretrained,
            args.model_path,
            torch_dtype=getattr(torch, args.dtype),
            device_map=args.device,
        )
        model.eval()
        self.processor = AutoProcessor.from_pretrained(
            args.model_path, padding_side="left", use_fast=False
        )
        pixels = self.processor.image_processor
        self.limits = {"min_pixels": pixels.min_pixels, "max_pixels": pixels.max_pixels}
        super().__init__(model, self.processor, dict(self.limits))
        self.decode(args)

    def decode(self, args: Namespace) -> None:
        """Decode from now on as these flags say."""
        if args.decoder == "revisit":
            published_layers(self.model, args.early_exit_layers)  # refuses one that is not there
        self.decode_by(other_decoder(args), decoding_arguments(args))

    def inputs(self, images: Sequence[Image.Image], questions: Sequence[str]) -> BatchFeature:
        """What the model reads of the images and the question about each, a row for each."""
        conversations = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": image, **self.limits},
                        {"type": "text", "text": question},
                    ],
                }
            ]
            for image, question in zip(images, questions, strict=True)
        ]
        prompts = self.processor.apply_chat_template(conversations, add_generation_prompt=True)
        resized, _ = process_vision_info(conversations)
        inputs = self.processor(text=prompts, images=resized, padding=True, return_tensors="pt")
        return inputs.to(self.model.device)


if __name__ == "__main__":
    raise SystemExit(main(QwenCaptioner, "Caption COCO images with Qwen2.5-VL.", **FAMILY))
