"""Caption a sample of COCO images with LLaVA-1.5, by ReVisiT or another decoder."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

try:
    from revisit.commands.main import RESUME, leave_at_ctrl_c

    leave_at_ctrl_c(RESUME)  # while PyTorch is imported
    import torch

    from llava import (
        DEFAULT_IMAGE_TOKEN,
        llava_v1_prompt,
        load_pretrained_model,
        pad_prompts,
        process_images,
        tokenizer_image_token,
    )
    from revisit.commands.engines.transformers import (
        Images,
        TransformersCaptioner,
        check_run_layers,
    )
    from revisit.commands.eval import Family, main
    from revisit.evaluation.run import Run
    from revisit.transformers.checkpoint import own_dtype
except ImportError as error:
    found = find_spec("revisit")
    sys.exit(
        f"{error}. `revisit` here is {found.origin if found else 'not installed'}, and PyPI's "
        "`revisit` is another project. This program has an environment: `nox -s llava "
        "--install-only` builds it, `source .nox/llava/bin/activate` (or `conda activate "
        "revisit_llava`) activates it; see docs/reproducing.md"
    )


class LlavaCaptioner(TransformersCaptioner):
    """LLaVA-1.5 that answers questions about images."""

    def __init__(self, run: Run) -> None:
        check_run_layers(run)
        device = run.place.device
        tokenizer, model, self.processor = load_pretrained_model(
            run.model_path,
            dtype=getattr(torch, str(run.place.dtype)),
            **({"device_map": "auto"} if device == "auto" else {"device": device}),
        )
        super().__init__(model, tokenizer, {"conversation": "llava_v1"}, run, fork=True)

    def decode(self, run: Run) -> None:
        """Decode from now on as a run says."""
        super().decode(run)
        self.arguments["pad_token_id"] = self.tokenizer.pad_token_id

    def inputs(
        self, images: Images, questions: Sequence[str], system: str | None = None
    ) -> dict[str, Any]:
        """See `TransformersCaptioner.inputs`."""
        rows = []
        for image, question in zip(images, questions, strict=True):
            text = question if image is None else f"{DEFAULT_IMAGE_TOKEN}\n{question}"
            prompt = llava_v1_prompt([text], system)
            rows.append(list(tokenizer_image_token(prompt, self.tokenizer)))
        ids, mask = pad_prompts(rows, self.tokenizer.pad_token_id)
        present = [image for image in images if image is not None]
        pixels = process_images(present, self.processor, self.model.config) if present else None
        return {
            "input_ids": ids.to(self.model.device),
            "attention_mask": mask.to(self.model.device),
            "images": pixels,
        }


FAMILY = Family(
    load=LlavaCaptioner,
    own_dtype=own_dtype,
    results=Path(__file__).resolve().parents[2] / "results" / "llava",
    gpu_dtype="float16",  # as published
)

if __name__ == "__main__":
    raise SystemExit(main(["chair", *sys.argv[1:]], FAMILY, Path(__file__).name))
