"""Caption a sample of COCO images with LLaVA-1.5, by ReVisiT or another decoder."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

try:
    import torch
    from PIL import Image

    from llava import (
        DEFAULT_IMAGE_TOKEN,
        llava_v1_prompt,
        load_pretrained_model,
        pad_prompts,
        process_images,
        tokenizer_image_token,
    )
    from revisit.commands.engines.transformers import TransformersCaptioner
    from revisit.evaluation.captioning import main
    from revisit.evaluation.flags import decoding_arguments, other_decoder
    from revisit.transformers.checkpoint import check_layers, own_dtype
    from revisit.transformers.published import published_layers
except ImportError as error:
    found = find_spec("revisit")
    sys.exit(
        f"{error}. `revisit` here is {found.origin if found else 'not installed'}, and PyPI's "
        "`revisit` is another project: build this program's environment by "
        "`nox -s llava --install-only` and activate it (docs/reproducing.md)"
    )

# What is LLaVA-1.5's own in the programs of all benchmarks.
FAMILY: dict[str, Any] = {
    "results": Path(__file__).resolve().parents[2] / "results" / "llava",
    "own_dtype": own_dtype,
    "gpu_dtype": "float16",  # as published
}


class LlavaCaptioner(TransformersCaptioner):
    """LLaVA-1.5 that answers questions about images."""

    def __init__(self, args: Namespace) -> None:
        if args.decoder == "revisit":
            check_layers(args.model_path, args.early_exit_layers)
        place = {"device_map": "auto"} if args.device == "auto" else {"device": args.device}
        tokenizer, model, self.processor = load_pretrained_model(
            args.model_path, dtype=getattr(torch, args.dtype), **place
        )
        super().__init__(model, tokenizer, {"conversation": "llava_v1"})
        self.decode(args)

    def decode(self, args: Namespace) -> None:
        """Decode from now on as these flags say."""
        if args.decoder == "revisit":
            published_layers(self.model, args.early_exit_layers)  # refuses one that is not there
        padding = {"pad_token_id": self.tokenizer.pad_token_id}
        self.decode_by(other_decoder(args), decoding_arguments(args) | padding)

    def inputs(self, images: Sequence[Image.Image], questions: Sequence[str]) -> dict[str, Any]:
        """What the model reads of the images and the question about each, a row for each."""
        prompts = [llava_v1_prompt([f"{DEFAULT_IMAGE_TOKEN}\n{text}"]) for text in questions]
        rows = [list(tokenizer_image_token(prompt, self.tokenizer)) for prompt in prompts]
        ids, mask = pad_prompts(rows, self.tokenizer.pad_token_id)
        return {
            "input_ids": ids.to(self.model.device),
            "attention_mask": mask.to(self.model.device),
            "images": process_images(images, self.processor, self.model.config),
        }


if __name__ == "__main__":
    raise SystemExit(main(LlavaCaptioner, "Caption COCO images with LLaVA-1.5.", **FAMILY))
