"""Images described by a model of Transformers in this process, with the trace of each token."""

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.generation.streamers import BaseStreamer

import revisit
from revisit.commands import CommandError
from revisit.commands.engines.description import QUESTION, Description, OnWords
from revisit.commands.engines.transformers import chat_inputs, end_tokens, load_model
from revisit.config import ReVisiTConfig
from revisit.core.trace import TraceStep
from revisit.evaluation.pictures.picture import Box
from revisit.evaluation.pictures.words import join
from revisit.transformers.image_regions import prompt_boxes
from revisit.transformers.processor import ReVisiTLogitsProcessor
from revisit.transformers.vision_positions import locate

DRAWN_ONLY = (
    "this is the demo's tiny model, which knows drawn scenes only; for photographs: "
    "--model Qwen/Qwen2.5-VL-3B-Instruct"
)


def demo_model() -> str:
    """The embedded tiny Qwen2.5-VL, where the package is in a clone of the repository.

    Raises:
        CommandError: it is not.
    """
    folder = Path(revisit.__file__).parents[3] / "prerequisites" / "demo" / "qwen-tiny"
    if not folder.is_dir():
        raise CommandError(
            "the demo's model is in a clone of the repository, and this package is not: pass "
            "--model, a folder or a hub id such as Qwen/Qwen2.5-VL-7B-Instruct"
        )
    return str(folder)


class Describer:
    """A loaded model with its processor, on the first GPU if there is one.

    Args:
        name: a checkpoint's folder, or a hub id.

    Raises:
        CommandError: it cannot be loaded, or reads no images; says what to do.
    """

    origin = ""

    def __init__(self, name: str) -> None:
        self.name = name
        record = Path(name, "training_record.json")  # the demo's models come with one
        self.warning = DRAWN_ONLY if record.is_file() else ""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.model, self.processor = load_model(name, device)
        except (OSError, ValueError) as error:
            raise CommandError(f"{name} cannot be loaded: {error}") from error
        self.title = Path(name).resolve().name if Path(name).exists() else name
        if self.warning:
            self.title = f"the demo's tiny model ({self.title}), which knows drawn scenes only"
        self.layers = "all" if self.model.config.model_type == "qwen2_5_vl" else "last"

    def check(self, config: ReVisiTConfig) -> None:
        """Raises `CommandError` where this model cannot decode so."""
        try:
            ReVisiTLogitsProcessor(self.model, config)
        except ValueError as error:
            raise CommandError(f"{self.name}: {error}") from error

    def inputs(self, images: Sequence[Image.Image], question: str) -> Any:
        """What the model reads: the images, and the question behind them."""
        return chat_inputs(self.processor, [images], [question])

    def describe(
        self,
        image: Image.Image,
        config: ReVisiTConfig | None,
        *,
        question: str = QUESTION,
        max_new_tokens: int = 256,
        max_seconds: float | None = None,
        on_words: OnWords | None = None,
    ) -> Description:
        """Describe an image.

        Args:
            config: None decodes greedily.
            max_seconds: the description ends after them.

        Raises:
            CommandError: the model cannot read the image.
        """
        try:
            inputs = self.inputs([image], question).to(self.model.device, self.model.dtype)
        except Exception as error:  # whatever its processor raises
            raise CommandError(f"the model cannot read this image: {error}") from error
        greedy = {"do_sample": False, "num_beams": 1}
        limits = {"max_new_tokens": max_new_tokens, "max_time": max_seconds}
        traced = (
            nullcontext()
            if config is None
            else revisit.attach(self.model, replace(config, trace=True))
        )
        with traced as run:
            streamer = _Streamer(self._decode(), on_words, run)
            self.model.generate(**inputs, **greedy, **limits, streamer=streamer)
        return streamer.description(end_tokens(self.model))

    def boxes(self, image: Image.Image) -> list[tuple[int, Box | None]]:
        """Of each vision token its image, and the part of it that the token shows.

        Raises:
            ValueError: that is not known of this model.
        """
        inputs = self.inputs([image], QUESTION)
        count = int(locate(self.model, inputs, None).mask.sum())
        return prompt_boxes(
            lambda probe: self.inputs([probe], QUESTION), [image], count, self.model.config
        )

    def _decode(self) -> Callable[[Sequence[int]], str]:
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}

        @cache
        def decode(tokens: tuple[int, ...]) -> str:
            return str(self.processor.tokenizer.decode(list(tokens), **options))

        return lambda tokens: decode(tuple(tokens))


class _Streamer(BaseStreamer):  # type: ignore[misc]
    """Keeps the tokens of a generation with their traces, and calls `on_words` at each."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        on_words: OnWords | None,
        run: ReVisiTLogitsProcessor | None,
    ) -> None:
        self.decode = decode
        self.on_words = on_words
        self.run = run
        self.prompt = True
        self.tokens: list[int] = []
        self.steps: list[TraceStep | None] = []
        self.fits: dict[int, list[float]] = {}

    def put(self, value: torch.Tensor) -> None:
        if self.prompt:  # comes first
            self.prompt = False
            return
        (token,) = value.flatten().tolist()
        step = None
        if self.run is not None and self.run.latest is not None:
            (step,), (distances,) = self.run.latest.newest(), self.run.latest.distances
            if step is not None and distances is not None and step.candidates > 1:
                (layout,) = self.run.latest.layouts
                fits = distances.neg().exp().view(-1, layout.tokens).amax(0)  # the best layer's
                self.fits[len(self.tokens)] = fits.tolist()
        self.tokens.append(token)
        self.steps.append(step and step._replace(token=token))
        if self.on_words is not None:
            self.on_words(join(self.tokens, self.steps, self.decode))

    def end(self) -> None:
        pass

    def description(self, ends: Collection[int]) -> Description:
        words = join(self.tokens, self.steps, self.decode, self.fits)
        stopped = not self.tokens or self.tokens[-1] not in ends
        return Description(self.decode(self.tokens).strip(), words, len(self.tokens), stopped)
