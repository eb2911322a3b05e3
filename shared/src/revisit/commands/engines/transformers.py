"""Models of Transformers: loaded, prompted by their chat template, answering the evaluation."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any
from zlib import crc32

import torch
import transformers
from PIL import Image
from torch import Tensor

import revisit
from revisit.config import CODEConfig, DecoderConfig, ICDConfig, ReVisiTConfig, RITUALConfig
from revisit.decoders.code import QUESTION
from revisit.decoders.transformations import second_image
from revisit.evaluation.captioner import Answer, unusable_images
from revisit.evaluation.run import Run, decoder_settings
from revisit.transformers.checkpoint import check_files, check_layers, reading
from revisit.transformers.model_parts import Model, text_decoder
from revisit.transformers.other_prompts import describe, described, instructed
from revisit.transformers.published import published_layers

# Of `from_pretrained`, which warns of the older name.
_RELEASE = tuple(map(int, transformers.__version__.split(".")[:2]))
_DTYPE = "dtype" if _RELEASE >= (4, 56) else "torch_dtype"

Images = Sequence[Image.Image | None]
"""RGB images, one for each question; None where a question is about no image."""


class TransformersCaptioner:
    """Answers by `model.generate`; a subclass says how its inputs are made.

    Args:
        model: in evaluation mode.
        tokenizer: what has the `batch_decode` of the model's tokens.
        settings: see `revisit.evaluation.captioner.Captioner`.
        run: how it decodes.
        fork: whether `generate` itself takes ReVisiT's settings, by their published names.

    Raises:
        ValueError: the model cannot decode so.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Any,
        settings: Mapping[str, Any],
        run: Run,
        fork: bool = False,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.fork = fork
        self.decode(run)

    def decode(self, run: Run) -> None:
        """Decode from now on as a run says."""
        config, arguments = run.decoder, run.generation.arguments()
        if isinstance(config, ReVisiTConfig):
            last = text_decoder(self.model).depth
            config = replace(config, layers=published_layers(config.layers, last))
            if run.benchmark.without_images:
                config = replace(config, no_vision="plain")
            if self.fork:
                arguments |= decoder_settings(config)
        revisit.disable(self.model)
        if config is not None and not (self.fork and isinstance(config, ReVisiTConfig)):
            revisit.enable(self.model, config)
        self.config: DecoderConfig | None = config
        self.arguments: dict[str, Any] = arguments

    def inputs(
        self, images: Images, questions: Sequence[str], system: str | None = None
    ) -> Mapping[str, Any]:
        """Arguments of `generate` for RGB images and the question about each: a row for each in
        `input_ids` (B, T), padded on the left. `system` replaces the usual system message."""
        raise NotImplementedError

    def answer(self, images: Images, questions: Sequence[str]) -> list[Answer]:
        """The answer to each question about the image beside it."""

        def read(row: int, image: Image.Image) -> Mapping[str, Any]:
            return self.inputs([image], [questions[row]])

        def answer(row: int, image: Image.Image) -> None:
            self._answer([image], [questions[row]], read(row, image))

        try:
            inputs = self.inputs(images, questions)
        except Exception as error:
            raise unusable_images(error, images, read) from error
        try:
            return self._answer(images, questions, inputs)
        except Exception as error:
            raise unusable_images(error, images, answer) from error

    def _answer(
        self, images: Images, questions: Sequence[str], inputs: Mapping[str, Any]
    ) -> list[Answer]:
        second = self._second_inputs(images, questions, inputs)
        seed = self._seed_selection()
        sequences = self.model.generate(**inputs, **second, **self.arguments, **seed)
        new = sequences[:, inputs["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        counts = token_counts(new, end_tokens(self.model))
        return [Answer(text.strip(), n) for text, n in zip(texts, counts, strict=True)]

    def _second_inputs(
        self, images: Images, questions: Sequence[str], inputs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The argument of `generate` for the second stream of a decoder that has one."""
        config = self.config
        if isinstance(config, RITUALConfig):
            transformed = [image and second_image(image, config.seed) for image in images]
            second = self.inputs(transformed, questions)
        elif isinstance(config, ICDConfig):
            second = self.inputs(images, questions, config.prefix)
        elif isinstance(config, CODEConfig) and any(images):
            if config.description:
                descriptions = [config.description] * len(images)
            else:
                prompts = self.inputs(images, [QUESTION] * len(images))
                padding = {key: value for key, value in self.arguments.items() if "pad" in key}
                descriptions = describe(self.model, self.tokenizer, prompts, **padding)
            second = described(self.model, self.tokenizer, inputs, descriptions)
        else:
            return {}
        return {"second_inputs": second}

    def _seed_selection(self) -> dict[str, Any]:
        """Have `selection="random"` follow from the batch's seed, and not from how many prompts
        came before: a run that is continued draws what one run would have drawn."""
        seed = crc32(f"{torch.initial_seed()} {self.arguments}".encode())
        if isinstance(self.config, ReVisiTConfig) and self.config.selection == "random":
            if self.fork:
                return {"revisit_seed": seed}
            revisit.enable(self.model, replace(self.config, seed=seed))
        return {}


class StockCaptioner(TransformersCaptioner):
    """A model that is prompted by its processor and chat template.

    Raises:
        ValueError: the model cannot be loaded, or cannot decode so; says what to do.
    """

    def __init__(self, run: Run) -> None:
        check_run_layers(run)
        device = run.place.device or "cpu"
        model, self.processor = load_model(run.model_path, device, run.place.dtype or "auto")
        settings = {
            "prompt": chat_prompt(self.processor, 1, "<question>"),
            "revision": getattr(model.config, "_commit_hash", None),
        }
        super().__init__(model, self.processor, settings, run)

    def inputs(self, images: Images, questions: Sequence[str], system: str | None = None) -> Any:
        """See `TransformersCaptioner.inputs`."""
        rows = [[] if image is None else [image] for image in images]
        inputs = chat_inputs(self.processor, rows, questions, system)
        return inputs.to(self.model.device, self.model.dtype)


def check_run_layers(run: Run) -> None:
    """Refuse layers that the config.json of a run's model does not have, before it is loaded.

    Raises ValueError, and OSError as `own_dtype`.
    """
    if isinstance(run.decoder, ReVisiTConfig):
        check_layers(run.model_path, run.decoder.layers)


def load_model(name: str, device: str, dtype: str = "auto") -> tuple[Model, Any]:
    """A model in evaluation mode and its processor, which pads on the left.

    Args:
        name: a checkpoint's folder, or a hub id.
        device: where the model goes, or "auto" to spread it over what there is.
        dtype: the name of a torch dtype, or "auto" for the checkpoint's own.

    Raises:
        OSError: something of it is missing or damaged.
        ValueError: a package is missing, or it has no chat template; says what to do.
    """
    check_files(name)
    try:
        with reading(name):
            processor = transformers.AutoProcessor.from_pretrained(name)
            model: Model = transformers.AutoModelForImageTextToText.from_pretrained(
                name,
                **{_DTYPE: dtype},
                **({"device_map": "auto"} if device == "auto" else {}),
            )
    except ImportError as error:
        raise ValueError(str(error).strip()) from error
    if not getattr(processor, "chat_template", None) or not hasattr(processor, "tokenizer"):
        raise ValueError("it has no processor with a chat template to ask it a question by")
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return (model if device == "auto" else model.to(device)).eval(), processor


def chat_prompt(processor: Any, images: int, question: str, system: str | None = None) -> str:
    """The text of a conversation in which the user shows some images and asks about them."""
    content = [{"type": "image"} for _ in range(images)] + [{"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    if system is not None:
        return instructed(processor, [messages], system)[0]
    prompt: str = processor.apply_chat_template(messages, add_generation_prompt=True)
    return prompt


def chat_inputs(
    processor: Any,
    images: Sequence[Sequence[Image.Image]],
    questions: Sequence[str],
    system: str | None = None,
) -> Any:
    """What a model reads: a row for each question and the images that it is about."""
    prompts = [
        chat_prompt(processor, len(row), question, system)
        for row, question in zip(images, questions, strict=True)
    ]
    options: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
    bos = processor.tokenizer.bos_token
    if bos and prompts[0].startswith(bos):  # the template writes it: the tokenizer must not
        options["add_special_tokens"] = False
    # A slow processor takes a side of 1, 3 or 4 pixels for the channels.
    thin = any(set(image.size) & {1, 3, 4} for row in images for image in row)
    if thin and getattr(processor.image_processor, "is_fast", None) is False:
        options["input_data_format"] = "channels_last"
    rows = [list(row) for row in images] if any(images) else None
    return processor(text=prompts, images=rows, **options)


def end_tokens(model: Model) -> list[int]:
    """The tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    return [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [ends]


def token_counts(tokens: Tensor, ends: Collection[int]) -> list[int]:
    """How many of each row's tokens (B, T) int64 are its answer: up to and with the first of
    `ends`, all T where there is none. What follows is padding."""
    ended = torch.isin(tokens, torch.tensor(list(ends), dtype=tokens.dtype, device=tokens.device))
    first = ended.long().argmax(1) + 1
    counts: list[int] = torch.where(ended.any(1), first, tokens.shape[1]).tolist()
    return counts
