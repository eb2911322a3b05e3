"""A model of Transformers as the evaluation asks it: all but its loading and its prompts."""

from argparse import Namespace
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any
from zlib import crc32

import torch
from PIL import Image
from torch import Tensor

import revisit
from revisit.config import DecoderConfig, ReVisiTConfig, RITUALConfig
from revisit.decoders.transformations import second_image
from revisit.evaluation.answering import Answer, unusable_images
from revisit.transformers.model_parts import Model


class TransformersCaptioner:
    """Answers by `model.generate`; a subclass says how its inputs are made.

    Args:
        model: in evaluation mode.
        tokenizer: what has the `batch_decode` of the model's tokens.
        settings: see `revisit.evaluation.answering.Captioner`.
    """

    config: DecoderConfig | None = None
    decoding: Mapping[str, Any]

    def __init__(self, model: Model, tokenizer: Any, settings: Mapping[str, Any]) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings

    def decode(self, args: Namespace) -> None:
        """Decode from now on as these settled flags say; `decode_by` is told what that is."""
        raise NotImplementedError

    def decode_by(self, config: DecoderConfig | None, decoding: Mapping[str, Any]) -> None:
        """Decode from now on by other settings.

        Args:
            config: the decoder that is enabled, where `decoding` does not ask for one.
            decoding: more keyword arguments of `generate`.
        """
        revisit.disable(self.model)
        if config is not None:
            revisit.enable(self.model, config)
        self.config, self.decoding = config, decoding

    def inputs(self, images: Sequence[Image.Image], questions: Sequence[str]) -> Mapping[str, Any]:
        """What `generate` is given of some RGB images and the question about each: a row for each
        in `input_ids` (B, T), padded on the left."""
        raise NotImplementedError

    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[Answer]:
        """The answer to each question about the image beside it."""
        try:
            inputs = self.inputs(images, questions)
        except Exception as error:
            raise unusable_images(
                error, images, lambda place, image: self.inputs([image], [questions[place]])
            ) from error
        try:
            return self._answer(images, questions, inputs)
        except Exception as error:

            def take(place: int, image: Image.Image) -> None:
                asked = ([image], [questions[place]])
                self._answer(*asked, self.inputs(*asked))

            raise unusable_images(error, images, take) from error

    def _answer(
        self, images: Sequence[Image.Image], questions: Sequence[str], inputs: Mapping[str, Any]
    ) -> list[Answer]:
        second = {}
        if isinstance(self.config, RITUALConfig):
            turned = [second_image(image, self.config.seed) for image in images]
            second = {"second_inputs": self.inputs(turned, questions)}
        drawing = self._draw_anew()
        sequences = self.model.generate(**inputs, **second, **self.decoding, **drawing)
        new = sequences[:, inputs["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        counts = token_counts(new, self._ends())
        return [Answer(text.strip(), n) for text, n in zip(texts, counts, strict=True)]

    def _draw_anew(self) -> dict[str, Any]:
        """What lets `selection="random"` follow from the batch's seed, and not from how many
        prompts came before: a run that is continued draws what one run would have drawn."""
        seed = crc32(f"{torch.initial_seed()} {self.decoding}".encode())
        if self.decoding.get("revisit_selection") == "random":
            return {"revisit_seed": seed}
        if isinstance(self.config, ReVisiTConfig) and self.config.selection == "random":
            revisit.enable(self.model, replace(self.config, seed=seed))
        return {}

    def _ends(self) -> list[int]:
        told = self.model.generation_config.eos_token_id
        return [] if told is None else told if isinstance(told, list) else [told]


def token_counts(tokens: Tensor, ends: Collection[int]) -> list[int]:
    """How many of each row's tokens (B, T) int64 are its answer: up to and with the first of
    `ends`, all T where there is none. What follows is padding."""
    ended = torch.isin(tokens, torch.tensor(list(ends), dtype=tokens.dtype, device=tokens.device))
    first = ended.long().argmax(1) + 1
    counts: list[int] = torch.where(ended.any(1), first, tokens.shape[1]).tolist()
    return counts
