"""Contrastive decoders in `generate`, which compare two streams of the model: VCD, RITUAL, M3ID,
CODE, ICD."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from revisit.config import CODEConfig, ICDConfig, M3IDConfig, RITUALConfig, VCDConfig
from revisit.decoders import code, icd, m3id, ritual, vcd
from revisit.transformers.generation import (
    DecoderLogitsProcessor,
    Generation,
    Prompts,
    current_generation,
    normalized_like,
    prompt_count,
    refuse_prefilled_cache,
)
from revisit.transformers.recorder import eager
from revisit.transformers.second_stream import (
    OtherImages,
    OtherPrompt,
    SecondStream,
    holds_tensors,
    image_inputs,
)
from revisit.transformers.text_only import without_images
from revisit.transformers.vision_positions import locate


class SecondStreamLogitsProcessor(DecoderLogitsProcessor):
    """Combines the model's logits with a second stream's (`second_stream.py`).

    `second_inputs` of `generate`, or of `generation`, replaces the inputs of the same names in
    the second stream.
    """

    def open(self, prompts: Prompts) -> "SecondStreamGeneration":
        refuse_prefilled_cache(prompts.inputs, self.name)
        return SecondStreamGeneration(self, self.stream(prompts))

    def stream(self, prompts: Prompts) -> SecondStream:
        """The second stream of a generation of these prompts."""
        raise NotImplementedError

    def combine(self, logits: Tensor, second: Tensor, step: int) -> Tensor:
        """The decoder's scores (rows, V) of step `step`, from 0."""
        raise NotImplementedError


class VCDLogitsProcessor(SecondStreamLogitsProcessor):
    """The second stream sees the images with noise."""

    name = "VCD"
    config: VCDConfig

    def stream(self, prompts: Prompts) -> SecondStream:
        if prompts.second_inputs is not None:
            return _with_second_images(self, prompts.inputs, prompts.second_inputs)
        inputs = prompts.inputs
        pixels = {name: values for name, values in image_inputs(inputs).items() if _pixels(name)}
        if not pixels:
            _refuse_images(self, prompts, _wanted_images(inputs))
        noisy = {name: self._distort(name, pixels[name], inputs) for name in pixels}
        return OtherImages(self.model, inputs, noisy, self.name)

    def combine(self, logits: Tensor, second: Tensor, step: int) -> Tensor:
        return vcd.combine(logits, second, self.config.alpha, self.config.beta)

    def _distort(self, name: str, values: Any, inputs: Mapping[str, Any]) -> Any:
        """The pixel values with noise, image by image, in any layout of a model's processor."""
        step, seed = self.config.noise_step, self.config.seed
        if not isinstance(values, Tensor):
            return [vcd.distort(each, step, seed) for each in values]
        if values.ndim == 2:  # patches of all images, one after another
            grids = inputs.get("video_grid_thw" if name.endswith("videos") else "image_grid_thw")
            if grids is None:
                raise ValueError(
                    f"{self.name} cannot tell the images apart in {name} of shape "
                    f"{tuple(values.shape)} without their grids: pass second_inputs with the "
                    "images' patches and noise (revisit.decoders.vcd.distort)"
                )
            return vcd.distort(values, step, seed, patches=grids.prod(1).tolist())
        if values.ndim == 3:  # patches of each image
            return torch.stack([vcd.distort(each, step, seed) for each in values])
        noisy = vcd.distort(values, step, seed)
        if values.ndim > 4:  # rows with fewer images, or tiles, are filled up with blank ones
            return noisy * values.flatten(-3).any(-1)[..., None, None, None]
        sizes = inputs.get("image_sizes")
        if sizes is not None and sizes.amax(0).tolist() == list(values.shape[-2:]):
            # Each is padded to the largest: the noise covers the image alone.
            noisy = values.clone()
            for image, (height, width) in zip(noisy, sizes.tolist(), strict=True):
                inside = image[:, :height, :width]
                inside.copy_(vcd.distort(inside, step, seed))
        return noisy


class RITUALLogitsProcessor(SecondStreamLogitsProcessor):
    """The second stream sees the images transformed, which the caller makes: what a processor has
    normalized and cut up is no longer an image whose colours and corners can be turned."""

    name = "RITUAL"
    config: RITUALConfig

    def stream(self, prompts: Prompts) -> SecondStream:
        if prompts.second_inputs is not None:
            return _with_second_images(self, prompts.inputs, prompts.second_inputs)
        advice = (
            "; make the images by revisit.decoders.transformations.second_image(image, seed), and "
            "their inputs by the model's processor"
        )
        _refuse_images(self, prompts, _wanted_images(prompts.inputs) + advice)
        return OtherImages(self.model, prompts.inputs, {}, self.name)

    def combine(self, logits: Tensor, second: Tensor, step: int) -> Tensor:
        return ritual.combine(logits, second, self.config.alpha, self.config.beta)


class M3IDLogitsProcessor(SecondStreamLogitsProcessor):
    """The second stream reads the prompts without their images."""

    name = "M3ID"
    config: M3IDConfig

    def stream(self, prompts: Prompts) -> SecondStream:
        return text_only_stream(self, prompts)

    def combine(self, logits: Tensor, second: Tensor, step: int) -> Tensor:
        return m3id.combine(logits, second, step, self.config.gamma, self.config.beta)


class CODELogitsProcessor(SecondStreamLogitsProcessor):
    """The second stream reads a description in place of the images, which the caller makes."""

    name = "CODE"
    config: CODEConfig

    def stream(self, prompts: Prompts) -> SecondStream:
        if prompts.second_inputs is not None:
            return _other_prompt(self, prompts.inputs, prompts.second_inputs)
        advice = "pass second_inputs=revisit.transformers.other_prompts.described(...)"
        _refuse_images(self, prompts, f"descriptions of the images: {advice}")
        text = {name: prompts.inputs.get(name) for name in ("input_ids", "attention_mask")}
        return _other_prompt(self, prompts.inputs, text)

    def combine(self, logits: Tensor, second: Tensor, step: int) -> Tensor:
        return code.combine(logits, second, self.config.k)


class ICDLogitsProcessor(SecondStreamLogitsProcessor):
    """The second stream reads a disturbing instruction, in prompts that the caller makes."""

    name = "ICD"
    config: ICDConfig

    def stream(self, prompts: Prompts) -> SecondStream:
        if prompts.second_inputs is None:
            raise ValueError(
                "ICD needs the prompts with its instruction: pass second_inputs, the inputs that "
                "the model's processor makes of them and of the same images "
                "(revisit.transformers.other_prompts.instructed)"
            )
        return _other_prompt(self, prompts.inputs, prompts.second_inputs)

    def combine(self, logits: Tensor, second: Tensor, step: int) -> Tensor:
        return icd.combine(logits, second, self.config.alpha, self.config.beta)


class SecondStreamGeneration(Generation):
    """A generation that records the model's calls for its second stream."""

    processor: SecondStreamLogitsProcessor

    def __init__(self, processor: SecondStreamLogitsProcessor, stream: SecondStream) -> None:
        super().__init__(processor)
        self.stream: SecondStream | None = stream
        self.steps = 0
        self._running_second = False
        self._undo = ExitStack()

    def __enter__(self) -> "SecondStreamGeneration":
        with ExitStack() as undo:
            self.install(undo)
            self._undo = undo.pop_all()
        return self

    def install(self, undo: ExitStack) -> None:
        """Install the hooks of the generation, which `undo` takes off."""
        undo.enter_context(eager)  # a compiled graph would run without the hook
        model = self.processor.model
        hook = model.register_forward_pre_hook(self._record_call, with_kwargs=True)
        undo.callback(hook.remove)

    def __exit__(self, *error: object) -> None:
        self._undo.close()
        self.stream = None

    def _record_call(self, _model: nn.Module, args: Any, kwargs: Any = None) -> None:
        if current_generation() is self and not self._running_second and self.stream is not None:
            self.stream.record_call(args, kwargs or {})

    def step(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        assert self.stream is not None
        self._running_second = True
        try:
            second = self.stream.logits(input_ids)
        finally:
            self._running_second = False
        if second.shape != scores.shape:
            raise ValueError(
                f"the second stream's logits have shape {tuple(second.shape)}, the scores "
                f"{tuple(scores.shape)}"
            )
        second = second.to(scores.device, torch.float32)
        decided = self.processor.combine(scores.float(), second, self.steps)
        self.steps += 1
        return normalized_like(decided, scores)


def _pixels(name: str) -> bool:
    return name.startswith("pixel_values") or name == "images"


def _with_second_images(
    processor: DecoderLogitsProcessor, inputs: Mapping[str, Any], second: Mapping[str, Any]
) -> OtherImages:
    """The second stream with the images that the caller gives.

    Raises:
        ValueError: they are not the first stream's in number or size.
    """
    for name, new in second.items():
        old = inputs.get(name)
        if old is None:
            raise ValueError(
                f"second_inputs has {name}, which is not among the arguments of generate"
            )
        if not isinstance(new, Tensor) or not isinstance(old, Tensor):
            continue
        same = new.shape == old.shape
        if same and not new.is_floating_point():
            same = torch.equal(new.to(old.device), old)
        if not same:
            raise ValueError(
                f"{name} in second_inputs differs in shape or content from the first, "
                f"{tuple(new.shape)} and {tuple(old.shape)}: {processor.name}'s second images must "
                "take as many vision tokens, so keep their number and sizes"
            )
    images = {name: new for name, new in second.items() if _pixels(name) and holds_tensors(new)}
    if not images:
        raise ValueError(f"second_inputs {sorted(second)} hold no pixel values")
    return OtherImages(processor.model, inputs, images, processor.name)


def text_only_stream(processor: DecoderLogitsProcessor, prompts: Prompts) -> OtherPrompt:
    """The second stream that reads the prompts without their images, or the caller's prompts."""
    if prompts.second_inputs is not None:
        return _other_prompt(processor, prompts.inputs, prompts.second_inputs)
    inputs = prompts.inputs
    ids, mask = _text(processor, inputs)
    vision = locate(processor.model, inputs, prompts.vision_mask).mask
    ids, mask = without_images(processor.model.config, ids, mask, vision)
    return OtherPrompt(
        processor.model, {"input_ids": ids, "attention_mask": mask}, mask, processor.name
    )


def _other_prompt(
    processor: DecoderLogitsProcessor, inputs: Mapping[str, Any], second: Mapping[str, Any]
) -> OtherPrompt:
    """The second stream with prompts that the caller gives, as `generate` takes them.

    Raises:
        ValueError: they are not as many as the first stream's.
    """
    model, prompts = processor.model, prompt_count(inputs)
    ids, mask = _text(processor, second)
    if prompts is not None and len(ids) != prompts:
        raise ValueError(
            f"second_inputs has {len(ids)} prompts, generate {prompts}: {processor.name} needs one "
            "for each"
        )
    second = {**second, "attention_mask": mask}
    if hasattr(model, "vision_tokens"):  # it expands its placeholders, and pads anew
        vision = locate(model, second, None).mask
        counts = ((ids >= 0) & mask.bool()).sum(1, keepdim=True) + vision.sum(1, keepdim=True)
        length = vision.shape[1]
        mask = torch.arange(length, device=vision.device) >= length - counts
    return OtherPrompt(model, second, mask, processor.name)


def _text(processor: DecoderLogitsProcessor, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The tokens of prompts, and where they are not padding; both (P, T)."""
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids is None:
        raise ValueError(
            f"{processor.name} needs the prompts' tokens: pass second_inputs={{'input_ids': ..., "
            "'attention_mask': ...}, the prompts of its second stream"
        )
    if mask is not None:
        return ids, mask.long()
    pad = getattr(processor.model.generation_config, "pad_token_id", None)
    if pad is not None and (ids == pad).any():
        raise ValueError(
            f"{processor.name} cannot tell padding from text without attention_mask: pass it"
        )
    return ids, torch.ones_like(ids)


def _refuse_images(processor: DecoderLogitsProcessor, prompts: Prompts, needed: str) -> None:
    """Refuse prompts with images: a second stream with the same images would be plain decoding."""
    inputs = prompts.inputs
    images = any(map(_pixels, image_inputs(inputs)))
    readable = not images and inputs.get("input_ids") is not None
    if readable and not locate(processor.model, inputs, prompts.vision_mask).mask.any():
        return
    raise ValueError(f"{processor.name} needs {needed}")


def _wanted_images(inputs: Mapping[str, Any]) -> str:
    names = sorted(filter(_pixels, image_inputs(inputs))) or ["pixel_values"]
    wanted = ", ".join(f"{name!r}: ..." for name in names)
    return f"the second images: pass second_inputs={{{wanted}}} to generate"
