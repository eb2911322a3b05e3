"""Caption a sample of COCO images with Qwen2.5-VL, by ReVisiT or another decoder."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

try:
    from revisit.commands.main import RESUME, leave_at_ctrl_c

    leave_at_ctrl_c(RESUME)  # while PyTorch is imported
    import torch
    from qwen_vl_utils import process_vision_info
    from transformers import AutoProcessor, BatchFeature, Qwen2_5_VLForConditionalGeneration

    from revisit.commands.engines.transformers import (
        Images,
        TransformersCaptioner,
        check_run_layers,
    )
    from revisit.commands.eval import Family, main
    from revisit.evaluation.run import Run
    from revisit.transformers.checkpoint import load_complete, own_dtype
except ImportError as error:
    found = find_spec("revisit")
    sys.exit(
        f"{error}. `revisit` here is {found.origin if found else 'not installed'}, and PyPI's "
        "`revisit` is another project. This program has an environment: `nox -s qwen "
        "--install-only` builds it, `source .nox/qwen/bin/activate` (or `conda activate "
        "revisit_qwen`) activates it; see docs/reproducing.md"
    )


class QwenCaptioner(TransformersCaptioner):
    """Qwen2.5-VL that answers questions about images."""

    def __init__(self, run: Run) -> None:
        check_run_layers(run)
        model, _ = load_complete(
            Qwen2_5_VLForConditionalGeneration.from_pretrained,
            run.model_path,
            torch_dtype=getattr(torch, str(run.place.dtype)),
            device_map=run.place.device,
        )
        model.eval()
        self.processor = AutoProcessor.from_pretrained(
            run.model_path, padding_side="left", use_fast=False
        )
        pixels = self.processor.image_processor
        self.limits = {"min_pixels": pixels.min_pixels, "max_pixels": pixels.max_pixels}
        super().__init__(model, self.processor, dict(self.limits), run, fork=True)

    def inputs(
        self, images: Images, questions: Sequence[str], system: str | None = None
    ) -> BatchFeature:
        """See `TransformersCaptioner.inputs`."""
        conversations = []
        for image, question in zip(images, questions, strict=True):
            messages = [] if system is None else [{"role": "system", "content": system}]
            content: list[dict[str, Any]] = [{"type": "text", "text": question}]
            if image is not None:
                content.insert(0, {"type": "image", "image": image, **self.limits})
            conversations.append([*messages, {"role": "user", "content": content}])
        prompts = self.processor.apply_chat_template(conversations, add_generation_prompt=True)
        resized, _ = process_vision_info(conversations)
        inputs = self.processor(text=prompts, images=resized, padding=True, return_tensors="pt")
        return inputs.to(self.model.device)


FAMILY = Family(
    load=QwenCaptioner,
    own_dtype=own_dtype,
    results=Path(__file__).resolve().parents[2] / "results" / "qwen",
    layers="all",
)

if __name__ == "__main__":
    raise SystemExit(main(["chair", *sys.argv[1:]], FAMILY, Path(__file__).name))
